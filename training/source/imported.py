"""The source of a version that was trained elsewhere and imported.

import.json           what it is (`ImportedModel`), and where it came from
sample.npz            `in/<input>` [n, ...] and, where there are labels, `target` [n, ...]
model.onnx            kind onnx; `model.onnx.data` beside it if its weights are external
model.pt              kind torchscript
data/model.pt2        kind program: a torch.export program
weights.safetensors   kind module: every parameter and buffer of a class
serving/              transforms.json and the files that it names, if there are any
MANIFEST.json         size and sha256 of each file; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.torch
from torch import nn

from registry.bundle import canonical_json, sha256_file
from registry.errors import Corrupt, UsageError
from training.components import build_model
from training.data.batches import Array, Rows
from training.evaluate import predict
from training.recipe import ComponentConfig, ExportConfig, Task, parse_export, plain
from training.source.interface import MIN_HELD_OUT_ROWS, EvaluationRows
from training.source.modules import OnnxModule, ProgramModule, load_torchscript
from training.source.serving import serving_of
from training.source.trained import PROGRAM, WEIGHTS

IMPORT = "import.json"
SAMPLE = "sample.npz"
ONNX = "model.onnx"
TORCHSCRIPT = "model.pt"
_TARGET = "target"
_INPUT = "in/"

Kind = Literal["onnx", "torchscript", "program", "module"]
_FILES: Mapping[Kind, str] = {"onnx": ONNX, "torchscript": TORCHSCRIPT, "program": PROGRAM, "module": WEIGHTS}


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What a version that was imported is.

    Attributes:
        kind: In which form its model lies in the source.
        task: What the first output means.
        export: What is made of it where the user does not say otherwise; names its outputs.
        model: Its class, for kind `module`.
        origin: Where it came from: file name, sha256, MLflow version. For people.
    """

    kind: Kind
    task: Task
    export: ExportConfig
    model: ComponentConfig | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"unknown kind of an imported model ({self.kind!r})", f"Kinds are {', '.join(get_args(Kind))}.")
        if (self.kind == "module") != (self.model is not None):
            raise UsageError(f"a class goes with kind module, and only with it (kind {self.kind})")

    def to_json(self) -> dict[str, Any]:
        """As stored in `import.json`."""
        described: dict[str, Any] = plain(asdict(self))
        return described

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImportedModel:
        """The inverse of `to_json`."""
        model = data["model"]
        return cls(
            kind=data["kind"],
            task=data["task"],
            export=parse_export(data["export"]),
            model=None if model is None else ComponentConfig(class_path=model["class_path"], init_args=model["init_args"]),
            origin=data["origin"],
        )


@dataclass(frozen=True, kw_only=True)
class ImportedSource:
    """An imported version's model; see `training.source.interface.Source`.

    Attributes:
        sample: Given rows; `labels` are theirs if there are any.
    """

    imported: ImportedModel
    model: nn.Module
    weights_sha256: str
    sample: Mapping[str, Array]
    labels: Array | None
    given_graph: Path | None
    serving: Path | None

    @property
    def task(self) -> Task:
        """As it was said at the import."""
        return self.imported.task

    @property
    def export(self) -> ExportConfig:
        """As it was said at the import."""
        return self.imported.export

    def evaluation(self, config: ExportConfig) -> EvaluationRows:
        """The given sample: its first half to measure on and its second for quantizers, or all of it for both if it is small."""
        given = len(next(iter(self.sample.values())))
        if self.labels is not None and given < MIN_HELD_OUT_ROWS:
            raise UsageError(
                f"too few labelled rows to certify anything ({given})", f"Import with {MIN_HELD_OUT_ROWS} rows or more, or without labels."
            )
        sample = {name: _repeated(array, MIN_HELD_OUT_ROWS) for name, array in self.sample.items()}
        num_rows = len(next(iter(sample.values())))
        target = self.labels if self.labels is not None else self._own_answer(sample, config)
        every = Rows(inputs=sample, target=target)
        half = num_rows // 2
        if half < MIN_HELD_OUT_ROWS:
            held_out, calibration, use = every, every, "for measuring and for calibration"
        else:
            held_out, calibration, use = _part(every, slice(0, half)), _part(every, slice(half, num_rows)), "half of them for calibration"
        repeated = "" if given >= MIN_HELD_OUT_ROWS else f", repeated to {num_rows}"
        return EvaluationRows(
            held_out=_part(held_out, slice(0, config.held_out_rows)),
            calibration=_part(calibration, slice(0, config.calibration_rows)),
            labelled=self.labels is not None,
            origin=f"{given} given rows{repeated}, {use}",
        )

    def _own_answer(self, sample: Mapping[str, Array], config: ExportConfig) -> Array:
        """What the model says itself, for rows without labels: classes, or values."""
        first = next(iter(predict(self.model, sample, outputs=config.outputs, task=self.task).values()))
        return np.asarray(first.argmax(-1)) if self.task == "classification" else first


def write_imported(directory: Path, imported: ImportedModel, *, sample: Mapping[str, Array], labels: Array | None = None) -> None:
    """Describe the model whose file already lies in the directory (`model_file`). The manifest is not written.

    Args:
        sample: Input name -> array [n, ...], in the order in which the model takes them.
        labels: Array [n, ...]; None if there are none.

    Raises:
        UsageError: The arrays do not fit together.
    """
    counts = {name: len(array) for name, array in (*sample.items(), *([(_TARGET, labels)] if labels is not None else []))}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise UsageError(f"the sample's arrays differ in their number of rows, or are empty ({counts})", "The first dimension is the rows.")
    arrays = {f"{_INPUT}{name}": array for name, array in sample.items()} | ({_TARGET: labels} if labels is not None else {})
    np.savez(directory / SAMPLE, allow_pickle=False, **arrays)
    (directory / IMPORT).write_text(canonical_json(imported.to_json()), encoding="utf-8")


def model_file(directory: Path, kind: Kind) -> Path:
    """Where the model of that kind lies in a source directory."""
    return directory / _FILES[kind]


def open_imported(directory: Path) -> ImportedSource:
    """Make an imported model again from its files, which the caller has verified.

    Raises:
        Corrupt: The files were written by another program.
        UsageError: The model's class cannot be imported here, or no longer fits the weights.
    """
    try:
        imported = ImportedModel.from_json(json.loads((directory / IMPORT).read_bytes()))
        with np.load(directory / SAMPLE, allow_pickle=False) as arrays:
            sample = {key.removeprefix(_INPUT): arrays[key] for key in arrays.files if key != _TARGET}
            labels = arrays[_TARGET] if _TARGET in arrays.files else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"unreadable description of an imported version ({directory}: {error})", "Import it again.") from error
    file = model_file(directory, imported.kind)
    return ImportedSource(
        imported=imported,
        model=_load(imported, file),
        weights_sha256=_digest(sorted(path for path in file.parent.glob(f"{file.name}*") if path.is_file())),
        sample=sample,
        labels=labels,
        given_graph=file if imported.kind == "onnx" else None,
        serving=serving_of(directory),
    )


def _load(imported: ImportedModel, file: Path) -> nn.Module:
    if imported.kind == "onnx":
        return OnnxModule(file)
    if imported.kind == "torchscript":
        return load_torchscript(file)
    if imported.kind == "program":
        return ProgramModule(file)
    assert imported.model is not None
    model = build_model(imported.model)
    try:
        safetensors.torch.load_model(model, str(file), strict=True)
    except RuntimeError as error:  # torch's word for missing, unexpected or misshapen tensors
        raise UsageError(
            f"the weights do not fit the class ({imported.model.class_path}: {' '.join(str(error).split())[:300]})",
            "Give the class and the arguments that the weights were made with.",
        ) from error
    return model.eval()


def _digest(files: Sequence[Path]) -> str:
    """Digest of a model's file; of the list of digests where its weights lie in a file of their own."""
    digests = {path.name: sha256_file(path) for path in files}
    return next(iter(digests.values())) if len(digests) == 1 else hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def _repeated(array: Array, num_rows: int) -> Array:
    """The rows again and again until there are enough; as they are if there are."""
    if len(array) >= num_rows:
        return array
    return np.concatenate([array] * -(-num_rows // len(array)))[:num_rows]


def _part(rows: Rows, which: slice) -> Rows:
    return Rows(inputs=rows.take(which), target=rows.target[which])
