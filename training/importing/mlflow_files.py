"""The files of an MLflow PyTorch model: its weights' file, its signature and its input example. Asks no server anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import UsageError
from training.data.batches import Array
from training.importing.sample import Sample
from training.quiet import errors_only

_AGAIN = "Log it again with mlflow.pytorch.log_model(model, input_example=numpy arrays), or give --sample."


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowModel:
    """What an MLflow model's directory says.

    Attributes:
        file: The model's file: a torch.export program, a TorchScript file or a pickle.
        code: Directory of Python code that came with it; None if there is none.
        sample: Its input example; None if it has none, or one that is no tensors.
        dynamic: Input -> dimensions that its signature leaves free beside the batch.
    """

    file: Path
    code: Path | None
    sample: Sample | None
    dynamic: Mapping[str, tuple[int, ...]]


def read_mlflow_model(directory: Path, *, need_sample: bool) -> MlflowModel:
    """Read `MLmodel` and the files that it names; nothing is unpickled.

    Args:
        need_sample: Whether a missing or unusable input example is an error.

    Raises:
        UsageError: Not a PyTorch model, no tensor signature, or no example that fits it.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.models import Model  # noqa: PLC0415

    try:
        described = Model.load(str(directory))
    except (MlflowException, OSError) as error:
        raise UsageError(f"the version has no MLmodel file ({' '.join(str(error).split())[:200]})", "Import its model's file.") from error
    flavor = described.flavors.get("pytorch")
    if flavor is None:
        flavors = ", ".join(sorted(described.flavors)) or "none"
        raise UsageError(f"not a PyTorch model (flavors: {flavors})", "Only flavor pytorch can be exported; import an ONNX file instead.")
    sample, dynamic = _sample(described, directory) if need_sample else (None, {})
    code = flavor.get("code")
    return MlflowModel(file=_file(directory, flavor), code=directory / str(code) if code else None, sample=sample, dynamic=dynamic)


def _file(directory: Path, flavor: Mapping[str, Any]) -> Path:
    data = directory / str(flavor.get("model_data", "data"))
    for name in ("model.pt2", "model.pth"):
        if (data / name).is_file():
            return data / name
    raise UsageError(f"the MLflow model has no file of torch's ({data.name})", "It may be of an old MLflow; log it again.")


def _sample(described: Any, directory: Path) -> tuple[Sample, dict[str, tuple[int, ...]]]:
    schema = described.get_input_schema()
    if schema is None:
        raise UsageError("the MLflow model has no signature", _AGAIN)
    if not schema.is_tensor_spec():
        raise UsageError(f"the MLflow model's signature is of columns, not of tensors ({_short(schema)})", _AGAIN)
    with errors_only("mlflow"):
        example = described.load_input_example(str(directory))
    if example is None:
        raise UsageError("the MLflow model has no input example", _AGAIN)
    specs = list(schema.inputs)
    arrays = _arrays(example, [spec.name for spec in specs])
    inputs: dict[str, Array] = {}
    dynamic: dict[str, tuple[int, ...]] = {}
    for index, (spec, array) in enumerate(zip(specs, arrays, strict=True)):
        name = spec.name or f"input_{index}"
        inputs[name] = np.asarray(array).astype(spec.type)
        if inputs[name].ndim != len(spec.shape):
            raise UsageError(f"the input example does not fit the signature ({name}: {list(inputs[name].shape)}, {spec.shape})", _AGAIN)
        free = tuple(i for i, size in enumerate(spec.shape) if i > 0 and size == -1)
        dynamic |= {name: free} if free else {}
    return Sample(inputs=inputs, positional=any(spec.name is None for spec in specs)), dynamic


def _arrays(example: Any, names: list[str | None]) -> list[Any]:
    if isinstance(example, Mapping):
        if set(example) != set(names):
            raise UsageError(f"the input example has other names than the signature ({', '.join(map(str, example))})", _AGAIN)
        return [example[name] for name in names]
    values = list(example) if isinstance(example, (tuple, list)) and len(names) > 1 else [example]
    if len(values) != len(names) or not all(hasattr(value, "dtype") or isinstance(value, list) for value in values):
        raise UsageError(f"the input example is not of tensors ({type(example).__name__})", _AGAIN)
    return values


def _short(schema: Any) -> str:
    return " ".join(str(schema).split())[:120]
