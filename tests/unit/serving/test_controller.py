"""The controller and the release service over fakes: whole stories, and every crash in them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from registry.errors import Conflict, NotFound, Refused, Unavailable
from registry.names import ModelVersion
from registry.release import EventKind, Status
from registry.strategy import Strategy, StrategyKind, parse_canary_steps
from registry.verdict import Outcome, Verdict
from serving.aliases import REFUSED_TAG
from serving.releases import PromotionRequest
from serving.steps import Step
from support.bundles import Fault, make_bundle
from support.control_plane import InMemoryPlane

CANARY = Strategy(kind=StrategyKind.CANARY, steps=parse_canary_steps("10%:5s,50%:5s"), hold_s=30)


@pytest.fixture
def plane(tmp_path: Path) -> InMemoryPlane:
    plane = InMemoryPlane(tmp_path)
    plane.register(1)
    plane.register(2)
    return plane


@pytest.fixture
def with_two_live(plane: InMemoryPlane) -> InMemoryPlane:
    plane.promote(1)
    plane.settle()
    plane.promote(2, strategy=CANARY)
    plane.settle()
    assert plane.live == 2
    return plane


def kinds(plane: InMemoryPlane, release_id: int) -> list[str]:
    return [event.kind.value for event in plane.channel.record(release_id).events]


def test_a_first_promotion_goes_live_at_once(plane: InMemoryPlane):
    plane.promote(1)
    plane.settle()
    assert (plane.live, plane.routed) == (1, {1: 100})
    assert kinds(plane, 1) == ["started", "loaded", "probed", "weighted", "live"]


def test_a_canary_passes_its_steps(with_two_live: InMemoryPlane):
    assert with_two_live.routed == {2: 100}
    assert kinds(with_two_live, 2) == [
        "started", "loaded", "probed", "weighted", "judged", "weighted", "judged", "weighted", "live",
    ]  # fmt: skip
    shares = [c.candidate_percent for t in with_two_live.gateway.applied for c in t.channels if c.candidate]
    assert list(dict.fromkeys(shares)) == [10, 50]


def test_a_failed_verdict_aborts_and_the_live_version_keeps_everything(plane: InMemoryPlane):
    plane.promote(1)
    plane.settle()
    plane.verdict = Verdict(Outcome.FAIL, ("error ratio 0.4 > 0.01 over 50 requests",))
    plane.promote(2, strategy=CANARY)
    plane.settle()
    record = plane.channel.record(2)
    assert (plane.live, plane.routed, record.status) == (1, {1: 100}, Status.ABORTED)
    aborted = record.last(EventKind.ABORTED)
    assert aborted is not None
    assert aborted.data["reason"] == "error ratio 0.4 > 0.01 over 50 requests"
    assert [version for _, version in plane.engine.registered] == [plane.channel.record(1).release.engine_version]


@pytest.mark.parametrize("outcome", [Outcome.INCONCLUSIVE, Outcome.ERROR])
def test_no_data_is_never_success(plane: InMemoryPlane, outcome: Outcome):
    plane.promote(1)
    plane.settle()
    plane.verdict = Verdict(outcome, ("3 of 50 samples",))
    plane.promote(2, strategy=CANARY)
    plane.settle()
    assert (plane.live, plane.channel.record(2).status) == (1, Status.ABORTED)
    assert "held" in kinds(plane, 2)


def test_a_warm_rollback_touches_no_node(with_two_live: InMemoryPlane):
    plane = with_two_live
    plane.engine.calls.clear()
    plane.registry.down = True
    plane.rollback(reason="bad")
    while plane.channel.candidate:
        plane.controller.step()
    assert (plane.live, plane.routed, plane.engine.calls) == (1, {1: 100}, [])
    assert kinds(plane, 3) == ["started", "weighted", "live"]


def test_a_rollback_during_a_canary_ends_it(plane: InMemoryPlane):
    plane.promote(1)
    plane.settle()
    plane.promote(2, strategy=CANARY)
    while not any(c.candidate for c in plane.gateway.loaded.channels):
        plane.controller.step()
        for probe in list(plane.controller._probes.values()):
            probe.exception(timeout=10)
    assert plane.routed == {1: 90, 2: 10}
    plane.rollback()
    plane.settle()
    assert (plane.live, plane.routed, plane.channel.record(2).status) == (1, {1: 100}, Status.SUPERSEDED)


def test_a_second_rollback_goes_further_back_and_a_third_is_refused(with_two_live: InMemoryPlane):
    plane = with_two_live
    plane.register(3)
    plane.promote(3)
    plane.settle()
    assert plane.live == 3
    for expected in (2, 1):
        plane.rollback()
        plane.settle()
        assert plane.live == expected
    with pytest.raises(Refused, match="no earlier live release"):
        plane.rollback()


def test_a_cold_rollback_loads_first_also_with_the_registry_down(with_two_live: InMemoryPlane):
    plane = with_two_live
    plane.register(3)
    plane.promote(3)
    plane.settle()
    plane.registry.down = True
    plane.rollback(to=1)
    plane.settle()
    assert (plane.live, plane.routed) == (1, {1: 100})
    assert kinds(plane, 4) == ["started", "loaded", "probed", "weighted", "live"]


def test_a_lost_archive_is_built_again_for_a_cold_rollback(with_two_live: InMemoryPlane):
    plane = with_two_live
    plane.register(3)
    plane.promote(3)
    plane.settle()
    (plane.root / "archives" / plane.channel.record(1).release.archive).unlink()
    plane.rollback(to=1)
    plane.settle()
    assert plane.live == 1


def test_a_rollback_to_a_version_that_was_never_live_names_those_that_were(with_two_live: InMemoryPlane):
    with pytest.raises(NotFound, match=r"digits/9 was never live in production\. Versions that were: 1, 2"):
        with_two_live.rollback(to=9)


def test_workers_that_die_at_load_abort_with_their_own_words(plane: InMemoryPlane):
    plane.promote(1)
    plane.settle()
    record = plane.promote(2)
    plane.engine.failing[record.release.engine_version] = "ValueError: no model here"
    plane.settle()
    aborted = plane.channel.record(2).last(EventKind.ABORTED)
    assert aborted is not None
    assert aborted.data["reason"] == "workers died on node-0: ValueError: no model here"
    assert plane.routed == {1: 100}


def test_a_wrong_golden_answer_never_gets_traffic(plane: InMemoryPlane):
    plane.promote(1)
    plane.settle()
    plane.engine.answer = lambda *_: (500, b'{"error": "model output is not finite"}')
    plane.promote(2, strategy=CANARY)
    plane.settle()
    aborted = plane.channel.record(2).last(EventKind.ABORTED)
    assert aborted is not None
    assert "golden probe failed" in aborted.data["reason"]
    assert "weighted" not in kinds(plane, 2)


def test_a_model_that_hangs_in_its_probe_holds_up_nobody_else(with_two_live: InMemoryPlane):
    plane = with_two_live
    go_on = threading.Event()
    plane.engine.answer = lambda *_: (500, str(go_on.wait(30)).encode())
    other = plane.registry.register("aaa")  # sorts before digits, so its steps come first
    plane.registry.attach_bundle(other, make_bundle(plane.root / "aaa", version=other).root)
    plane.releases.decide(plane.releases.prepare_promotion(PromotionRequest(model_version=other, actor="tester")))
    while not plane.controller._probes:
        plane.controller.step()
    plane.rollback()
    for _ in range(10):
        plane.controller.step()
    assert plane.live == 1
    go_on.set()


def test_a_damaged_archive_is_never_put_on_a_node(plane: InMemoryPlane):
    record = plane.promote(1)
    (plane.root / "archives" / record.release.archive).write_bytes(b"not it")
    plane.registry.down = True
    for _ in range(10):
        plane.controller.step()
        plane.clock.advance(3)
    assert (plane.engine.calls, plane.live) == ([], None)
    assert isinstance(plane.notes.failures[-1][1], Unavailable)
    plane.registry.down = False
    plane.settle()
    assert plane.live == 1, "built again from the registry"


def test_an_archive_that_can_only_be_built_differently_aborts_the_candidate(plane: InMemoryPlane):
    record = plane.promote(1)
    (plane.root / "archives" / record.release.archive).unlink()
    version = record.release.model_version
    other = make_bundle(plane.root / "other", version=version, weights_seed=7)
    plane.registry.attach_bundle(version, other.root)
    plane.settle()
    aborted = plane.channel.record(1).last(EventKind.ABORTED)
    assert aborted is not None
    assert "building it again gave another one" in aborted.data["reason"]
    assert plane.engine.calls == []


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        ({"certificate_passes": False}, "certificate of onnx-fp32"),
        ({"fault": Fault.WRONG_SHAPE, "certificate_passes": False}, "certificate of onnx-fp32"),
    ],
)
def test_gates_refuse_before_the_ledger(plane: InMemoryPlane, bundle, message):
    plane.register(3, **bundle)
    with pytest.raises(Refused, match=message):
        plane.promote(3, variant="onnx-fp32")
    assert plane.channel.records == ()


def test_an_unexported_version_is_refused_with_the_command(plane: InMemoryPlane):
    plane.registry.register("digits")
    with pytest.raises(Refused, match=r"digits/3 was never exported\. Run `modelway export digits/3` first"):
        plane.promote(3)


def test_promoting_what_is_live_is_no_new_release(with_two_live: InMemoryPlane):
    assert with_two_live.promote(2).release.id == 2
    assert len(with_two_live.channel.records) == 2


def test_a_promotion_on_top_of_another_conflicts_and_names_it(plane: InMemoryPlane):
    plane.promote(1)
    with pytest.raises(Conflict, match=r"release 1 \(digits/1, by tester\) is on its way"):
        plane.promote(2)


def test_a_stale_expectation_conflicts(with_two_live: InMemoryPlane):
    with pytest.raises(Conflict, match="release 1 is not the newest"):
        with_two_live.promote(1, expect=1)


def test_promoting_needs_the_registry_and_says_so(plane: InMemoryPlane):
    plane.registry.down = True
    with pytest.raises(Unavailable):
        plane.promote(1)


def test_a_node_that_restarts_empty_is_brought_back(with_two_live: InMemoryPlane):
    plane = with_two_live
    plane.engine.restart_empty()
    plane.settle()
    loaded = {version for _, version in plane.engine.registered}
    assert loaded == {plane.channel.record(i).release.engine_version for i in (1, 2)}


def test_a_node_that_is_down_does_not_stop_a_release_on_the_other(tmp_path: Path):
    plane = InMemoryPlane(tmp_path, num_nodes=2)
    plane.register(1)
    plane.engines["node-1"].down = True
    plane.promote(1)
    plane.settle()
    assert plane.live == 1
    assert plane.gateway.loaded.backends[0].sockets == ("/run/node-0.sock",)
    plane.engines["node-1"].down = False
    plane.settle()
    assert plane.gateway.loaded.backends[0].sockets == ("/run/node-0.sock", "/run/node-1.sock")


def test_a_gateway_edited_by_hand_is_mended(with_two_live: InMemoryPlane):
    with_two_live.gateway.tampered = True
    with_two_live.settle()
    assert not with_two_live.gateway.tampered


def test_a_dry_run_changes_nothing(plane: InMemoryPlane):
    prepared = plane.releases.prepare_promotion(PromotionRequest(model_version=ModelVersion("digits", 1), actor="tester"))
    steps = [str(step) for step in plane.controller.preview(prepared.draft)]
    assert steps[-1] == "record release 1 live"
    assert (plane.channel.records, plane.engine.calls, plane.gateway.applied) == ((), [], [])


# --- aliases


def test_the_alias_follows_the_live_version_and_waits_for_the_registry(with_two_live: InMemoryPlane):
    plane = with_two_live
    plane.registry.down = True
    with pytest.raises(Unavailable):
        plane.aliases.step()
    assert plane.aliases.reachable is False
    plane.registry.down = False
    plane.aliases.step()
    assert plane.registry.aliases("digits") == {"production": 2}
    assert kinds(plane, 2)[-1] == "alias_set"


def test_an_alias_moved_by_hand_becomes_a_release(with_two_live: InMemoryPlane):
    plane = with_two_live
    version = plane.register(3)
    plane.aliases.step()
    plane.registry.set_alias(version, "production")
    plane.aliases.step()
    plane.settle()
    record = plane.channel.record(3)
    assert (plane.live, record.release.actor) == (3, "registry")


def test_an_alias_moved_to_what_the_gates_refuse_is_put_back_with_the_reason(with_two_live: InMemoryPlane):
    plane = with_two_live
    version = plane.register(3, certificate_passes=False)
    plane.aliases.step()
    plane.registry.set_alias(version, "production")
    plane.aliases.step()
    assert plane.registry.aliases("digits") == {"production": 2}
    assert "certificate" in plane.registry.version(version).tags[REFUSED_TAG]
    plane.aliases.step()
    assert len(plane.channel.records) == 2


# --- crashes (P4 over fakes: every step of a promotion and of a rollback, before and after)


class Crash(Exception):
    """The controller's end, at a place that the test chose."""


def crash_at(plane: InMemoryPlane, number: int, *, before: bool) -> None:
    """Let the controller die around its `number`-th effect from now."""
    apply, count = plane.controller._apply, 0

    def crashing(step: Step) -> bool:
        nonlocal count
        count += 1
        if before and count == number:
            raise Crash
        acted = apply(step)
        if count == number:
            raise Crash
        return acted

    plane.controller._apply = crashing  # type: ignore[method-assign]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("action", ["promotion", "rollback"])
def test_a_crash_anywhere_needs_no_recovery(tmp_path: Path, action: str, before: bool):
    number = 0
    while True:
        number += 1
        plane = InMemoryPlane(tmp_path / f"{number}")
        plane.register(1)
        plane.register(2)
        plane.promote(1)
        plane.settle()
        if action == "rollback":
            plane.promote(2)
            plane.settle()
            plane.rollback()
        else:
            plane.promote(2, strategy=CANARY)
        crash_at(plane, number, before=before)
        try:
            plane.settle()
        except Crash:
            served = set(plane.routed)
            assert served <= {1, 2}
            plane.start()
            plane.settle()
            assert plane.live == (1 if action == "rollback" else 2)
            assert plane.routed == {plane.live: 100}
        else:
            break
    assert number > 5, "crash points were enumerated"
