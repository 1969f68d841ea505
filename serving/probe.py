"""The golden probe: the last proof before traffic, asked of the live node itself, past the gateway."""

from __future__ import annotations

from pathlib import Path

from registry.errors import ModelwayError, TimedOut
from registry.release import Release
from serving.archive import open_archive
from serving.golden import PROBE_HEADERS
from serving.ports import ServingEngine

PROBE_TIMEOUT_S = 30.0


class ProbeFailed(ModelwayError):
    """The node answered the golden set wrongly, or not in time."""


def ask_golden_set(engine: ServingEngine, release: Release, archive: Path) -> float:
    """Ask the node for the archive's golden inputs; the largest absolute error of its answer.

    Raises:
        ProbeFailed: The answer is outside the certificate's tolerance, is no answer, or takes too long.
        Unavailable: The node does not answer at all; ask again.
    """
    golden = open_archive(archive, release.archive_sha256).golden
    try:
        status, body = engine.infer(release.model, release.engine_version, golden.request(), PROBE_HEADERS, PROBE_TIMEOUT_S)
    except TimedOut as error:
        raise ProbeFailed(f"{engine.name} did not answer the golden set within {PROBE_TIMEOUT_S:g} s") from error
    comparison = golden.judge(status, body)
    if comparison.problems:
        raise ProbeFailed(f"{engine.name}: {'; '.join(comparison.problems)}")
    return comparison.max_abs_error
