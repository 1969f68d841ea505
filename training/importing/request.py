"""What a user says about a model that was trained elsewhere, and how it is read from the command line's words. Values only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from registry.errors import UsageError
from registry.names import check_model_name
from training.recipe import ComponentConfig, ExportConfig, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """What is done to an input before the model: `(x * scale - mean) / std`, per channel.

    Attributes:
        mean: One value per channel, or one for all.
        std: The same.
        scale: Factor that comes first, for example 1/255 for the bytes of a picture.
        axis: Dimension of the channels, the batch being 0.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    axis: int = 1

    def __post_init__(self) -> None:
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise UsageError(
                f"mean and std have different numbers of channels ({len(self.mean)}, {len(self.std)})", "Give as many of each."
            )
        if any(value <= 0 for value in self.std) or self.scale == 0:
            raise UsageError(
                f"a normalization divides by std and multiplies by scale (std {self.std}, scale {self.scale})", "Give values above 0."
            )
        if self.axis < 1:
            raise UsageError(f"channels cannot lie along the batch (axis={self.axis})", "Give a dimension from 1 on.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """How the endpoint's tensors become the model's own.

    Attributes:
        fixed: Input of the model -> its constant value; the endpoint does not have that input.
        batch_axes: Input or output -> the dimension that is the batch in the model; at the endpoint it is always the first.
        normalize: Input -> what is done to it before the model.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    batch_axes: Mapping[str, int] = field(default_factory=dict)
    normalize: Mapping[str, Normalization] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fixed or self.batch_axes or self.normalize)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportRequest:
    """One import.

    Attributes:
        file: The model's file.
        name: The registered model that gets a new version.
        sample: `.npz` file with rows for every input, and labels if there are any.
        labels_from: Name of the sample's array that holds labels; one that is not there means that there are none.
        task: What the first output means; None for classification if the labels are integers, else regression.
        export: Outputs' names, free dimensions, variants and budget, as in a recipe; its `serving` is a directory to copy.
        adaptation: What is changed between the endpoint and the model.
        model: The class that weights belong to.
        allow_pickle: Whether a file that only unpickling can read is read, in a process of its own.
    """

    file: Path
    name: str
    sample: Path
    labels_from: str = "target"
    task: Task | None = None
    export: ExportConfig = field(default_factory=ExportConfig)
    adaptation: Adaptation = field(default_factory=Adaptation)
    model: ComponentConfig | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        check_model_name(self.name)
        if self.task is not None and self.task not in get_args(Task):
            raise UsageError(f"unknown task ({self.task!r})", f"Tasks are {' and '.join(get_args(Task))}.")
        for what, path in (("model", self.file), ("sample", self.sample)):
            if not path.is_file():
                raise UsageError(f"no such file ({path})", f"Give the path of the {what}'s file.")


def parse_dynamic(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`input_ids=1` or `image=2,3` -> free dimensions beside the batch. Raises UsageError."""
    return {name: tuple(_whole(text, part) for part in value.split(",")) for text in texts for name, value in [_pair(text, "input_ids=1")]}


def parse_batch_axes(texts: Sequence[str]) -> dict[str, int]:
    """`state=1` -> the dimension that is the batch. Raises UsageError."""
    return {name: _whole(text, value) for text in texts for name, value in [_pair(text, "state=1")]}


def parse_fixed(texts: Sequence[str]) -> dict[str, Any]:
    """`sr=16000` -> the constant; values are YAML: a number, a boolean or a list of them. Raises UsageError."""
    fixed = {}
    for text in texts:
        name, value = _pair(text, "sr=16000")
        fixed[name] = parse_yaml(value, text)
        if not _is_number_or_list(fixed[name]):
            raise UsageError(f"a fixed input is a number, a boolean or a list of them ({text!r})", "Write for example sr=16000.")
    return fixed


def parse_normalize(texts: Sequence[str]) -> dict[str, Normalization]:
    """`image:mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255` -> the normalization. Raises UsageError."""
    example = "Write for example image:mean=127,std=128 or image:mean=0.5,0.5,0.5,std=0.2,0.2,0.2,scale=1/255."
    parsed = {}
    for text in texts:
        name, colon, rest = text.partition(":")
        values: dict[str, Any] = {}
        for part in re.split(r",(?=[a-z])", rest):
            key, equals, value = part.partition("=")
            if not (name and colon and equals) or key not in {"mean", "std", "scale", "axis"}:
                raise UsageError(f"not a normalization ({text!r})", example)
            numbers = tuple(_number(text, number) for number in value.split(","))
            if key in {"scale", "axis"} and len(numbers) > 1:
                raise UsageError(f"{key} is one number ({text!r})", example)
            values[key] = numbers if key in {"mean", "std"} else int(numbers[0]) if key == "axis" else numbers[0]
        parsed[name] = Normalization(**values)
    return parsed


def parse_yaml(text: str, what: str) -> Any:
    """A value as YAML reads it (JSON is YAML). Raises UsageError."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML or JSON ({what!r}: {' '.join(str(error).split())})", "Quote the value for the shell.") from error


def parse_init_args(text: str) -> dict[str, Any]:
    """`{"width": 32}`, the constructor's arguments. Raises UsageError."""
    value = parse_yaml(text, text)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"init-args is not a mapping of names to values ({text!r})", "Write for example '{width: 32}'.")
    return value


def _pair(text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"not a name and a value ({text!r})", f"Write for example {example}.")
    return name, value


def _whole(text: str, part: str) -> int:
    if not re.fullmatch(r"\d{1,3}", part):
        raise UsageError(f"not the number of a dimension ({part!r} in {text!r})", "Dimensions count from 0, which is the batch.")
    return int(part)


def _number(text: str, part: str) -> float:
    top, slash, bottom = part.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"not a number ({part!r} in {text!r})", "Write a number or a fraction, for example 1/255.") from None


def _is_number_or_list(value: Any) -> bool:
    return all(_is_number_or_list(item) for item in value) if isinstance(value, list) and value else isinstance(value, (bool, int, float))
