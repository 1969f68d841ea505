"""transforms.json: what is accepted, what is refused and in which words, and how it is held against a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from registry.bundle import Bundle, write_manifest
from registry.errors import Corrupt, UsageError
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec
from registry.transforms import TRANSFORMS, ImageInput, LabelsOutput, TextInput, Transforms, read_transforms
from support.transform_bundles import IMAGE_SIGNATURE, IMAGE_TRANSFORMS, TEXT_SIGNATURE, TEXT_TRANSFORMS, make_image_bundle, tokenizer

IMAGE = {"kind": "image", "input": "image", "size": [8, 8]}
TEXT = {"kind": "text", "ids": "ids", "mask": "mask", "max_length": 16}
LABELS = {"output": "logits", "labels": ["a", "b", "c"]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / TRANSFORMS).write_text(json.dumps(IMAGE_TRANSFORMS))
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


@pytest.mark.parametrize("document", [IMAGE_TRANSFORMS, TEXT_TRANSFORMS, {}, {"inputs": []}], ids=["image", "text", "nothing", "no inputs"])
def test_what_is_written_is_read_again(document: Any) -> None:
    transforms = Transforms.from_json(document)
    assert Transforms.from_json(transforms.to_json()) == transforms
    assert Transforms.from_json(json.loads(json.dumps(transforms.to_json()))) == transforms


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the document: Input should be an object"),
        ({"input": []}, "input: Unexpected"),
        ({"inputs": [{}]}, "inputs.0: Unable to extract tag"),
        ({"inputs": [{"kind": "sound"}]}, "'image', 'text'"),
        ({"inputs": [IMAGE, IMAGE]}, "more than one input of one kind"),
        ({"inputs": [{**IMAGE, "sizes": 1}]}, "inputs.0.image.sizes: Unexpected"),
        ({"inputs": [{**IMAGE, "size": [8]}]}, "inputs.0.image.size"),
        ({"inputs": [{**IMAGE, "size": [8, "8"]}]}, "inputs.0.image.size.1: Input should be a valid integer"),
        ({"inputs": [{**IMAGE, "size": [0, 8]}]}, "size and resize_to must be 1 to 8192 ([0, 8])"),
        ({"inputs": [{**IMAGE, "size": [8, 9000]}]}, "size and resize_to must be 1 to 8192 ([8, 9000])"),
        ({"inputs": [{**IMAGE, "resize": "longest"}]}, "'shortest' or 'exact'"),
        ({"inputs": [{**IMAGE, "resize": "exact", "resize_to": 9}]}, "resize_to belongs to resize shortest"),
        ({"inputs": [{**IMAGE, "resize_to": 7}]}, "resize_to is smaller than size (7 < 8)"),
        ({"inputs": [{**IMAGE, "interpolation": "nearest"}]}, "'bilinear' or 'bicubic'"),
        ({"inputs": [{**IMAGE, "mean": [0.5]}]}, "mean needs one number for each channel of RGB (has 1)"),
        ({"inputs": [{**IMAGE, "color": "L", "std": [1, 1, 1]}]}, "std needs one number for each channel of L (has 3)"),
        ({"inputs": [{**IMAGE, "std": [1, 0, 1]}]}, "std and scale must not be 0"),
        ({"inputs": [{**IMAGE, "scale": 0}]}, "std and scale must not be 0"),
        ({"inputs": [{**IMAGE, "mean": [float("nan"), 0, 0]}]}, "inputs.0.image.mean.0: Input should be a finite number"),
        ({"inputs": [{**IMAGE, "max_pixels": 0}]}, "max_pixels 1 or more"),
        ({"inputs": [{**TEXT, "tokenizer": "../tokenizer.json"}]}, "without a directory ('../tokenizer.json')"),
        ({"inputs": [{**TEXT, "tokenizer": ".tokenizer"}]}, "without a directory"),
        ({"inputs": [{**TEXT, "max_length": 0}]}, "must be 1 or more (0, 8, 50000)"),
        ({"inputs": [{**TEXT, "max_length": 20}]}, "a multiple of pad_to_multiple_of (20, 8)"),
        ({"inputs": [{"kind": "text"}]}, "inputs.0.text.ids: Field required"),
        ({"outputs": [LABELS, LABELS]}, "an output has labels twice (logits, logits)"),
        ({"outputs": [{**LABELS, "labels": "a/b"}]}, "without a directory ('a/b')"),
        ({"outputs": [{**LABELS, "labels": ["a", ""]}]}, "label 1 of logits must be 1 to 200 printable characters ('')"),
        ({"outputs": [{**LABELS, "labels": ["a\nb"]}]}, "label 0 of logits must be 1 to 200 printable characters"),
        ({"outputs": [{**LABELS, "top_k": 0}]}, "top_k of logits must be 1 or more (0)"),
        ({"outputs": [{**LABELS, "top_k": True}]}, "outputs.0.top_k: Input should be a valid integer"),
        ({"outputs": [{**LABELS, "activation": "relu"}]}, "'softmax', 'sigmoid' or 'none'"),
    ],
)
def test_what_is_not_valid_is_refused_by_name(document: Any, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Transforms.from_json(document)
    assert message in str(refusal.value)


def signature(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = IMAGE_SIGNATURE.outputs) -> Signature:
    return Signature(inputs=inputs, outputs=outputs)


PIXELS = TensorSpec("image", "FP32", (-1, 3, 8, 8))


@pytest.mark.parametrize(
    ("declared", "model"),
    [
        (ImageInput(input="image", size=(8, 8)), signature(PIXELS)),
        (ImageInput(input="image", size=(6, 9)), signature(TensorSpec("image", "FP16", (-1, 3, -1, -1)))),
        (ImageInput(input="image", size=(6, 9), layout="NHWC"), signature(TensorSpec("image", "UINT8", (-1, 6, 9, 3)))),
        (ImageInput(input="image", size=(6, 9), color="L"), signature(TensorSpec("image", "BF16", (-1, 1, 6, 9)))),
        (TextInput(ids="ids", mask="mask"), TEXT_SIGNATURE),
        (TextInput(ids="ids", max_length=16), signature(TensorSpec("ids", "INT32", (-1, 16)))),
        (LabelsOutput(output="logits", labels=("a", "b", "c"), activation="softmax"), IMAGE_SIGNATURE),
    ],
)
def test_it_fits_a_model(declared: ImageInput | TextInput | LabelsOutput, model: Signature) -> None:
    declared.check_against(model)


@pytest.mark.parametrize(
    ("declared", "model", "message"),
    [
        (ImageInput(input="pixels", size=(8, 8)), signature(PIXELS), "an input that the model does not have (pixels). It has image"),
        (
            ImageInput(input="image", size=(8, 9)),
            signature(PIXELS),
            "NCHW RGB of size [8, 9] is [-1, 3, 8, 9], the input image: FP32[-1, 3, 8, 8]",
        ),
        (ImageInput(input="image", size=(8, 8), layout="NHWC"), signature(PIXELS), "is [-1, 8, 8, 3]"),
        (ImageInput(input="image", size=(8, 8), color="L"), signature(PIXELS), "is [-1, 1, 8, 8]"),
        (ImageInput(input="image", size=(8, 8)), signature(PIXELS, TensorSpec("z", "FP32", (-1, 1))), "a model with one input"),
        (ImageInput(input="image", size=(8, 8)), signature(TensorSpec("image", "INT64", (-1, 3, 8, 8))), "UINT8 or a float"),
        (
            ImageInput(input="image", size=(8, 8), scale=1.0),
            signature(TensorSpec("image", "UINT8", (-1, 3, 8, 8))),
            "takes pixels as they are",
        ),
        (TextInput(ids="ids"), TEXT_SIGNATURE, "it makes ['ids'], needed are ['ids', 'mask']"),
        (TextInput(ids="ids", mask="mask", type_ids="types"), TEXT_SIGNATURE, "needed are ['ids', 'mask']"),
        (TextInput(ids="ids", mask="mask", name="ids"), TEXT_SIGNATURE, "called like an input of the model (ids)"),
        (TextInput(ids="ids"), signature(TensorSpec("ids", "FP32", (-1, -1))), "INT32 or INT64 [-1, length]"),
        (TextInput(ids="ids"), signature(TensorSpec("ids", "INT64", (-1,))), "INT32 or INT64 [-1, length]"),
        (
            TextInput(ids="ids", max_length=64),
            signature(TensorSpec("ids", "INT64", (-1, 16))),
            "must be the length of the input (64, ids: INT64[-1, 16]). Write 16",
        ),
        (LabelsOutput(output="logits", labels=("a", "b")), IMAGE_SIGNATURE, "has 3 classes, 2 labels"),
        (LabelsOutput(output="scores", labels=("a",)), IMAGE_SIGNATURE, "an output that the model does not have (scores)"),
        (LabelsOutput(output="x", labels="l"), signature(PIXELS, outputs=(TensorSpec("x", "FP32", (-1,)),)), "[-1, classes]"),
        (LabelsOutput(output="x", labels="l"), signature(PIXELS, outputs=(TensorSpec("x", "FP32", (-1, -1)),)), "[-1, classes]"),
        (
            LabelsOutput(output="x", labels="l", activation="softmax"),
            signature(PIXELS, outputs=(TensorSpec("x", "INT32", (-1, 2)),)),
            "is for a float output",
        ),
    ],
)
def test_what_does_not_fit_a_model_is_refused(declared: ImageInput | TextInput | LabelsOutput, model: Signature, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        declared.check_against(model)
    assert message in str(refusal.value)


def test_a_directory_is_read_with_the_files_that_it_names(directory: Path) -> None:
    transforms = read_transforms(directory, IMAGE_SIGNATURE)
    assert transforms == Transforms.from_json(IMAGE_TRANSFORMS)
    assert transforms.files == ("labels.txt",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({TRANSFORMS: None}, "unreadable transforms.json"),
        ({TRANSFORMS: "{"}, "unreadable transforms.json"),
        ({"labels.txt": None}, "names a file that is not beside it"),
        ({"labels.txt": "red\ngreen\n"}, "has 3 classes, 2 labels"),
        ({"labels.txt": "red\n\nblue\n"}, "label 1 of logits must be"),
        ({"labels.txt": b"\xff\xfe"}, "unreadable file of labels"),
        ({TRANSFORMS: json.dumps(TEXT_TRANSFORMS), "tokenizer.json": "{}"}, "not a tokenizer of the tokenizers library"),
        (
            {TRANSFORMS: json.dumps(TEXT_TRANSFORMS), "tokenizer.json": tokenizer().to_str()},
            "it makes ['ids', 'mask'], needed are ['image']",
        ),
    ],
)
def test_a_directory_that_is_not_whole_is_refused(directory: Path, change: dict[str, Any], message: str) -> None:
    for name, content in change.items():
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as refusal:
        read_transforms(directory, IMAGE_SIGNATURE)
    assert message in str(refusal.value)


def test_a_bundle_knows_its_transforms(tmp_path: Path) -> None:
    bundle = make_image_bundle(tmp_path / "b", version=ModelVersion("colors", 1))
    assert bundle.transforms() == Transforms.from_json(IMAGE_TRANSFORMS)
    assert bundle.serving_files() == ("serving/labels.txt", "serving/transforms.json")
    (bundle.root / "serving" / "labels.txt").write_text("red\n")
    write_manifest(bundle.root)
    with pytest.raises(Corrupt, match="unreadable transforms of a bundle"):
        Bundle.open(bundle.root).transforms()
