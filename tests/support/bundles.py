"""Small real bundles for tests: a linear classifier with known weights, so that expected answers are one numpy line.

    bundle = make_bundle(tmp_path / "bundle", version=ModelVersion("digits", 1), weights_seed=1)
    expected_logits(np.float32([[1, 2, 3, 4]]), weights_seed=1)

The ONNX graph is written with `onnx.helper`: no torch, a few milliseconds. Different seeds give answers that differ
by far more than any tolerance, so a test can tell from an answer which version gave it. Faults are planted in the
model, never in the manifest: the files are exactly what the digests say.
"""

from __future__ import annotations

import json
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from registry.bundle import CERTIFICATE, GOLDEN, PROFILE, SIGNATURE, TOLERANCE, VARIANTS, Bundle, write_manifest
from registry.certificate import Certificate, Check
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec

NUM_FEATURES = 4
NUM_CLASSES = 3
SIGNATURE_OF_TESTS = Signature(
    inputs=(TensorSpec("input", "FP32", (-1, NUM_FEATURES)),), outputs=(TensorSpec("logits", "FP32", (-1, NUM_CLASSES)),)
)
TOLERANCE_OF_TESTS = {"logits": {"rtol": 1e-4, "atol": 1e-4}}
OPSET = 17

Floats = npt.NDArray[np.float32]


class Fault(StrEnum):
    """What can be wrong with a planted model."""

    CRASH_AT_LOAD = "crash-at-load"  # the model file is no model
    WRONG_NUMBERS = "wrong-numbers"  # loads and answers, but not what the golden set says
    WRONG_SHAPE = "wrong-shape"  # one class more than the signature says
    NAN = "nan"  # NaN for every input
    NAN_ABOVE_1000 = "nan-above-1000"  # NaN for rows with a value above 1000; passes the golden set
    SLOW = "slow"  # right answers, a few hundred milliseconds each


def weights(weights_seed: int) -> tuple[Floats, Floats]:
    """Weight [4, 3] and bias [3] of a seed; the biases of two seeds lie 10 apart."""
    rng = np.random.default_rng(weights_seed)
    weight = rng.uniform(-1, 1, (NUM_FEATURES, NUM_CLASSES)).astype(np.float32)
    bias = (rng.uniform(-1, 1, NUM_CLASSES) + 10 * weights_seed).astype(np.float32)
    return weight, bias


def expected_logits(inputs: npt.ArrayLike, *, weights_seed: int = 0) -> Floats:
    """What a model of that seed answers, [N, 4] -> [N, 3]."""
    weight, bias = weights(weights_seed)
    return np.asarray(np.asarray(inputs, dtype=np.float32) @ weight + bias, dtype=np.float32)


def golden_inputs(num_golden: int = 8) -> Floats:
    """The golden inputs, [num_golden, 4]; the same for every seed."""
    return np.random.default_rng(1234).uniform(-2, 2, (num_golden, NUM_FEATURES)).astype(np.float32)


def make_bundle(
    root: Path,
    *,
    version: ModelVersion,
    weights_seed: int = 0,
    variants: tuple[str, ...] = ("onnx-fp32",),
    fault: Fault | str | None = None,
    certificate_passes: bool = True,
    num_golden: int = 8,
    slow_iterations: int = 12000,
    signature: Signature = SIGNATURE_OF_TESTS,
) -> Bundle:
    """Write a complete bundle into the new directory `root` and open it.

    Args:
        weights_seed: Decides the weights; see `expected_logits`.
        variants: `onnx-*` variants are ONNX files, `torchscript-*` ones TorchScript (imports torch).
        fault: What to plant into every variant.
        signature: What `signature.json` says; the model itself always is [N, 4] -> [N, 3].
    """
    fault = Fault(fault) if fault is not None else None
    root.mkdir(parents=True)
    for variant in variants:
        directory = root / VARIANTS / variant
        directory.mkdir(parents=True)
        _write_model(directory, variant, weights_seed, fault, slow_iterations)
        certificate = _certificate(version, variant, passes=certificate_passes)
        (directory / CERTIFICATE).write_text(json.dumps(certificate.to_json()))
    inputs = golden_inputs(num_golden)
    (root / SIGNATURE).write_text(json.dumps(signature.to_json()))
    (root / TOLERANCE).write_text(json.dumps(dict.fromkeys(variants, TOLERANCE_OF_TESTS)))
    (root / PROFILE).write_text(json.dumps({"inputs": {}, "outputs": {}}))
    golden: dict[str, Any] = {"in/input": inputs, "out/logits": expected_logits(inputs, weights_seed=weights_seed)}
    np.savez(root / GOLDEN, **golden)
    write_manifest(root)
    return Bundle.open(root)


def _certificate(version: ModelVersion, variant: str, *, passes: bool) -> Certificate:
    value = 1e-6 if passes else 0.5
    check = Check(name="parity/logits/max_abs_error", passed=passes, value=value, limit=1e-4, detail="8 golden inputs")
    return Certificate(version=version, source_sha256="0" * 64, variant=variant, checks=(check,), facts={})


def _write_model(directory: Path, variant: str, weights_seed: int, fault: Fault | None, slow_iterations: int) -> None:
    file = directory / ("model.pt" if variant.startswith("torchscript") else "model.onnx")
    if fault is Fault.CRASH_AT_LOAD:
        file.write_bytes(b"this is no model")
        return
    weight, bias = weights(weights_seed)
    if fault is Fault.WRONG_NUMBERS:
        bias = bias + np.float32(1)
    if fault is Fault.WRONG_SHAPE:
        weight, bias = np.hstack([weight, weight[:, :1]]), np.append(bias, bias[:1])
    if fault is Fault.NAN:
        bias = np.full_like(bias, np.nan)
    if variant.startswith("torchscript"):
        assert fault not in (Fault.SLOW, Fault.NAN_ABOVE_1000), f"{fault} is for ONNX variants"
        _write_torchscript(file, weight, bias)
    else:
        onnx.save(_onnx_model(weight, bias, fault, slow_iterations), file)


def _onnx_model(weight: Floats, bias: Floats, fault: Fault | None, slow_iterations: int) -> onnx.ModelProto:
    output = "logits" if fault not in (Fault.SLOW, Fault.NAN_ABOVE_1000) else "linear"
    nodes = [helper.make_node("Gemm", ["input", "weight", "bias"], [output])]
    constants = {"weight": weight, "bias": bias}
    if fault is Fault.NAN_ABOVE_1000:
        constants |= {"limit": np.float32(1000), "nan": np.float32(np.nan)}
        nodes += [
            helper.make_node("ReduceMax", ["input"], ["peak"], axes=[1], keepdims=1),
            helper.make_node("Greater", ["peak", "limit"], ["above"]),
            helper.make_node("Where", ["above", "nan", "linear"], ["logits"]),
        ]
    if fault is Fault.SLOW:
        constants |= {
            "times": np.asarray(slow_iterations, np.int64),
            "go_on": np.asarray(True),
            "start": np.full((128, 128), 1 / 128, np.float32),
            "factor": np.full((128, 128), 1 / 128, np.float32),
            "zero": np.float32(0),
        }
        nodes += [
            helper.make_node("Loop", ["times", "go_on", "start"], ["worked"], body=_loop_body()),
            helper.make_node("ReduceMean", ["worked"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["linear", "nothing"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", NUM_FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _loop_body() -> onnx.GraphProto:
    square = [128, 128]
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "factor"], ["next"]),
            helper.make_node("Identity", ["condition"], ["condition_out"]),
        ],
        "work",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, square),
        ],
    )


def _write_torchscript(file: Path, weight: Floats, bias: Floats) -> None:
    import torch

    linear = torch.nn.Linear(weight.shape[0], weight.shape[1])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.T.copy()))
        linear.bias.copy_(torch.from_numpy(bias.copy()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch says that TorchScript is deprecated; we ship it
        torch.jit.save(torch.jit.trace(linear.eval(), torch.zeros(2, NUM_FEATURES)), str(file))
