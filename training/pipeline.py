"""From a recipe to a registered version: the story of a training run, top to bottom."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.bundle import write_manifest
from registry.names import ModelVersion
from training import environment, figures
from training.components import build_data, build_model, resolve_recipe
from training.data.batches import Rows, data_digest, held_out_rows, prepare, training_rows
from training.evaluate import check_task, confusion_matrix, evaluate, predict
from training.fit import fit, seed_all
from training.interface import infer_signature
from training.recipe import Recipe, dump_recipe, load_recipe, parse_recipe, plain_recipe
from training.source.trained import PROGRAM, export_program, write_source
from training.tracking import SOURCE, Run, Tracking, write_mlmodel

Progress = Callable[[str], None]

_EXAMPLE_ROWS = 2  # one row would freeze the batch dimension


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedVersion:
    """What a training run left behind.

    Attributes:
        metrics: Metrics on the held-out rows, for example `accuracy` and `log_loss`.
        seconds: How long training took, evaluation and registration included.
    """

    model_version: ModelVersion
    run_id: str
    metrics: Mapping[str, float]
    seconds: float


def train(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    tracking_uri: str,
    artifact_root: str | None = None,
    progress: Progress | None = None,
) -> TrainedVersion:
    """Train a recipe, log the run to MLflow and register the model's next version.

    Args:
        recipe: Name of a built-in recipe, or path of a YAML file.
        overrides: `KEY=VALUE` each; see `training.recipe.load_recipe`.
        tracking_uri: MLflow's store or server.
        artifact_root: Where a new experiment keeps its artifacts; None for the store's default.
        progress: Called with one line per step and epoch.

    Raises:
        NotFound: No such recipe.
        UsageError: The recipe, its classes or its data do not fit.
        Unavailable: MLflow does not answer.
    """
    say = progress or (lambda line: None)
    started = time.monotonic()
    resolved = resolve_recipe(load_recipe(recipe, overrides))
    tracking = Tracking(tracking_uri, artifact_root=artifact_root)

    seed_all(resolved.seed)
    data = prepare(build_data(resolved.data))
    model = build_model(resolved.model)
    example = training_rows(data, model, _EXAMPLE_ROWS)
    _check_before_training(resolved, model, example)
    digest = data_digest(data, model)

    with tracking.run(resolved.name, tags=_tags(resolved, digest)) as run:
        say(f"training {resolved.name} ({resolved.model.class_path}) for {resolved.trainer.max_epochs} epochs, run {run.run_id}")
        run.log_params(_params(resolved, digest))
        history: list[dict[str, float]] = []

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            history.append(dict(metrics))
            run.log_metrics(metrics, step=epoch)
            say(f"epoch {epoch}/{resolved.trainer.max_epochs} " + " ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

        seed_all(resolved.seed)  # again: making and looking at the data may have used some of the random numbers
        fit(model, data, resolved, on_epoch=on_epoch)

        held_out = held_out_rows(data, model)
        output = _first(predict(model, held_out.inputs, outputs=resolved.export.outputs, task=resolved.task))
        metrics = evaluate(resolved.task, output, held_out.target)
        run.log_metrics({f"test_{name}": value for name, value in metrics.items()})
        say("held out: " + " ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

        with tempfile.TemporaryDirectory(prefix="modelway-train-") as scratch:
            _log_files(run, Path(scratch) / "files", recipe=resolved, history=history, output=output, held_out=held_out)
            source_sha256 = _log_source(run, Path(scratch) / SOURCE, recipe=resolved, model=model, example=example, data_sha256=digest)
        model_version = tracking.register(resolved.name, run, source_sha256=source_sha256)

    say(f"registered {model_version}")
    return TrainedVersion(model_version=model_version, run_id=run.run_id, metrics=metrics, seconds=time.monotonic() - started)


def _check_before_training(recipe: Recipe, model: nn.Module, example: Rows) -> None:
    """Find out now, not after hours of training, what the end would refuse."""
    parse_recipe(dump_recipe(recipe))  # what the run records must be readable again
    answers = predict(model, example.inputs, outputs=recipe.export.outputs, task=recipe.task)
    check_task(recipe.task, example, _first(answers))
    export_program(model, _tensors(example), dynamic=recipe.export.dynamic)


def _tags(recipe: Recipe, data_sha256: str) -> dict[str, str]:
    git = environment.git_state(Path.cwd())
    commit = {"mlflow.source.git.commit": git[0], "modelway.git_dirty": str(git[1]).lower()} if git else {}
    return {
        "mlflow.runName": f"{recipe.name}-seed{recipe.seed}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "modelway train",
        "modelway.data_sha256": data_sha256,
        **commit,
    }


def _params(recipe: Recipe, data_sha256: str) -> dict[str, Any]:
    return {**_flatten(plain_recipe(recipe)), "data_sha256": data_sha256, **environment.describe()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _log_files(run: Run, directory: Path, *, recipe: Recipe, history: Sequence[dict[str, float]], output: Any, held_out: Rows) -> None:
    (directory / "figures").mkdir(parents=True)
    figures.learning_curve(history, directory / "figures" / "learning_curve.png")
    if recipe.task == "classification" and output.shape[1] <= figures.MAX_CLASSES:
        figures.confusion(confusion_matrix(output, held_out.target), directory / "figures" / "confusion_matrix.png")
    (directory / "requirements.txt").write_text("\n".join(environment.installed_packages()) + "\n", encoding="utf-8")
    (directory / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    run.log_directory(directory)


def _log_source(run: Run, directory: Path, *, recipe: Recipe, model: nn.Module, example: Rows, data_sha256: str) -> str:
    """Upload what the version is made of; returns the digest of its manifest."""
    inputs = _tensors(example)
    write_source(directory, model, recipe=recipe, inputs=inputs, data_sha256=data_sha256)
    answers = predict(model, example.inputs, outputs=recipe.export.outputs, task=recipe.task)
    signature = infer_signature(inputs, {name: torch.from_numpy(array) for name, array in answers.items()})
    write_mlmodel(directory, run_id=run.run_id, signature=signature, program=PROGRAM)
    manifest_sha256 = write_manifest(directory)
    run.log_directory(directory, SOURCE)
    return manifest_sha256


def _tensors(rows: Rows) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in rows.inputs.items()}


def _first(outputs: Mapping[str, Any]) -> Any:
    return next(iter(outputs.values()))
