"""What a tuning changes: the archive and the workers of releases made after it, and nothing of those made before."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from registry.errors import Corrupt
from registry.names import ModelVersion
from registry.release import Event, EventKind, Release, fold
from registry.tuning import Tuning, WorkerLayout, document_name, store_tuning
from serving.archive import RuntimeOptions, open_archive
from serving.archive_cache import ArchiveCache
from serving.plan import Observed, PlanPolicy, plan
from serving.ports import GatewayState, LoadedArchive, LoadState, NodeState
from serving.steps import Scale
from support.control_plane import InMemoryPlane
from support.worlds import NOW, release

VARIANT = "onnx-fp32"
LAYOUT = WorkerLayout(num_workers=3, num_threads=2, batch_size=16)
TUNED = RuntimeOptions(intra_op_threads=2, batch_size=16, num_workers=3)


@pytest.fixture
def plane(tmp_path: Path) -> InMemoryPlane:
    plane = InMemoryPlane(tmp_path)
    plane.register(1)
    return plane


def tune(plane: InMemoryPlane, layout: WorkerLayout = LAYOUT, **changes: str) -> None:
    version = ModelVersion("digits", 1)
    bundle_sha256 = plane.registry.version(version).bundle_sha256
    assert bundle_sha256 is not None
    tuning = Tuning(version=version, variant=VARIANT, bundle_sha256=bundle_sha256, layout=layout)
    store_tuning(plane.registry, replace(tuning, **changes))  # type: ignore[arg-type]


def test_a_release_after_a_tuning_runs_as_it_says(plane: InMemoryPlane) -> None:
    before = plane.promote(1).release
    plane.settle()
    tune(plane)
    after = plane.promote(1).release
    plane.settle()
    assert plane.live == 1
    assert (before.num_workers, after.num_workers) == (None, 3)
    assert RuntimeOptions(**before.options or {}) == RuntimeOptions()
    assert open_archive(plane.root / "archives" / after.archive).options == RuntimeOptions(**after.options or {}) == TUNED
    scales = [step for step in plane.notes.applied_steps if isinstance(step, Scale)]
    assert [(step.engine_version, step.num_workers) for step in scales] == [(before.engine_version, 1), (after.engine_version, 3)]
    plane.rollback()
    plane.settle()
    assert plane.channel.live is not None
    assert plane.channel.live.release.archive == before.archive
    assert plane.channel.live.release.options == before.options


def test_an_archive_that_is_lost_is_built_again_as_it_was_released(plane: InMemoryPlane) -> None:
    before = plane.promote(1).release
    plane.settle()
    tune(plane)
    after = plane.promote(1).release
    other_settings = ArchiveCache(plane.root / "archives", plane.registry, RuntimeOptions(intra_op_threads=7))
    for made in (before, after):
        (plane.root / "archives" / made.archive).unlink()
        assert open_archive(other_settings.ensure(made), made.archive_sha256).options == RuntimeOptions(**made.options or {})


def test_a_release_of_before_options_were_recorded_is_built_with_the_settings(plane: InMemoryPlane) -> None:
    made = plane.promote(1).release
    tune(plane)
    old = replace(made, options=None)
    (plane.root / "archives" / made.archive).unlink()
    assert plane.archives.ensure(old).is_file()
    (plane.root / "archives" / made.archive).unlink()
    with pytest.raises(Corrupt, match="gave another one"):
        ArchiveCache(plane.root / "archives", plane.registry, RuntimeOptions(intra_op_threads=7)).ensure(old)


def test_a_tuning_of_another_export_or_variant_changes_nothing(plane: InMemoryPlane) -> None:
    tune(plane, bundle_sha256="0" * 64)
    assert plane.archives.build(ModelVersion("digits", 1), VARIANT).options == RuntimeOptions()
    tune(plane, variant="torchscript-fp32")
    assert plane.archives.build(ModelVersion("digits", 1), VARIANT).options == RuntimeOptions()


def test_a_tuning_that_was_taken_away_no_longer_counts(plane: InMemoryPlane) -> None:
    tune(plane)
    assert plane.archives.build(ModelVersion("digits", 1), VARIANT).options == TUNED
    plane.registry.attach_document(ModelVersion("digits", 1), document_name(VARIANT), None)
    assert plane.archives.build(ModelVersion("digits", 1), VARIANT).options == RuntimeOptions()


def test_what_was_promoted_with_the_same_tuning_is_already_there(plane: InMemoryPlane) -> None:
    tune(plane)
    plane.promote(1)
    plane.settle()
    assert plane.promote(1).release.id == 1


def test_an_entry_of_an_older_ledger_reads() -> None:
    written = release(1, 1, options=asdict(TUNED)).to_json()
    assert Release.from_json(json.loads(json.dumps(written))).options == asdict(TUNED)
    del written["options"]
    old = Release.from_json(json.loads(json.dumps(written)))
    assert (old.options, old.num_workers) == (None, None)
    assert hash(old) == hash(replace(old, options=asdict(TUNED)))


@pytest.mark.parametrize(("options", "num_workers"), [(None, 5), (asdict(RuntimeOptions()), 5), (asdict(TUNED), 3)])
def test_the_release_decides_how_many_workers_and_else_the_platform(options: dict[str, object] | None, num_workers: int) -> None:
    made = release(1, 1, options=options)
    loaded = LoadedArchive(model="digits", engine_version=made.engine_version, state=LoadState.REGISTERED)
    node = NodeState(reachable=True, archives={("digits", made.engine_version): loaded}, stored=frozenset({made.archive}))
    observed = Observed(nodes={"node-0": node}, sockets={"node-0": "/s"}, gateway=GatewayState(reachable=True))
    desired = fold([made, Event(release_id=1, kind=EventKind.STARTED, at=NOW)])
    steps = plan(desired, observed, NOW, PlanPolicy(num_workers=5))
    assert [step.num_workers for step in steps if isinstance(step, Scale)] == [num_workers]
