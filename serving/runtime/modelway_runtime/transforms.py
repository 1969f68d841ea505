"""What an archive declares in `serving/transforms.json`: bodies that become inputs, and names for what comes out.

registry/transforms.py has the schema and its words; here it is read again by a worker that has nothing but the archive.
Pillow and tokenizers are imported only by an archive that needs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import image_input, text_input
from .errors import LoadError, RequestError
from .image_input import ImageInput
from .labels import Labels
from .messages import ModelInfo
from .tensors import Spec
from .text_input import TextInput

DIRECTORY = "serving"
FILE = "transforms.json"


@dataclass(frozen=True)
class Declared:
    """What `ModelInfo` takes of it, by its names there."""

    transforms: Mapping[str, ImageInput | TextInput] = field(default_factory=dict)
    texts: TextInput | None = None
    labels: Mapping[str, Labels] = field(default_factory=dict)


def load(root: Path, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Declared:
    """Read what an unpacked archive declares; nothing if it has no such file.

    Raises:
        LoadError: The file is not valid, does not fit the model, or needs a library that is not installed.
    """
    directory = root / DIRECTORY
    if not (directory / FILE).is_file():
        return Declared()
    try:
        document: Mapping[str, Any] = json.loads((directory / FILE).read_bytes())
        transforms: dict[str, ImageInput | TextInput] = {}
        texts = None
        for declared in document.get("inputs", ()):
            if declared["kind"] == "image":
                image = ImageInput(_named(inputs, declared["input"]), declared)
                transforms |= dict.fromkeys(image_input.CONTENT_TYPES, image)
            elif declared["kind"] == "text":
                texts = TextInput(inputs, declared, directory)
                transforms[text_input.CONTENT_TYPE] = texts
            else:
                raise LoadError(f"{FILE}: unknown kind of input ({declared['kind']})")
        labels = {declared["output"]: _labels(declared, directory, outputs) for declared in document.get("outputs", ())}
    except ImportError as error:
        raise LoadError(f"the model takes images or texts, which needs a library that is not installed here ({error.name})") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"unreadable {FILE} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    return Declared(transforms, texts, labels)


def prove(model: ModelInfo, declared: Declared) -> None:
    """Make inputs of a small body of each declared kind, and hold them against the signature. Raises LoadError."""
    for content_type, transform in declared.transforms.items():
        body = transform.sample(content_type)
        try:
            made = transform(model, memoryview(body))
        except RequestError as error:
            raise LoadError(f"{FILE}: a small {content_type} body is refused ({error.message})") from error
        for spec, array in zip(model.inputs, made, strict=True):
            if not spec.fits(array.shape) or array.dtype != spec.dtype:
                raise LoadError(
                    f"{FILE}: a body of {content_type} becomes {spec.name} {array.dtype}{list(array.shape)}, "
                    f"the signature says {spec.datatype}{list(spec.shape)}"
                )


def _labels(declared: Mapping[str, Any], directory: Path, outputs: Sequence[Spec]) -> Labels:
    given = declared["labels"]
    names = (directory / given).read_text(encoding="utf-8").rstrip().split("\n") if isinstance(given, str) else list(given)
    names = [str(name).strip() for name in names]
    spec = _named(outputs, declared["output"])
    if len(spec.shape) != 2 or spec.shape[1] != len(names):
        raise LoadError(f"{FILE}: output {spec.name} {list(spec.shape)} has {len(names)} labels")
    return Labels(names, top_k=int(declared.get("top_k", 5)), activation=str(declared.get("activation", "none")))


def _named(specs: Sequence[Spec], name: Any) -> Spec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise LoadError(f"{FILE}: the model has no tensor of the name {name}")
