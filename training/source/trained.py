"""The source of a version that was trained here.

weights.safetensors   every parameter and buffer; its sha256 names the version in certificates
data/model.pt2        the same model as a torch.export program, example inputs left out (they would be pickled)
model.json            class path, constructor arguments, digest of the training data
recipe.yaml           the recipe with every default written out
serving/              transforms.json and the files that it names, if the recipe has a serving directory
MLmodel               MLflow's description
MANIFEST.json         size and sha256 of each file; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from registry.bundle import canonical_json, sha256_file
from registry.errors import Corrupt, UsageError
from training.components import build_data, build_model
from training.data.batches import data_digest, held_out_rows, prepare, training_rows
from training.fit import seed_all
from training.interface import Inference, evaluating
from training.quiet import treespec_notice_hidden
from training.recipe import ExportConfig, Recipe, Task, dump_recipe, parse_recipe
from training.source.interface import MIN_HELD_OUT_ROWS, EvaluationRows
from training.source.serving import copy_serving, serving_of

WEIGHTS = "weights.safetensors"
PROGRAM = "data/model.pt2"
MODEL = "model.json"
RECIPE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class TrainedSource:
    """A version's model as it was trained; see `training.source.interface.Source`.

    Attributes:
        model: In evaluation mode, on the CPU, with the version's weights.
        weights_sha256: Digest of its weights file.
        data_sha256: Digest of the data that it was trained on.
        serving: Its directory of transforms, if it has one.
    """

    model: nn.Module
    recipe: Recipe
    weights_sha256: str
    data_sha256: str
    serving: Path | None = None
    given_graph: Path | None = None

    @property
    def task(self) -> Task:
        """The recipe's."""
        return self.recipe.task

    @property
    def export(self) -> ExportConfig:
        """The recipe's."""
        return self.recipe.export

    def evaluation(self, config: ExportConfig) -> EvaluationRows:
        """Rows of the data that the model was trained on, made again and compared by digest."""
        seed_all(self.recipe.seed)
        data = prepare(build_data(self.recipe.data))
        if (digest := data_digest(data, self.model)) != self.data_sha256:
            raise Corrupt(
                f"the data are not those that the version was trained on (sha256 {digest[:12]}, was {self.data_sha256[:12]})",
                "Restore the data, or train a new version.",
            )
        held_out = held_out_rows(data, self.model, config.held_out_rows)
        if len(held_out) < MIN_HELD_OUT_ROWS:
            raise UsageError(f"too few held-out rows to certify anything ({len(held_out)})", f"Hold out {MIN_HELD_OUT_ROWS} or more.")
        calibration = training_rows(data, self.model, config.calibration_rows)
        return EvaluationRows(held_out=held_out, calibration=calibration, labelled=True, origin="held-out rows of the training data")


def export_program(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], *, dynamic: Mapping[str, Sequence[int]] | None = None
) -> torch.export.ExportedProgram:
    """The model as a torch.export program with a free batch dimension.

    Args:
        inputs: Example inputs of at least two rows, in the order of `forward`.
        dynamic: Input -> its dimensions that are free beside the batch.

    Raises:
        UsageError: torch.export cannot capture the model, or its batch size is fixed.
    """
    free = {name: (0, *(dynamic or {}).get(name, ())) for name in inputs}
    shapes = tuple(dict.fromkeys(free[name], torch.export.Dim.DYNAMIC) for name in inputs)
    with evaluating(model), treespec_notice_hidden():
        try:
            return torch.export.export(Inference(model), tuple(inputs.values()), dynamic_shapes=(shapes,))
        except Exception as error:  # anything that the user's forward can raise, and torch's own
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"the model cannot be exported ({type(error).__name__}: {reason})", "Make forward traceable, for any batch size."
            ) from error


def write_source(directory: Path, model: nn.Module, *, recipe: Recipe, inputs: Mapping[str, torch.Tensor], data_sha256: str) -> str:
    """Write weights, program, class and recipe into the directory; returns the sha256 of the weights. The manifest is not written."""
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_model(model, str(directory / WEIGHTS))
    program = export_program(model, inputs, dynamic=recipe.export.dynamic)
    program.example_inputs = None  # torch.export.save pickles them, and writes nothing for None
    (directory / PROGRAM).parent.mkdir(exist_ok=True)
    with treespec_notice_hidden():
        torch.export.save(program, directory / PROGRAM)
    described = {"class_path": recipe.model.class_path, "init_args": dict(recipe.model.init_args), "data_sha256": data_sha256}
    (directory / MODEL).write_text(canonical_json(described), encoding="utf-8")
    (directory / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    if recipe.export.serving is not None:
        copy_serving(Path(recipe.export.serving), directory)
    return sha256_file(directory / WEIGHTS)


def open_trained(directory: Path) -> TrainedSource:
    """Make the version's model again from its files, which the caller has verified.

    Raises:
        UsageError: The model's class cannot be imported here, or no longer fits the weights.
    """
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
    return TrainedSource(
        model=model.eval(),
        recipe=recipe,
        weights_sha256=sha256_file(directory / WEIGHTS),
        data_sha256=str(described["data_sha256"]),
        serving=serving_of(directory),
    )
