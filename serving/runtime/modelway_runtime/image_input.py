"""A JPEG or PNG body becomes one row of an image input. Pillow decodes; the bytes are a stranger's.

What is refused, each with 4xx: more pixels than allowed (known from the header, before anything is decoded), a JPEG with so
many passes over its pixels that it is only there to keep a worker busy, an image far longer than wide, bytes that end early
or are no image. A large JPEG is decoded at a half, quarter or eighth of its size, but never at less than twice the size needed.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .datatypes import Array
from .errors import RequestError
from .tensors import Spec

if TYPE_CHECKING:
    from .messages import ModelInfo

CONTENT_TYPES = ("image/jpeg", "image/png")
_FORMATS = ("JPEG", "PNG")
_JPEG_MAGIC, _PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = b"\xff\xda"  # within the scans themselves 0xff is always followed by 0
_ORIENTATION = 0x0112  # of EXIF
# Passes over the pixels of a progressive JPEG: encoders write about ten.
_USUAL_SCANS = 16
_MAX_ASPECT = 64
# A part of the size that is smaller than this, against what is needed, could be seen in the result.
_DRAFT_MARGIN = 2


def is_image(body: memoryview) -> bool:
    """Whether a body begins as a JPEG or PNG does."""
    start = bytes(body[:8])
    return start[:3] == _JPEG_MAGIC or start == _PNG_MAGIC


class ImageInput:
    """The transform of an image body; see `negotiation.Transform`. Safe for threads.

    Args:
        spec: The model's only input.
        declared: The entry in transforms.json; registry/transforms.py says what is in it.

    Raises:
        ImportError: Pillow is not installed.
    """

    def __init__(self, spec: Spec, declared: Mapping[str, Any]) -> None:
        self._spec = spec
        self._pillow = _pillow()
        self._height, self._width = (int(side) for side in declared["size"])
        self._exact = declared.get("resize", "shortest") == "exact"
        self._resize_to = int(declared.get("resize_to") or max(self._height, self._width))
        self._resampling = self._pillow.Resampling[str(declared.get("interpolation", "bilinear")).upper()]
        self._color = str(declared.get("color", "RGB"))
        self._channels_first = declared.get("layout", "NCHW") == "NCHW"
        scale = declared.get("scale")
        self._scale = np.float32(1 / 255 if scale is None else scale)
        self._mean = np.asarray(declared.get("mean") or 0.0, np.float32)
        self._std = np.asarray(declared.get("std") or 1.0, np.float32)
        self._max_pixels = int(declared.get("max_pixels", 50_000_000))

    def __call__(self, model: ModelInfo, body: memoryview) -> tuple[Array, ...]:
        """The input of one row. Raises RequestError 400 for what is no image, 413 for too large a one."""
        if not is_image(body):
            raise RequestError(400, "the body is neither a JPEG nor a PNG")
        content = bytes(body)
        try:
            with self._pillow.open(io.BytesIO(content), formats=_FORMATS) as image:
                self._check(image, content)
                pixels = np.asarray(self._fitted(image))
        except RequestError:
            raise
        except Exception as error:  # Pillow raises almost anything for broken files
            raise RequestError(400, f"the image cannot be decoded; it is damaged, or ends early ({type(error).__name__})") from None
        return (self._tensor(pixels),)

    def sample(self, content_type: str) -> bytes:
        """A small body of one of the content types."""
        body = io.BytesIO()
        self._pillow.new("RGB", (4, 3)).save(body, content_type.partition("/")[2])
        return body.getvalue()

    def _check(self, image: Any, content: bytes) -> None:
        width, height = image.size
        num_pixels = width * height
        if num_pixels > self._max_pixels:
            raise RequestError(413, f"the image is {width}x{height} pixels; at most {self._max_pixels} in all, send a smaller one")
        if max(width, height) > _MAX_ASPECT * min(width, height):
            raise RequestError(400, f"the image is {width}x{height} pixels; one side may be at most {_MAX_ASPECT} times the other")
        if image.format == "JPEG" and content.count(_START_OF_SCAN) * num_pixels > _USUAL_SCANS * self._max_pixels:
            raise RequestError(413, f"the image has too many scans for {width}x{height} pixels; save it as a baseline JPEG")

    def _fitted(self, image: Any) -> Any:
        """The image upright, in the declared colours and size."""
        turn = _TURNS.get(_orientation(image))
        width, height = self._scaled(*(image.size[::-1] if turn in _SWAPPING else image.size))
        as_it_lies = (height, width) if turn in _SWAPPING else (width, height)
        image.draft(None, (_DRAFT_MARGIN * as_it_lies[0], _DRAFT_MARGIN * as_it_lies[1]))
        # What copies the whole image comes last: 50 million pixels are 200 MB each time.
        scaled = _plain(self._pillow, image).resize(as_it_lies, self._resampling)
        if turn is not None:
            scaled = scaled.transpose(self._pillow.Transpose[turn])
        left, top = round((width - self._width) / 2), round((height - self._height) / 2)
        cut = scaled.crop((left, top, left + self._width, top + self._height))
        return _on_white(self._pillow, cut).convert("L" if self._color == "L" else "RGB")

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to scale to, before the middle is cut out; as torchvision's Resize reckons."""
        if self._exact:
            return self._width, self._height
        if width <= height:
            return self._resize_to, int(self._resize_to * height / width)
        return int(self._resize_to * width / height), self._resize_to

    def _tensor(self, pixels: Array) -> Array:
        """[height, width(, channels)] of UINT8 to the model's input of one row."""
        values: Array = pixels[..., None] if pixels.ndim == 2 else pixels
        if self._color == "BGR":
            values = values[..., ::-1]
        if self._spec.dtype.kind == "f":
            values = (values.astype(np.float32) * self._scale - self._mean) / self._std
        if self._channels_first:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], dtype=self._spec.dtype)


def _pillow() -> Any:
    pillow: Any = importlib.import_module("PIL.Image")
    pillow.MAX_IMAGE_PIXELS = None  # its own guard warns, and is for the whole process; ours refuses
    # It warns of damaged notes beside an image, in words that strangers choose: they are nothing to remember or to log.
    warnings.filterwarnings("ignore", module="PIL")
    return pillow


# EXIF's orientation -> Pillow's name of what sets the image upright. 1 is upright.
_TURNS: Mapping[int, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_SWAPPING = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the image may be fine where the notes beside it are not
        return 1


def _plain(pillow: Any, image: Any) -> Any:
    """The decoded pixels in a mode that can be scaled: L, RGB, or with transparency LA, RGBA. 16 bits become the upper 8."""
    if image.mode.startswith("I"):
        return pillow.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.mode not in ("RGBA", "LA") and "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "LA", "RGBA") else image.convert("RGB")


def _on_white(pillow: Any, image: Any) -> Any:
    """The image with white behind what is transparent. Scaling weights colours by their opacity, so this may come after it."""
    if image.mode not in ("RGBA", "LA"):
        return image
    return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image.convert("RGBA"))
