"""The models as bundles that can be attached to versions, with certificates that were measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.mlp import INPUT, LAYERS, OUTPUT, Floats, expected_logits, rows, weights
from registry.bundle import CERTIFICATE, GOLDEN, PROFILE, SIGNATURE, TOLERANCE, VARIANTS, Bundle, write_manifest
from registry.certificate import Certificate, Check
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec

VARIANT = "onnx-fp32"
_NUM_GOLDEN = 8
_LIMIT = 1e-4


def write_onnx(path: Path, version: int) -> None:
    """Write the version's MLP as an ONNX file, batch dimension free."""
    nodes, previous = [], INPUT
    constants: dict[str, Floats] = {}
    layers = weights(version)
    for index, (weight, bias) in enumerate(layers):
        last = index == len(layers) - 1
        linear = OUTPUT if last else f"linear{index}"
        nodes.append(helper.make_node("Gemm", [previous, f"weight{index}", f"bias{index}"], [linear]))
        constants |= {f"weight{index}": weight, f"bias{index}": bias}
        if not last:
            previous = f"hidden{index}"
            nodes.append(helper.make_node("Relu", [linear], [previous]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", LAYERS[0]])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", LAYERS[-1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_mean_onnx(path: Path, width: int) -> None:
    """Write the mean of `width` numbers, [N, width] -> [N, 1], as an ONNX file."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", [INPUT], [OUTPUT], axes=[-1], keepdims=1)],
        "mean",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """The ONNX file on the CPU with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def make_bundle(root: Path, version: ModelVersion) -> Bundle:
    """Write the complete bundle of the MLP's version into the new directory `root` and open it."""
    model = root.with_name(f"{root.name}.onnx")
    write_onnx(model, version.version)
    inputs = rows(_NUM_GOLDEN)
    return bundle_of(root, version, model, inputs, expected_logits(inputs, version.version))


def bundle_of(root: Path, version: ModelVersion, model: Path, inputs: Floats, expected: Floats) -> Bundle:
    """Write a bundle of any ONNX file `input` -> `logits` into the new directory `root`; the inputs become its golden set."""
    directory = root / VARIANTS / VARIANT
    directory.mkdir(parents=True)
    shutil.copyfile(model, directory / "model.onnx")
    certificate = _certify(directory / "model.onnx", version, inputs, expected)
    signature = Signature(
        inputs=(TensorSpec(INPUT, "FP32", (-1, *inputs.shape[1:])),),
        outputs=(TensorSpec(OUTPUT, "FP32", (-1, *expected.shape[1:])),),
    )
    documents = {
        directory / CERTIFICATE: certificate.to_json(),
        root / SIGNATURE: signature.to_json(),
        root / TOLERANCE: {VARIANT: {OUTPUT: {"rtol": _LIMIT, "atol": _LIMIT}}},
        root / PROFILE: {"inputs": {}, "outputs": {}},
    }
    for path, document in documents.items():
        path.write_text(json.dumps(document))
    golden: dict[str, Any] = {f"in/{INPUT}": inputs, f"out/{OUTPUT}": expected}
    np.savez(root / GOLDEN, **golden)
    write_manifest(root)
    return Bundle.open(root)


def _certify(model: Path, version: ModelVersion, inputs: Floats, expected: Floats) -> Certificate:
    (got,) = open_session(model).run(None, {INPUT: inputs})
    error = float(np.abs(np.asarray(got) - expected).max())
    detail = f"{len(inputs)} golden inputs, ONNX Runtime against what is expected"
    check = Check(name=f"parity/{OUTPUT}/max_abs_error", passed=error <= _LIMIT, value=error, limit=_LIMIT, detail=detail)
    facts = {"onnxruntime": onnxruntime.__version__}
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return Certificate(version=version, source_sha256=digest, variant=VARIANT, checks=(check,), facts=facts)
