"""Bundles whose models have one input of each of many datatypes and give them back: what a client must be able to say.

Two of them cover the protocol: ONNX Runtime's Python interface cannot pass text and bfloat16 to one model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from registry.bundle import CERTIFICATE, GOLDEN, PROFILE, SIGNATURE, TOLERANCE, VARIANTS, Bundle, write_manifest
from registry.certificate import Certificate, Check
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec

WIDTH = 2
_VARIANT = "onnx-fp32"
_ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
NUMBERS = tuple(datatype for datatype in _ONNX_TYPES if datatype != "BYTES")
TEXTS = ("BYTES", "FP32", "BOOL")
# Datatype -> [1, 2] values that fill its range, as numpy has them; BF16 as float32 that bfloat16 can hold.
VALUES: Mapping[str, Any] = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.1, -65504]], np.float16),
    "FP32": np.array([[0.1, -3.4e38]], np.float32),
    "FP64": np.array([[0.1, -1.7e308]], np.float64),
    "BF16": np.array([[1.0078125, -256.0]], np.float32),
    "BYTES": np.array([["a: é", ""]], object),
}


def typed_signature(datatypes: tuple[str, ...]) -> Signature:
    """Input `fp32` and output `fp32_out`, and so on, each [-1, 2]."""
    return Signature(
        inputs=tuple(TensorSpec(datatype.lower(), datatype, (-1, WIDTH)) for datatype in datatypes),
        outputs=tuple(TensorSpec(f"{datatype.lower()}_out", datatype, (-1, WIDTH)) for datatype in datatypes),
    )


def typed_model(datatypes: tuple[str, ...]) -> onnx.ModelProto:
    """The ONNX model of `typed_signature`."""
    names = [datatype.lower() for datatype in datatypes]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names],
        "typed",
        [helper.make_tensor_value_info(name, _ONNX_TYPES[name.upper()], ["batch", WIDTH]) for name in names],
        [helper.make_tensor_value_info(f"{name}_out", _ONNX_TYPES[name.upper()], ["batch", WIDTH]) for name in names],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_typed_bundle(root: Path, *, version: ModelVersion, datatypes: tuple[str, ...] = NUMBERS) -> Bundle:
    """Write a complete bundle into the new directory `root` and open it."""
    directory = root / VARIANTS / _VARIANT
    directory.mkdir(parents=True)
    onnx.save(typed_model(datatypes), directory / "model.onnx")
    check = Check(name="parity", passed=True, value=0.0, limit=0.0, detail="it gives back what it gets")
    certificate = Certificate(version=version, source_sha256="0" * 64, variant=_VARIANT, checks=(check,), facts={})
    signature = typed_signature(datatypes)
    exact = {spec.name: {"rtol": 0.0, "atol": 0.0} for spec in signature.outputs}
    documents: dict[Path, Any] = {
        directory / CERTIFICATE: certificate.to_json(),
        root / SIGNATURE: signature.to_json(),
        root / TOLERANCE: {_VARIANT: exact},
        root / PROFILE: {"inputs": {}, "outputs": {}},
    }
    for path, document in documents.items():
        path.write_text(json.dumps(document))
    golden: dict[str, Any] = {}
    for datatype in datatypes:
        values = VALUES[datatype]
        array = values.astype(np.str_) if datatype == "BYTES" else values  # no pickle, so no object arrays
        golden |= {f"in/{datatype.lower()}": array, f"out/{datatype.lower()}_out": array}
    np.savez(root / GOLDEN, **golden)
    write_manifest(root)
    return Bundle.open(root)
