"""The platform that the proofs are made on: as in production, with API keys, and with models that misbehave on purpose."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reliability.abuse import LIMITS
from benchmarks.reliability.proof import Subject
from serving.api_keys import KeyFile, new_key

if TYPE_CHECKING:
    from support.live_platform import LivePlatform

MODEL, SLOW_MODEL = "prober", "slow"
# What an operator's shell may hold while `modelway up` is typed.
PLANTED: Mapping[str, str] = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-9f8e7d6c5b4a",
    "MODELWAY_API_KEY": "planted-own-key-1a2b3c4d5e",
    "DATABASE_PASSWORD": "planted-password-0c1d2e3f",
    "GITHUB_TOKEN": "planted-token-7a6b5c4d3e",
}


@contextmanager
def running(directory: Path, *, slow_iterations: int, **overrides: Any) -> Iterator[Subject]:
    """A platform with `MODEL` and `SLOW_MODEL` live, in a new home in `directory`; stopped at the end."""
    live_platform, bundles = _support()
    file = KeyFile(directory / "api-keys.toml")
    key, word = new_key("prober")
    file.add(key)
    platform: LivePlatform = live_platform.LivePlatform(directory / "home", {**LIMITS, "api_keys_file": file.path, **overrides})
    platform.env |= PLANTED
    platform.up()
    try:
        platform.register(MODEL, 1, fault=bundles.Fault.NAN_ABOVE_1000)
        platform.register(SLOW_MODEL, 1, fault=bundles.Fault.SLOW, slow_iterations=slow_iterations)
        for model in (MODEL, SLOW_MODEL):
            platform.must("promote", f"{model}/1", "--timeout", "180")
        platform.wait_in_sync()
        yield Subject(settings=platform.settings, key=word, model=MODEL, slow_model=SLOW_MODEL, planted=PLANTED)
    finally:
        platform.down()


def expected_answers(num_rows: int) -> tuple[Any, Any]:
    """Inputs [num_rows, 4] and what version 1 of `MODEL` answers, [num_rows, 3]."""
    _, bundles = _support()
    rows = bundles.golden_inputs(num_rows)
    return rows, bundles.expected_logits(rows, weights_seed=1)


def _support() -> tuple[Any, Any]:
    """The tests' own platform and planted models, which `python -m benchmarks.reliability` has to be told of."""
    tests = str(Path(__file__).parent.parent.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    from support import bundles, live_platform  # noqa: PLC0415

    return live_platform, bundles
