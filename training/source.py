"""The source of a version: the files from which its model is made again, digests included. No pickle.

weights.safetensors   every parameter and buffer; its sha256 names the version in certificates
data/model.pt2        the same model as a torch.export program, example inputs left out (they would be pickled)
model.json            class path, constructor arguments, digest of the training data
recipe.yaml           the recipe with every default written out
MLmodel               MLflow's description
MANIFEST.json         size and sha256 of each file; written last
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from registry.bundle import MANIFEST, canonical_json, sha256_file, verify_tree
from registry.errors import Corrupt, UsageError
from training.components import build_model
from training.interface import Inference, evaluating
from training.recipe import Recipe, dump_recipe, parse_recipe

WEIGHTS = "weights.safetensors"
PROGRAM = "data/model.pt2"
MODEL = "model.json"
RECIPE = "recipe.yaml"
# MLflow writes this into the artifacts themselves when `models:/...` is loaded from a local store; nothing reads it here.
_MLFLOW_NOTE = "registered_model_meta"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A version's model as it was trained.

    Attributes:
        model: In evaluation mode, on the CPU, with the version's weights.
        weights_sha256: Digest of its weights file.
        data_sha256: Digest of the data that it was trained on.
    """

    model: nn.Module
    recipe: Recipe
    weights_sha256: str
    data_sha256: str


def export_program(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.export.ExportedProgram:
    """The model as a torch.export program with a free batch dimension.

    Args:
        inputs: Example inputs of at least two rows, in the order of `forward`.

    Raises:
        UsageError: torch.export cannot capture the model, or its batch size is fixed.
    """
    batch = {0: torch.export.Dim.DYNAMIC}
    with evaluating(model), _treespec_notice_hidden():
        try:
            return torch.export.export(Inference(model), tuple(inputs.values()), dynamic_shapes=((batch,) * len(inputs),))
        except Exception as error:  # anything that the user's forward can raise, and torch's own
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"the model cannot be exported ({type(error).__name__}: {reason})", "Make forward traceable, for any batch size."
            ) from error


def write_source(directory: Path, model: nn.Module, *, recipe: Recipe, inputs: Mapping[str, torch.Tensor], data_sha256: str) -> str:
    """Write weights, program, class and recipe into the directory; returns the sha256 of the weights. The manifest is not written."""
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_model(model, str(directory / WEIGHTS))
    program = export_program(model, inputs)
    program.example_inputs = None  # torch.export.save pickles them, and writes nothing for None
    (directory / PROGRAM).parent.mkdir(exist_ok=True)
    with _treespec_notice_hidden():
        torch.export.save(program, directory / PROGRAM)
    described = {"class_path": recipe.model.class_path, "init_args": dict(recipe.model.init_args), "data_sha256": data_sha256}
    (directory / MODEL).write_text(canonical_json(described), encoding="utf-8")
    (directory / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    return sha256_file(directory / WEIGHTS)


def open_source(directory: Path, *, expected_sha256: str) -> Source:
    """Make the version's model again from its verified files.

    Args:
        expected_sha256: Digest of the manifest, as the version's tag has it.

    Raises:
        Corrupt: A file is not what the manifest says, or the manifest not what the version says.
        UsageError: The model's class cannot be imported here.
    """
    again = "Train the version again."
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise Corrupt(f"the version's source has no {MANIFEST} ({directory})", again)
    if (found := sha256_file(manifest)) != expected_sha256:
        raise Corrupt(f"wrong digest of the version's source ({found}, expected {expected_sha256})", again)
    verify_tree(directory, json.loads(manifest.read_bytes())["files"], unlisted=frozenset({MANIFEST, _MLFLOW_NOTE}))
    recipe = parse_recipe((directory / RECIPE).read_text(encoding="utf-8"))
    described: dict[str, Any] = json.loads((directory / MODEL).read_bytes())
    model = build_model(recipe.model)
    try:
        safetensors.torch.load_model(model, str(directory / WEIGHTS), strict=True)
    except RuntimeError as error:  # torch's word for missing, unexpected or misshapen tensors
        raise UsageError(
            f"the class no longer fits the version's weights ({recipe.model.class_path}: {' '.join(str(error).split())[:300]})",
            "Restore the code that the version was trained with; the run names its commit.",
        ) from error
    return Source(
        model=model.eval(), recipe=recipe, weights_sha256=sha256_file(directory / WEIGHTS), data_sha256=str(described["data_sha256"])
    )


@contextmanager
def _treespec_notice_hidden() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch.export copies its own deprecated LeafSpec.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        yield
