"""A version's verified files -> its model."""

from __future__ import annotations

import json
from pathlib import Path

from registry.bundle import MANIFEST, sha256_file, verify_tree
from registry.errors import Corrupt
from training.source.imported import IMPORT, open_imported
from training.source.interface import Source
from training.source.trained import open_trained

# MLflow writes this into the artifacts themselves when `models:/...` is loaded from a local store; nothing reads it here.
_MLFLOW_NOTE = "registered_model_meta"


def open_source(directory: Path, *, expected_sha256: str) -> Source:
    """Make the version's model again from its verified files.

    Args:
        expected_sha256: Digest of the manifest, as the version's tag has it.

    Raises:
        Corrupt: A file is not what the manifest says, or the manifest not what the version says.
        UsageError: The model's class cannot be imported here.
    """
    again = "Train or import the version again."
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise Corrupt(f"the version's source has no {MANIFEST} ({directory})", again)
    if (found := sha256_file(manifest)) != expected_sha256:
        raise Corrupt(f"wrong digest of the version's source ({found}, expected {expected_sha256})", again)
    verify_tree(directory, json.loads(manifest.read_bytes())["files"], unlisted=frozenset({MANIFEST, _MLFLOW_NOTE}))
    return open_imported(directory) if (directory / IMPORT).is_file() else open_trained(directory)
