"""The directory of transforms that travels with a model: `serving/transforms.json` and the files that it names."""

from __future__ import annotations

import shutil
from pathlib import Path

from registry.errors import UsageError
from registry.transforms import TRANSFORMS

SERVING = "serving"


def copy_serving(origin: Path, into: Path) -> None:
    """Copy a user's serving directory to `into/serving`. Raises UsageError."""
    if not (origin / TRANSFORMS).is_file():
        raise UsageError(f"a serving directory needs a {TRANSFORMS} ({origin})", "See docs/export.md.")
    shutil.copytree(origin, into / SERVING)


def serving_of(directory: Path) -> Path | None:
    """The serving directory in a source; None if it has none."""
    serving = directory / SERVING
    return serving if (serving / TRANSFORMS).is_file() else None
