"""Bundles with transforms whose answers can be told by looking: which colour a picture has, which words a text.

make_image_bundle(root, version=...)   image [N, 3, 8, 8] -> logits [N, 3], the mean of each channel: red, green, blue
make_text_bundle(root, version=...)    ids, mask [N, tokens] -> logits [N, 2], how often the text says good and bad
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from registry.bundle import CERTIFICATE, GOLDEN, PROFILE, SERVING, SIGNATURE, TOLERANCE, VARIANTS, Bundle, write_manifest
from registry.certificate import Certificate, Check
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec
from registry.transforms import TRANSFORMS

VARIANT = "onnx-fp32"
SIDE = 8
COLORS = ("red", "green", "blue")
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}
IMAGE_SIGNATURE = Signature(
    inputs=(TensorSpec("image", "FP32", (-1, 3, SIDE, SIDE)),), outputs=(TensorSpec("logits", "FP32", (-1, len(COLORS))),)
)
TEXT_SIGNATURE = Signature(
    inputs=(TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))), outputs=(TensorSpec("logits", "FP32", (-1, 2)),)
)
IMAGE_TRANSFORMS: Mapping[str, Any] = {
    "inputs": [{"kind": "image", "input": "image", "size": [SIDE, SIDE]}],
    "outputs": [{"kind": "labels", "output": "logits", "labels": "labels.txt", "top_k": 2}],
}
TEXT_TRANSFORMS: Mapping[str, Any] = {
    "inputs": [{"kind": "text", "ids": "ids", "mask": "mask", "max_length": 16, "pad_to_multiple_of": 4, "max_chars": 1000}],
    "outputs": [{"kind": "labels", "output": "logits", "labels": ["good", "bad"], "activation": "softmax"}],
}


def picture(
    color: tuple[int, ...] | str, *, size: tuple[int, int] = (40, 30), mode: str = "RGB", format: str = "PNG", **save: Any
) -> bytes:
    """A body of one colour."""
    body = io.BytesIO()
    Image.new(mode, size, color).save(body, format, **save)
    return body.getvalue()


def tokenizer() -> Tokenizer:
    """Words of `VOCABULARY`, split at spaces."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def make_image_bundle(root: Path, *, version: ModelVersion, transforms: Mapping[str, Any] = IMAGE_TRANSFORMS) -> Bundle:
    """Write a complete bundle into the new directory `root` and open it."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["logits"], axes=[2, 3], keepdims=0)],
        "colors",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    images = np.random.default_rng(1).uniform(0, 1, (4, 3, SIDE, SIDE)).astype(np.float32)
    golden = {"in/image": images, "out/logits": images.mean(axis=(2, 3))}
    files = {TRANSFORMS: json.dumps(transforms), "labels.txt": "".join(f"{color}\n" for color in COLORS)}
    return _write(root=root, version=version, graph=graph, signature=IMAGE_SIGNATURE, golden=golden, serving=files)


def make_text_bundle(root: Path, *, version: ModelVersion, transforms: Mapping[str, Any] = TEXT_TRANSFORMS) -> Bundle:
    """Write a complete bundle into the new directory `root` and open it."""
    words = np.array([[[2, 3]]], np.int64)  # the numbers of good and bad
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["ids", "last"], ["column"]),
            helper.make_node("Equal", ["column", "words"], ["same"]),
            helper.make_node("Cast", ["same"], ["ones"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
            helper.make_node("Cast", ["mask_column"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["ones", "weights"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "tokens"], ["logits"], keepdims=0),
        ],
        "words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens_of_a_text"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(words, "words"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    ids = np.array([[2, 2, 4, 0], [3, 4, 4, 2]], np.int64)
    golden = {"in/ids": ids, "in/mask": (ids > 0).astype(np.int64), "out/logits": np.array([[2, 0], [1, 1]], np.float32)}
    files = {TRANSFORMS: json.dumps(transforms), "tokenizer.json": tokenizer().to_str()}
    return _write(root=root, version=version, graph=graph, signature=TEXT_SIGNATURE, golden=golden, serving=files)


def _write(
    *,
    root: Path,
    version: ModelVersion,
    graph: onnx.GraphProto,
    signature: Signature,
    golden: Mapping[str, npt.NDArray[Any]],
    serving: Mapping[str, str],
) -> Bundle:
    directory = root / VARIANTS / VARIANT
    directory.mkdir(parents=True)
    (root / SERVING).mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), directory / "model.onnx")
    check = Check(name="parity", passed=True, value=0.0, limit=1e-5, detail="its answers are one line of numpy")
    certificate = Certificate(version=version, source_sha256="0" * 64, variant=VARIANT, checks=(check,), facts={})
    documents: dict[Path, Any] = {
        directory / CERTIFICATE: certificate.to_json(),
        root / SIGNATURE: signature.to_json(),
        root / TOLERANCE: {VARIANT: {"logits": {"rtol": 1e-5, "atol": 1e-5}}},
        root / PROFILE: {"inputs": {}, "outputs": {}},
    }
    for path, document in documents.items():
        path.write_text(json.dumps(document))
    for name, text in serving.items():
        (root / SERVING / name).write_text(text)
    np.savez(root / GOLDEN, **golden)  # type: ignore[arg-type]
    write_manifest(root)
    return Bundle.open(root)
