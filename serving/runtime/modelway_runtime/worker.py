"""The story of a worker: check the files, load the model, prove the golden set, then answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from . import backends, files, transforms
from .core import Core
from .errors import LoadError
from .golden import GoldenSet, compare
from .jsons import dumps
from .protocols import PROTOCOL_HEADER, ModelInfo
from .tensors import Array, Spec


def load(root: Path, engine_version: str, gpu_id: int | None = None, num_threads: int | None = None) -> Core:
    """Load an unpacked archive and return what answers its requests.

    Args:
        num_threads: Threads of one run; None takes what the archive says.

    Raises:
        LoadError: One line that says why the archive must not serve: a file that is not what the manifest says, a
            provider that is not there, golden outputs outside of their tolerance, or what the engine said.
    """
    manifest = files.check(root, engine_version)
    options: dict[str, Any] = dict(manifest["options"])
    if num_threads is not None:
        options["intra_op_threads"] = num_threads
    signature = json.loads((root / files.SIGNATURE).read_text())
    inputs, outputs = (tuple(Spec.from_json(spec) for spec in signature[side]) for side in ("inputs", "outputs"))
    declared = transforms.load(root, inputs, outputs)
    model = ModelInfo(
        name=str(manifest["model"]),
        version=str(manifest["version"]),
        inputs=inputs,
        outputs=outputs,
        max_rows=int(options["max_rows"]),
        transforms=declared.transforms,
        texts=declared.texts,
        labels=declared.labels,
    )
    transforms.prove(model, declared)
    try:
        backend = backends.load(root, str(manifest["backend"]), model.inputs, model.outputs, options, gpu_id=gpu_id)
    except LoadError:
        raise
    except Exception as error:  # an engine may raise anything for a broken file
        raise LoadError(f"the model could not be loaded ({_one_line(error)})") from error
    core = Core(model, backend, check_finite=bool(options["check_finite"]))
    _prove(root, model, backend, core)
    return core


def _prove(root: Path, model: ModelInfo, backend: backends.Backend, core: Core) -> None:
    """Run the golden set in batches, then one row of it as a request through the whole path."""
    golden = GoldenSet.load(root / files.GOLDEN)
    tolerance = json.loads((root / files.TOLERANCE).read_text())
    parts: list[dict[str, Any]] = []
    for start in range(0, golden.num_rows, model.max_rows):
        rows = slice(start, start + model.max_rows)
        inputs = [np.ascontiguousarray(golden.inputs[spec.name][rows], dtype=spec.dtype) for spec in model.inputs]
        try:
            parts.append(backend.run(inputs))
        except Exception as error:  # a model may raise anything
            raise LoadError(f"the model failed on the golden set ({_one_line(error)})") from error
    got = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    comparison = compare(golden.outputs, got, tolerance)
    if comparison.problems:
        raise LoadError(f"golden set: {'; '.join(comparison.problems)}")
    request: dict[str, Any] = {"inputs": [_v2_input(spec, golden.inputs[spec.name][:1]) for spec in model.inputs]}
    _ask(core, request)
    if model.labels:
        _ask(core, {**request, "outputs": [{"name": name, "parameters": {"classification": 1}} for name in model.labels]})


def _ask(core: Core, request: Any) -> None:
    answer = core.handle([({PROTOCOL_HEADER: "v2-infer"}, dumps(request))])[0]
    if answer.status != 200:
        raise LoadError(
            f"golden set: a request with its first row is answered {answer.status} ({answer.body[:200].decode(errors='replace')})"
        )


def _v2_input(spec: Spec, array: Array) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
