"""The golden probe: the last proof before traffic, asked of the live node itself, past the gateway."""

from __future__ import annotations

from pathlib import Path, PurePath

from registry.errors import ModelwayError, TimedOut
from registry.release import Release
from serving.archive import open_archive
from serving.golden import Golden
from serving.ports import ServingEngine, sockets_of

PROBE_TIMEOUT_S = 30.0


class ProbeFailed(ModelwayError):
    """The node answered the golden set wrongly, or not in time."""


def ask_golden_set(engine: ServingEngine, release: Release, archive: Path) -> float:
    """Ask the node for the archive's golden inputs, by each way that traffic can take; the largest absolute error of its answers.

    Raises:
        ProbeFailed: An answer is outside the certificate's tolerance, is no answer, or takes too long.
        Unavailable: The node does not answer at all; ask again.
    """
    golden = open_archive(archive, release.archive_sha256).golden
    workers = sockets_of(release, engine.worker_sockets())
    return max(_ask(engine, release, part, worker) for worker in (None, *workers) for part in golden.parts())


def _ask(engine: ServingEngine, release: Release, golden: Golden, worker: str | None) -> float:
    asked = engine.name if worker is None else f"{engine.name}, worker {PurePath(worker).stem}"
    headers, request = golden.binary_request()
    try:
        status, body = engine.infer(release.model, release.engine_version, request, headers, PROBE_TIMEOUT_S, worker=worker)
    except TimedOut as error:
        raise ProbeFailed(f"{asked} did not answer the golden set within {PROBE_TIMEOUT_S:g} s") from error
    comparison = golden.judge(status, body)
    if comparison.problems:
        raise ProbeFailed(f"{asked}: {'; '.join(comparison.problems)}")
    return comparison.max_abs_error
