"""What is done to a request's body before a model and to its answer after it: `serving/transforms.json` of a bundle.

    {"inputs": [{"kind": "image", "input": "image", "size": [224, 224], "resize": "shortest", "resize_to": 256,
                 "interpolation": "bicubic", "mean": [0.498, 0.498, 0.498], "std": [0.502, 0.502, 0.502]}],
     "outputs": [{"kind": "labels", "output": "logits", "labels": "labels.txt", "top_k": 5, "activation": "softmax"}]}

    {"inputs": [{"kind": "text", "tokenizer": "tokenizer.json", "ids": "input_ids", "mask": "attention_mask", "max_length": 128}]}

The files that it names lie beside it. They travel in every archive of the version, and the worker parses them by itself
(serving/runtime/modelway_runtime/transforms.py): what is checked here is checked before anything is exported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, TypeAdapter, ValidationError

from registry.errors import UsageError
from registry.signature import Signature, TensorSpec

TRANSFORMS = "transforms.json"
_SEE = "See docs/protocols.md, Images, text and labels."
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_LABEL_CHARS = 200
_MAX_SIDE = 8192
_FLOATS = ("FP16", "FP32", "FP64", "BF16")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_NUM_CHANNELS: Mapping[str, int] = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """A JPEG or PNG body becomes one row of the model's only input: (pixel * scale - mean) / std.

    Attributes:
        input: Name of the input.
        size: Height and width that the model gets.
        resize: `shortest` scales until the shorter side is `resize_to` and cuts the middle out, as most models are
            evaluated; `exact` scales to `size` whatever the proportions.
        resize_to: For `shortest`; None for the larger side of `size`.
        interpolation: How pixels are scaled; what lies between them counts when an image shrinks (Pillow, and torchvision on
            Pillow's images).
        layout: Order of the dimensions.
        color: Order of the channels; `L` is one channel of grey.
        scale: Factor of each pixel, which is 0 to 255; None for 1/255. An integer input takes pixels as they are.
        mean: Of each channel, after `scale`; empty for zeros.
        std: Of each channel; empty for ones.
        max_pixels: Larger images are refused with 413 before they are decoded.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["image"] = "image"
    input: str
    size: tuple[int, int]
    resize: Literal["shortest", "exact"] = "shortest"
    resize_to: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        where = f"transforms.json: image input {self.input}"
        sides = (*self.size, *(() if self.resize_to is None else (self.resize_to,)))
        if not all(1 <= side <= _MAX_SIDE for side in sides):
            raise UsageError(f"{where}: size and resize_to must be 1 to {_MAX_SIDE} ({list(sides)})", _SEE)
        if self.resize_to is not None and self.resize == "exact":
            raise UsageError(f"{where}: resize_to belongs to resize shortest (resize={self.resize})", "Leave it out.")
        if self.resize_to is not None and self.resize_to < max(self.size):
            raise UsageError(f"{where}: resize_to is smaller than size ({self.resize_to} < {max(self.size)})", _SEE)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, _NUM_CHANNELS[self.color]):
                raise UsageError(f"{where}: {name} needs one number for each channel of {self.color} (has {len(values)})", _SEE)
        if 0 in self.std or self.scale == 0 or self.max_pixels < 1:
            raise UsageError(f"{where}: std and scale must not be 0, max_pixels 1 or more (max_pixels={self.max_pixels})", _SEE)

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one row as the model gets it."""
        height, width = self.size
        channels = _NUM_CHANNELS[self.color]
        return (channels, height, width) if self.layout == "NCHW" else (height, width, channels)

    def check_against(self, signature: Signature) -> None:
        """Raise UsageError unless a model of that signature takes such an image."""
        spec = _named("input", self.input, signature.inputs)
        if len(signature.inputs) != 1:
            raise UsageError(f"an image body is for a model with one input (it has {[str(s) for s in signature.inputs]})", _SEE)
        if spec.datatype != "UINT8" and spec.datatype not in _FLOATS:
            raise UsageError(f"an image input is UINT8 or a float ({spec})", _SEE)
        if spec.datatype == "UINT8" and (self.scale is not None or self.mean or self.std):
            raise UsageError(f"a UINT8 input takes pixels as they are ({spec})", "Leave out scale, mean and std.")
        _check_row(spec, self.row_shape, f"{self.layout} {self.color} of size {list(self.size)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextInput:
    """A text body, or a BYTES tensor of many texts, becomes the model's inputs: the numbers of a tokenizer.

    Attributes:
        ids: Input that gets the tokens' numbers.
        tokenizer: File of the `tokenizers` library, beside transforms.json.
        name: What a client calls the BYTES tensor that it sends instead of the inputs.
        mask: Input that gets 1 for each token and 0 for padding; None if the model has none.
        type_ids: Input that gets the number of the segment, which is 0; None if the model has none.
        max_length: Tokens of a text; the rest of it is cut off.
        pad_to_multiple_of: Texts of a request are padded to the longest, rounded up to a multiple of this: requests of equal
            lengths run as one batch. An input of a fixed length is always padded to that.
        max_chars: Longer texts are refused with 413.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["text"] = "text"
    ids: str
    tokenizer: str = "tokenizer.json"
    name: str = "text"
    mask: str | None = None
    type_ids: str | None = None
    max_length: int = 512
    pad_to_multiple_of: int = 8
    max_chars: int = 50_000

    def __post_init__(self) -> None:
        where = f"transforms.json: text input {self.name}"
        _check_file_name(f"{where}: tokenizer", self.tokenizer)
        if min(self.max_length, self.pad_to_multiple_of, self.max_chars) < 1:
            raise UsageError(
                f"{where}: max_length, pad_to_multiple_of and max_chars must be 1 or more "
                f"({self.max_length}, {self.pad_to_multiple_of}, {self.max_chars})"
            )
        if self.max_length % self.pad_to_multiple_of:
            raise UsageError(
                f"{where}: max_length must be a multiple of pad_to_multiple_of ({self.max_length}, {self.pad_to_multiple_of})",
                "Padding would make a text longer than max_length.",
            )

    @property
    def made(self) -> tuple[str, ...]:
        """Names of the inputs that it makes."""
        return tuple(name for name in (self.ids, self.mask, self.type_ids) if name is not None)

    def check_against(self, signature: Signature) -> None:
        """Raise UsageError unless a model of that signature takes such a text."""
        names = [spec.name for spec in signature.inputs]
        if sorted(self.made) != sorted(names):
            raise UsageError(
                f"a text must make every input of the model, and no other (it makes {list(self.made)}, needed are {names})", _SEE
            )
        if self.name in names:
            raise UsageError(f"the text tensor is called like an input of the model ({self.name})", "Give it another name.")
        for spec in signature.inputs:
            if spec.datatype not in ("INT32", "INT64") or len(spec.shape) != 2:
                raise UsageError(f"an input that a text makes is INT32 or INT64 [-1, length] ({spec})", _SEE)
            if spec.shape[1] not in (-1, self.max_length):
                raise UsageError(f"max_length must be the length of the input ({self.max_length}, {spec})", f"Write {spec.shape[1]}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelsOutput:
    """The names of an output's classes, and how many of them an answer has.

    Attributes:
        output: Name of the output, [-1, classes].
        labels: The names in the order of the classes, or a file beside transforms.json with one on each line.
        top_k: Labels of an answer, the highest score first, unless the request says how many.
        activation: What makes scores of the output's values.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    kind: Literal["labels"] = "labels"
    output: str
    labels: str | tuple[str, ...]
    top_k: int = 5
    activation: Literal["softmax", "sigmoid", "none"] = "none"

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            _check_file_name(f"transforms.json: labels of {self.output}", self.labels)
        else:
            _check_labels(self.output, self.labels)
        if self.top_k < 1:
            raise UsageError(f"transforms.json: top_k of {self.output} must be 1 or more ({self.top_k})")

    def check_against(self, signature: Signature) -> None:
        """Raise UsageError unless a model of that signature has such an output."""
        spec = _named("output", self.output, signature.outputs)
        if len(spec.shape) != 2 or spec.shape[1] == -1 or spec.datatype in ("BYTES", "BOOL"):
            raise UsageError(f"labels are for an output of numbers [-1, classes] ({spec})", _SEE)
        if self.activation != "none" and spec.datatype not in _FLOATS:
            raise UsageError(f"activation {self.activation} is for a float output ({spec})", "Write none.")
        if not isinstance(self.labels, str):
            _check_number(spec, self.labels)


Input = Annotated[ImageInput | TextInput, Discriminator("kind")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transforms:
    """The content of transforms.json."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    inputs: tuple[Input, ...] = ()
    outputs: tuple[LabelsOutput, ...] = ()

    def __post_init__(self) -> None:
        kinds = [item.kind for item in self.inputs]
        if len(set(kinds)) != len(kinds):
            raise UsageError(f"transforms.json: more than one input of one kind ({', '.join(kinds)})", _SEE)
        outputs = [item.output for item in self.outputs]
        if len(set(outputs)) != len(outputs):
            raise UsageError(f"transforms.json: an output has labels twice ({', '.join(outputs)})", _SEE)

    @classmethod
    def from_json(cls, data: Any) -> Transforms:
        """The inverse of `to_json`. Raises UsageError, naming the key."""
        try:
            return TypeAdapter(cls).validate_json(json.dumps(data))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            raise UsageError(f"transforms.json: {place}: {first['msg']}", _SEE) from error

    def to_json(self) -> dict[str, Any]:
        """As stored in transforms.json, with every default written out."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that it needs beside it."""
        inputs = [item.tokenizer for item in self.inputs if isinstance(item, TextInput)]
        return (*inputs, *(item.labels for item in self.outputs if isinstance(item.labels, str)))

    def check_against(self, signature: Signature) -> None:
        """Raise UsageError unless every transform fits a model of that signature."""
        for item in (*self.inputs, *self.outputs):
            item.check_against(signature)


def read_transforms(directory: Path, signature: Signature | None = None) -> Transforms:
    """Read `transforms.json` of a serving directory and look at the files that it names.

    Args:
        signature: Of the model, to hold everything against; None where it is not known yet.

    Raises:
        UsageError: It is missing, not valid, names a file that is missing or not what it must be, or does not fit the model.
    """
    file = directory / TRANSFORMS
    try:
        transforms = Transforms.from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"unreadable {TRANSFORMS} ({file}: {error})", _SEE) from error
    for name in transforms.files:
        if not (directory / name).is_file():
            raise UsageError(f"{TRANSFORMS} names a file that is not beside it ({directory / name})", "Put it there.")
    for item in transforms.inputs:
        if isinstance(item, TextInput):
            _check_tokenizer(directory / item.tokenizer)
    if signature is not None:
        transforms.check_against(signature)
    for output in transforms.outputs:
        if isinstance(output.labels, str):
            labels = read_labels(directory / output.labels)
            _check_labels(output.output, labels)
            if signature is not None:
                _check_number(_named("output", output.output, signature.outputs), labels)
    return transforms


def read_labels(file: Path) -> tuple[str, ...]:
    """The lines of a file of labels; those at its end may be empty. Raises UsageError."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"unreadable file of labels ({file}: {error})", "Write one label on each line, in UTF-8.") from error
    return tuple(line.strip() for line in text.rstrip().split("\n"))


def _check_tokenizer(file: Path) -> None:
    import tokenizers  # noqa: PLC0415  (only versions with a text input need it)

    try:
        tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise UsageError(
            f"not a tokenizer of the tokenizers library ({file}: {error})", "Save it with save_pretrained or Tokenizer.save."
        ) from error


def _check_file_name(where: str, name: str) -> None:
    if not _FILE_NAME.fullmatch(name):
        raise UsageError(f"{where} must be the name of a file beside transforms.json, without a directory ({name!r})", _SEE)


def _check_labels(output: str, labels: tuple[str, ...]) -> None:
    for number, label in enumerate(labels):
        if not label or len(label) > _MAX_LABEL_CHARS or not label.isprintable():
            raise UsageError(
                f"transforms.json: label {number} of {output} must be 1 to {_MAX_LABEL_CHARS} printable characters ({label[:50]!r})",
                "Give each class a name.",
            )


def _check_number(spec: TensorSpec, labels: tuple[str, ...]) -> None:
    if len(labels) != spec.shape[1]:
        raise UsageError(f"an output needs one label for each class ({spec} has {spec.shape[1]} classes, {len(labels)} labels)", _SEE)


def _check_row(spec: TensorSpec, row: tuple[int, ...], what: str) -> None:
    fits = len(spec.shape) == 1 + len(row) and all(want in (-1, got) for want, got in zip(spec.shape[1:], row, strict=True))
    if not fits:
        raise UsageError(f"the image does not fit the model's input ({what} is {[-1, *row]}, the input {spec})", _SEE)


def _named(side: str, name: str, specs: tuple[TensorSpec, ...]) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise UsageError(
        f"transforms.json names an {side} that the model does not have ({name})", f"It has {', '.join(s.name for s in specs)}."
    )
