"""Laws of `registry.release.fold`, over every sequence of entries that a ledger can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import event as observed
from hypothesis import strategies as st

from registry.release import ChannelState, EventKind, Release, ReleaseRecord, Status, fold
from registry.release import Event as LedgerEvent
from support.worlds import event, live, release, rollback

Entry = Release | LedgerEvent
# No time limits: a busy machine breaks no law.
law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
CHANNELS = (("digits", "production"), ("digits", "staging"), ("iris", "production"))
STEPS = tuple(kind for kind in EventKind if kind not in (EventKind.LIVE, EventKind.ABORTED))


@dataclass
class Writer:
    """Writes entries as the control API and the controller do.

    With `stale` events come also from a controller whose view is behind: of releases that were superseded, were live, or
    were given up.
    """

    draw: st.DrawFn
    stale: bool
    entries: list[Entry] = field(default_factory=list)

    def channel(self, key: tuple[str, str]) -> ChannelState:
        return fold(self.entries).get(key, ChannelState(model=key[0], channel=key[1]))

    def num_releases(self) -> int:
        return sum(isinstance(entry, Release) for entry in self.entries)

    def promote(self, key: tuple[str, str]) -> None:
        head = self.channel(key).head
        version = self.draw(st.integers(1, 4))
        replaces = head.release.id if head else None
        self.entries.append(release(self.num_releases() + 1, version, model=key[0], channel=key[1], replaces=replaces))

    def roll_back(self, key: tuple[str, str]) -> None:
        """To the rollback target, to the live release while a candidate is on its way, or to any that ever was live."""
        state = self.channel(key)
        was_live = [r for r in state.records if r.status in (Status.LIVE, Status.RETIRED)]
        if not was_live:
            return
        usual = state.live if state.candidate else state.rollback_target
        target = self.draw(st.sampled_from([*([usual] if usual else []), *was_live])).release
        assert state.head is not None
        back = rollback(self.num_releases() + 1, target.version, model=key[0], channel=key[1], replaces=state.head.release.id)
        self.entries.append(back)

    def happen(self, key: tuple[str, str]) -> None:
        state = self.channel(key)
        of = [r for r in state.records if self.stale or r is state.candidate]
        if of:
            record = self.draw(st.sampled_from(of))
            end = st.sampled_from([EventKind.LIVE, EventKind.LIVE, EventKind.LIVE, EventKind.ABORTED])
            self.entries.append(event(record.release.id, self.draw(st.sampled_from(STEPS) | end)))


@st.composite
def ledgers(draw: st.DrawFn, *, stale: bool | None = None) -> list[Entry]:
    writer = Writer(draw, draw(st.booleans()) if stale is None else stale)
    for _ in range(draw(st.integers(0, 40))):
        act = draw(st.sampled_from([writer.promote, writer.promote, writer.roll_back, writer.happen, writer.happen, writer.happen]))
        act(draw(st.sampled_from(CHANNELS[:1] * 4 + CHANNELS)))
    return writer.entries


@law
@given(ledgers(), st.data())
def test_folding_in_parts_is_folding_at_once(entries: list[Entry], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(entries)), max_size=5)))
    state = fold([])
    for start, end in zip([0, *cuts], [*cuts, len(entries)], strict=True):
        before = dict(state)
        untouched = {**state}
        state = fold(entries[start:end], before)
        assert before == untouched  # folding on leaves what it started from as it was
    assert state == fold(entries)


@law
@given(ledgers())
def test_no_entry_is_lost(entries: list[Entry]) -> None:
    records = [record for channel in fold(entries).values() for record in channel.records]
    assert sorted(record.release.id for record in records) == [e.id for e in entries if isinstance(e, Release)]
    for record in records:
        assert list(record.events) == [e for e in entries if isinstance(e, LedgerEvent) and e.release_id == record.release.id]


@law
@given(ledgers())
def test_at_most_one_release_of_a_channel_is_live(entries: list[Entry]) -> None:
    for channel in fold(entries).values():
        alive = [record for record in channel.records if record.status is Status.LIVE]
        assert alive == ([channel.live] if channel.live else [])


@law
@given(ledgers())
def test_at_most_the_newest_release_of_a_channel_is_in_progress(entries: list[Entry]) -> None:
    for channel in fold(entries).values():
        assert [r for r in channel.records if r.in_progress] == ([channel.candidate] if channel.candidate else [])


@law
@given(ledgers())
def test_the_live_stack_is_distinct_and_in_the_order_of_going_live(entries: list[Entry]) -> None:
    went_live: dict[int, int] = {}
    for position, entry in enumerate(entries):
        if isinstance(entry, LedgerEvent) and entry.kind is EventKind.LIVE:
            went_live.setdefault(entry.release_id, position)
    for channel in fold(entries).values():
        positions = [went_live[release_id] for release_id in channel.live_stack]
        assert positions == sorted(set(positions))
        observed(f"stack of {min(len(positions), 4)}")


@law
@given(ledgers())
def test_neighbours_of_the_live_stack_serve_different_archives(entries: list[Entry]) -> None:
    for channel in fold(entries).values():
        archives = [channel.record(release_id).release.archive for release_id in channel.live_stack]
        assert all(lower != upper for lower, upper in pairwise(archives))
        if channel.rollback_target is not None and channel.live is not None:
            assert channel.rollback_target.release.archive != channel.live.release.archive


@law
@given(ledgers())
def test_everything_on_the_live_stack_was_live(entries: list[Entry]) -> None:
    for channel in fold(entries).values():
        for release_id in channel.live_stack:
            assert channel.record(release_id).status in (Status.LIVE, Status.RETIRED)
            assert channel.record(release_id).last(EventKind.LIVE) is not None


@law
@given(ledgers())
def test_rolling_back_until_nothing_is_left_visits_every_archive_of_the_stack_once_from_the_top(entries: list[Entry]) -> None:
    key = CHANNELS[0]
    state = fold(entries)
    if key not in state or state[key].candidate is not None:
        return
    stack = [state[key].record(release_id).release.archive for release_id in state[key].live_stack]
    visited = []
    while (target := state[key].rollback_target) is not None and len(visited) <= len(stack):
        newest = max(record.release.id for channel in state.values() for record in channel.records)
        back = rollback(newest + 1, target.release.version)
        state = fold([back, *live(back.id)], state)
        visited.append(live_of(state[key]).release.archive)
    assert visited == stack[:-1][::-1]


@law
@given(ledgers(stale=True))
def test_a_release_finds_one_end(entries: list[Entry]) -> None:
    ends: dict[int, Status] = {}
    state = fold([])
    for entry in entries:
        state = fold([entry], state)
        for channel in state.values():
            for record in channel.records:
                if record.status in (Status.ABORTED, Status.RETIRED):
                    assert ends.setdefault(record.release.id, record.status) is record.status
                else:
                    assert record.release.id not in ends


def live_of(channel: ChannelState) -> ReleaseRecord:
    assert channel.live is not None
    return channel.live
