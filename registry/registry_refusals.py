"""What every model registry says when something does not exist, so that adapters and fakes say the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from registry.errors import NotFound, UsageError
from registry.names import ModelVersion


def unknown_model(model: str, known: Sequence[str]) -> NotFound:
    """A model that nobody registered."""
    return NotFound(
        f"no model {model}", f"Models are {', '.join(known)}." if known else "There is no model yet: run `modelway train` first."
    )


def unknown_version(model_version: ModelVersion, known: Sequence[int]) -> NotFound:
    """A version that its model does not have."""
    exists = f"versions are {', '.join(map(str, known))}" if known else "it has no version"
    return NotFound(f"no version {model_version.version} of {model_version.model}; {exists}", "Choose one of them, or train a new one.")


def never_exported(model_version: ModelVersion) -> NotFound:
    """A version without a bundle."""
    return NotFound(f"{model_version} was never exported", f"Run `modelway export {model_version}` first.")


def no_run(model_version: ModelVersion) -> UsageError:
    """A version that was imported: its registry has nowhere to keep a bundle of it."""
    return UsageError(f"{model_version} was made by no run, so there is no place for its bundle", "Register the version from a run.")


def not_new(directory: Path) -> UsageError:
    """A bundle is fetched into a new directory only, so that nothing else can be taken for a part of it."""
    return UsageError(f"the directory exists already ({directory})", "Name a new one.")
