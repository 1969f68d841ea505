"""Fixtures of the tests that need the whole platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.live_platform import LivePlatform


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """One platform for all tests of a file; each test uses a model name of its own.

    Not one for all files: every model keeps its workers, and a few dozen of them are too many for two cores.
    """
    live = LivePlatform(tmp_path_factory.mktemp("platform") / "home")
    live.up()
    try:
        yield live
    finally:
        live.down()


@pytest.fixture
def model(platform: LivePlatform, request: pytest.FixtureRequest) -> str:
    """A model with the versions 1 and 2, exported, named after the test."""
    name = request.node.originalname.removeprefix("test_")[:60]
    platform.register(name, 1)
    platform.register(name, 2)
    return name


@pytest.fixture
def tmp_home(tmp_path: Path) -> Path:
    """A home that does not exist yet."""
    return tmp_path / "home"
