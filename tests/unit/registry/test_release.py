"""Releases, events and what they add up to."""

from __future__ import annotations

import json

import pytest

from registry.bundle import canonical_json
from registry.release import ChannelState, Event, EventKind, LedgerState, Release, Status
from support.worlds import CANARY, NOW, event, later, ledger, live, release, rollback

KEY = ("digits", "production")


def statuses(state: LedgerState) -> list[Status]:
    return [record.status for record in state[KEY].records]


def test_the_module_s_worked_example():
    started, loaded, probed = (event(2, kind) for kind in (EventKind.STARTED, EventKind.LOADED, EventKind.PROBED))
    weighted = [event(2, EventKind.WEIGHTED, step=step, percent=percent) for step, percent in enumerate((10.0, 50.0, 100.0))]
    first = (release(1, 1), live(1))
    assert statuses(ledger(*first)) == [Status.LIVE]
    second = (*first, release(2, 2, replaces=1), (started, loaded, probed, *weighted))
    assert statuses(ledger(*second)) == [Status.LIVE, Status.PROGRESSING]
    second = (*second, event(2, EventKind.LIVE))
    assert statuses(ledger(*second)) == [Status.RETIRED, Status.LIVE]
    back = (*second, rollback(3, 1, replaces=2), (event(3, EventKind.STARTED), event(3, EventKind.WEIGHTED, percent=100.0)))
    assert statuses(ledger(*back)) == [Status.RETIRED, Status.LIVE, Status.PROGRESSING]
    back = (*back, event(3, EventKind.LIVE))
    assert statuses(ledger(*back)) == [Status.RETIRED, Status.RETIRED, Status.LIVE]
    assert ledger(*back)[KEY].live_stack == (3,)


def test_the_live_stack_s_worked_example():
    promoted = [entry for n in (1, 2, 3) for entry in (release(n, n), live(n))]
    channel = ledger(*promoted)[KEY]
    assert channel.live_stack == (1, 2, 3)
    assert channel.rollback_target == channel.record(2)
    channel = ledger(*promoted, rollback(4, 2), live(4))[KEY]
    assert channel.live_stack == (1, 4)
    assert channel.live == channel.record(4)
    assert channel.rollback_target == channel.record(1)
    channel = ledger(*promoted, rollback(4, 2), live(4), rollback(5, 1), live(5))[KEY]
    assert (channel.live_stack, channel.rollback_target) == ((5,), None)


def test_a_rollback_to_what_is_no_longer_on_the_stack_can_be_rolled_back():
    entries = [release(1, 1), live(1), release(2, 2), live(2), rollback(3, 1), live(3), rollback(4, 2), live(4)]
    channel = ledger(*entries)[KEY]
    assert channel.live_stack == (3, 4)


def test_the_same_archive_promoted_again_is_no_place_to_roll_back_to():
    channel = ledger(release(1, 1), live(1), release(2, 2), live(2), release(3, 2), live(3))[KEY]
    assert channel.live_stack == (1, 3)


def test_a_rollback_while_a_candidate_is_on_its_way_supersedes_it():
    channel = ledger(release(1, 1), live(1), release(2, 2), event(2, EventKind.STARTED), rollback(3, 1))[KEY]
    assert [record.status for record in channel.records] == [Status.LIVE, Status.SUPERSEDED, Status.PENDING]
    assert channel.candidate == channel.head == channel.record(3)


def test_a_superseded_release_that_had_all_traffic_was_live():
    # The controller recorded it just after the next release was made.
    channel = ledger(release(1, 1), live(1), release(2, 2), event(2, EventKind.STARTED), rollback(3, 1), event(2, EventKind.LIVE))[KEY]
    assert [record.status for record in channel.records] == [Status.RETIRED, Status.LIVE, Status.PENDING]
    assert channel.live_stack == (1, 2)


@pytest.mark.parametrize("late", [EventKind.LIVE, EventKind.ABORTED, EventKind.WEIGHTED])
@pytest.mark.parametrize("release_id", [1, 2])
def test_a_late_event_of_a_release_that_found_its_end_changes_nothing_but_its_events(late: EventKind, release_id: int):
    entries = [release(1, 1), live(1), release(2, 2), event(2, EventKind.ABORTED), release(3, 3), live(3)]
    before, after = ledger(*entries)[KEY], ledger(*entries, event(release_id, late))[KEY]
    assert after.live_stack == before.live_stack == (1, 3)
    assert [r.status for r in after.records] == [r.status for r in before.records] == [Status.RETIRED, Status.ABORTED, Status.LIVE]
    assert after.record(release_id).events[-1].kind is late


def test_channels_do_not_touch_each_other():
    state = ledger(release(1, 1), live(1), release(2, 2, channel="staging"), release(3, 1, model="iris"), live(3))
    assert set(state) == {KEY, ("digits", "staging"), ("iris", "production")}
    assert state[KEY].live_stack == (1,)
    assert state["digits", "staging"].live is None
    assert state["iris", "production"].live_stack == (3,)


def test_an_empty_channel_has_nothing():
    channel = ChannelState(model="digits", channel="production")
    assert (channel.head, channel.live, channel.candidate, channel.rollback_target) == (None, None, None, None)
    with pytest.raises(KeyError):
        channel.record(1)


def test_an_alias_that_is_set_later_belongs_to_its_release():
    channel = ledger(release(1, 1), live(1), release(2, 2), live(2), event(1, EventKind.ALIAS_SET, at=later(9)))[KEY]
    alias_set = channel.record(1).last(EventKind.ALIAS_SET)
    assert alias_set is not None
    assert alias_set.at == later(9)
    assert channel.record(2).last(EventKind.ALIAS_SET) is None


def test_what_happened_since_goes_by_the_ledger_s_order():
    marks = [event(1, EventKind.WEIGHTED, step=n) for n in range(2)]
    record = ledger(release(1, 1), marks[0], event(1, EventKind.HELD), marks[1])[KEY].record(1)
    assert record.happened_since(EventKind.HELD, marks[0])
    assert not record.happened_since(EventKind.HELD, marks[1])


@pytest.mark.parametrize(
    "made", [release(1, 1), release(7, 2, strategy=CANARY, replaces=6, reason="ä"), rollback(2, 1, channel="staging")], ids=str
)
def test_a_release_comes_back_from_json(made: Release):
    assert Release.from_json(json.loads(canonical_json(made.to_json()))) == made


def test_an_event_comes_back_from_json():
    made = event(1, EventKind.WEIGHTED, at=later(0.5), step=1, percent=50.0, counters={"1": {}})
    assert Event.from_json(json.loads(canonical_json(made.to_json()))) == made


def test_a_record_s_json_has_status_and_events():
    record = ledger(release(1, 1), live(1))[KEY].record(1)
    data = record.to_json()
    assert (data["id"], data["status"], data["created_at"]) == (1, "live", NOW.isoformat())
    assert [e["kind"] for e in data["events"]] == ["started", "loaded", "probed", "weighted", "live"]


def test_the_engine_version_is_exact_to_the_archive():
    made = release(1, 3, archive="digits-3-onnx-fp32-0123456789ab.mar")
    assert made.engine_version == "3-onnx-fp32-0123456789ab"
    assert str(made.model_version) == "digits/3"
