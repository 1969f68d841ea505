"""Images as bodies: what the model gets of them, held against plain Pillow and numpy, and what hostile ones are answered."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data

from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import RequestError
from serving.runtime.modelway_runtime.image_input import CONTENT_TYPES, ImageInput
from serving.runtime.modelway_runtime.messages import Decoded
from serving.runtime.modelway_runtime.tensors import Spec
from support.runtime_echo import OCTETS, PREDICTIONS, V1, V2, ask, echo, error
from support.transform_bundles import picture

JPEG = {"content-type": "image/jpeg"}
DECLARED = {"kind": "image", "input": "x", "size": [4, 4]}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def image_input(datatype: str = "FP32", **declared: Any) -> ImageInput:
    merged = {**DECLARED, **declared}
    height, width = merged["size"]
    channels = 1 if merged.get("color") == "L" else 3
    shape = (-1, height, width, channels) if merged.get("layout") == "NHWC" else (-1, channels, height, width)
    return ImageInput(Spec("x", datatype, shape), merged)


def core_of(datatype: str = "FP32", **declared: Any) -> Core:
    transform = image_input(datatype, **declared)
    return echo(transform._spec, transforms=dict.fromkeys(CONTENT_TYPES, transform))


def seen(body: bytes, datatype: str = "FP32", *, headers: Mapping[str, str] = JPEG, **declared: Any) -> npt.NDArray[Any]:
    """What the model gets of a body, without its batch dimension."""
    decoded = core_of(datatype, **declared).decode({**PREDICTIONS, **headers}, body)
    assert isinstance(decoded, Decoded), decoded
    assert decoded.num_rows == 1
    assert decoded.inputs[0].flags.c_contiguous
    return decoded.inputs[0][0]


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, format, **options)
    return body.getvalue()


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.fromarray(data.chelsea())  # 451 x 300


# --- what the model gets


def test_the_middle_of_a_picture_as_torchvision_would_give_it(cat: Image.Image) -> None:
    """Resize(48, bicubic), CenterCrop(40), ToTensor, Normalize, written out."""
    resized = cat.resize((int(48 * 451 / 300), 48), Image.Resampling.BICUBIC)
    left = round((resized.width - 40) / 2)
    pixels = np.asarray(resized.crop((left, 4, left + 40, 44)), np.float32) / 255
    expected = ((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)
    got = seen(saved(cat), size=[40, 40], resize_to=48, interpolation="bicubic", mean=MEAN, std=STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_whole_picture_in_the_exact_size(cat: Image.Image) -> None:
    expected = np.asarray(cat.resize((32, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(seen(saved(cat), "UINT8", size=[24, 32], resize="exact", layout="NHWC"), expected)


@pytest.mark.parametrize(("size", "corner"), [((64, 40), (12, 0)), ((40, 64), (0, 12)), ((40, 40), (0, 0))])
def test_the_middle_is_the_middle(size: tuple[int, int], corner: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    left, top = corner
    got = seen(saved(Image.fromarray(pixels)), "UINT8", size=[40, 40], layout="NHWC")
    np.testing.assert_array_equal(got, pixels[top : top + 40, left : left + 40])


@pytest.mark.parametrize(
    ("color", "expected"), [("RGB", [200, 100, 50]), ("BGR", [50, 100, 200]), ("L", [(200 * 299 + 100 * 587 + 50 * 114) // 1000])]
)
def test_colours_in_their_order(color: str, expected: list[int]) -> None:
    assert seen(picture((200, 100, 50)), "UINT8", color=color)[:, 0, 0].tolist() == expected


def test_numbers_are_scaled_then_normalised() -> None:
    body = picture((200, 100, 50))
    np.testing.assert_allclose(seen(body)[:, 0, 0], [200 / 255, 100 / 255, 50 / 255], rtol=1e-6)
    np.testing.assert_allclose(seen(body, scale=1.0, mean=[127, 127, 127], std=[128, 128, 128])[:, 0, 0], [73 / 128, -27 / 128, -77 / 128])
    assert seen(body, "FP16").dtype == np.float16
    assert seen(body, "BF16").dtype == np.float32


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (200, 100, 50), (200, 100, 50)),
        ("L", (90,), (90, 90, 90)),
        ("1", (1,), (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),  # what is transparent lies on white
        ("I;16", 0x5A80, (0x5A, 0x5A, 0x5A)),  # the upper 8 bits
    ],
)
def test_every_kind_of_png_becomes_plain_colours(mode: str, color: Any, expected: tuple[int, ...]) -> None:
    body = picture(color if isinstance(color, int) or len(color) > 1 else color[0], mode=mode)
    np.testing.assert_allclose(seen(body, "UINT8")[:, 1, 1], expected, atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("color", ["RGB", "L"])
def test_what_is_half_transparent_is_mixed_with_white(mode: str, color: str) -> None:
    """Held against white put behind the whole image before it is scaled."""
    shape = (60, 80, 4 if mode == "RGBA" else 2)
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, shape, np.uint8), mode)
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    expected = np.asarray(white.resize((8, 8), Image.Resampling.BILINEAR).convert(color)).reshape(8, 8, -1).astype(int)
    got = seen(saved(image), "UINT8", size=[8, 8], resize="exact", layout="NHWC", color=color).astype(int)
    np.testing.assert_allclose(got, expected, atol=3)


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_palettes(transparency: Any) -> None:
    image = Image.new("P", (40, 30), 0)
    image.putpalette([200, 100, 50, 1, 2, 3])
    options = {} if transparency is None else {"transparency": transparency}
    expected = (200, 100, 50) if transparency is None else (255, 255, 255)
    assert tuple(seen(saved(image, **options), "UINT8")[:, 1, 1]) == expected


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_every_kind_of_jpeg_becomes_plain_colours(mode: str) -> None:
    image = Image.new("RGB", (40, 30), (200, 100, 50)).convert(mode)
    expected = np.asarray(image.convert("RGB"))[0, 0]
    np.testing.assert_allclose(seen(saved(image, "JPEG", quality=95), "UINT8")[:, 1, 1], expected, atol=4)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_is_set_upright(orientation: int, format: str) -> None:
    """Held against Pillow's own exif_transpose; 0 and 9 are no orientations."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = [250, 0, 0]  # each quarter has a colour of its own
    pixels[:24, 32:] = [0, 250, 0]
    pixels[24:, :32] = [0, 0, 250]
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = saved(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    got = seen(body, "UINT8", size=[8, 8], resize="exact", layout="NHWC")
    np.testing.assert_allclose(got.astype(int), np.asarray(expected).astype(int), atol=8)


def test_a_large_jpeg_is_decoded_smaller_and_still_the_same(cat: Image.Image) -> None:
    large = cat.resize((3608, 2400), Image.Resampling.BICUBIC)
    for sideways in (None, 6):
        exif = Image.Exif()
        if sideways:
            exif[0x0112] = sideways
        body = saved(large, "JPEG", quality=92, exif=exif)
        full = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
        options = {"size": [224, 224], "resize_to": 256, "layout": "NHWC"}
        exact = seen(saved(full), "UINT8", **options).astype(int)
        got = seen(body, "UINT8", **options).astype(int)
        assert np.abs(got - exact).mean() < 1.0
        assert np.abs(got - exact).max() < 16


_TEXT_FOR_ORIENTATION = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x02\x00\x00\x00\x04abcd\x00\x00\x00\x00"


@pytest.mark.parametrize("exif", [b"MM\x00*\x00\x00\x00\xff\x00", b"no exif at all", b"MM", _TEXT_FOR_ORIENTATION])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_damaged_notes_beside_the_picture_do_not_matter(exif: bytes, format: str) -> None:
    body = picture((200, 100, 50), format=format, exif=(b"Exif\x00\x00" if format == "JPEG" else b"") + exif)
    assert seen(body, "UINT8")[:, 0, 0].tolist() == pytest.approx([200, 100, 50], abs=4)


# --- how it is asked for


@pytest.mark.parametrize("protocol", [V1, V2, PREDICTIONS], ids=["v1", "v2", "predictions"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "image/png"}, {"content-type": "Image/JPEG; q=1"}],
)
def test_an_image_is_known_by_its_type_or_by_its_first_bytes(protocol: dict[str, str], headers: dict[str, str]) -> None:
    core = core_of()
    body = picture((255, 0, 0))
    assert ask(core, body, {**protocol, **headers}).status == 200
    assert core.takes_long({**protocol, **headers}, body)


def test_what_says_that_it_is_something_else_is_not_taken_for_an_image() -> None:
    core = core_of()
    body = picture((255, 0, 0))
    for content_type in ("application/json", "application/json; charset=utf-8"):
        assert error(ask(core, body, {**PREDICTIONS, "content-type": content_type}), 400)
    assert error(ask(core, body, {**PREDICTIONS, "content-type": OCTETS}), 400).startswith("input x: expected a multiple of 192 bytes")
    assert "image/jpeg, image/png" in error(ask(core, body, {**PREDICTIONS, "content-type": "image/webp"}), 415)


def test_a_model_that_takes_no_images_is_asked_as_before() -> None:
    core = echo(Spec("x", "FP32", (-1, 3, 4, 4)))
    body = picture((255, 0, 0))
    assert error(ask(core, body, PREDICTIONS), 400)
    assert error(ask(core, body, {**PREDICTIONS, **JPEG}), 415)
    assert not core.takes_long(JPEG, body)


def test_tensors_are_still_taken_and_given() -> None:
    core = core_of()
    rows = np.zeros((2, 3, 4, 4)).tolist()
    assert json.loads(ask(core, rows, PREDICTIONS).body) == rows
    assert not core.takes_long(PREDICTIONS, json.dumps(rows).encode())


# --- what comes from anywhere


def png(width: int, height: int, *, bits: int = 8, color: int = 2, content: bytes = b"") -> bytes:
    """A PNG that says what it likes of its size."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "neither a JPEG nor a PNG"),
        (b"GIF89a" + bytes(100), 400, "neither a JPEG nor a PNG"),
        (b"\x89PNG\r\n\x1a\n", 400, "cannot be decoded"),
        (b"\xff\xd8\xff", 400, "cannot be decoded"),
        (png(50_000, 50_000), 413, "50000x50000 pixels"),
        (png(0x7FFFFFFF, 0x7FFFFFFF), 413, "pixels"),
        (png(0, 10), 400, ""),
        (png(7000, 7000), 400, "cannot be decoded"),
        (png(65, 1, content=bytes(196)), 400, "at most 64 times"),
        (png(1, 4_000_000), 400, "at most 64 times"),
        (png(10, 10, bits=3), 400, "cannot be decoded"),
        (picture("red")[:-30], 400, "cannot be decoded"),
        (picture("red", format="JPEG")[:-30], 400, "cannot be decoded"),
        (picture("red", format="JPEG", size=(600, 600))[:400], 400, "cannot be decoded"),
    ],
)  # fmt: skip
def test_what_is_no_image_or_too_large_is_refused(body: bytes, status: int, message: str) -> None:
    assert message in error(ask(core_of(), body, {**PREDICTIONS, **JPEG}), status)


def test_nothing_of_a_too_large_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it was decoded"))
    for body in (png(50_000, 50_000), png(1, 4_000_000)):
        with pytest.raises(RequestError):
            image_input()(None, memoryview(body))  # type: ignore[arg-type]


def test_a_jpeg_with_endless_scans_is_refused() -> None:
    body = picture("red", format="JPEG", size=(2000, 2000), progressive=True)
    assert ask(core_of(), body, {**PREDICTIONS, **JPEG}).status == 200
    start = body.index(b"\xff\xda")
    scan = body[start : body.index(b"\xff\xc4", start)] if b"\xff\xc4" in body[start:] else body[start:-2]
    hostile = body[:start] + scan * 1000 + body[start:]
    assert "too many scans" in error(ask(core_of(), hostile, {**PREDICTIONS, **JPEG}), 413)


VALID = [
    picture((200, 100, 50)),
    picture((200, 100, 50), format="JPEG"),
    picture((200, 100, 50), format="JPEG", progressive=True),
    picture((200, 100, 50, 9), mode="RGBA"),
    picture(7, mode="P"),
    picture(70, mode="I;16"),
    saved(Image.new("CMYK", (9, 9)), "JPEG"),
]


def settled(body: bytes) -> None:
    """It is answered 200, or 4xx in words."""
    answer = ask(core_of(), body, PREDICTIONS)
    assert answer.status in (200, 400, 413), answer
    if answer.status != 200:
        error(answer, answer.status)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=300))
def test_random_bytes_behind_an_images_first(magic: bytes, rest: bytes) -> None:
    settled(magic + rest)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_spoilt_images(body: bytes, draw: st.DataObject) -> None:
    kind = draw.draw(st.sampled_from(["cut", "flip", "insert", "repeat"]))
    at = draw.draw(st.integers(8, len(body) - 1))
    if kind == "cut":
        settled(body[:at])
    elif kind == "flip":
        settled(body[:at] + bytes([body[at] ^ draw.draw(st.integers(1, 255))]) + body[at + 1 :])
    elif kind == "insert":
        settled(body[:at] + draw.draw(st.binary(min_size=1, max_size=40)) + body[at:])
    else:
        settled(body[:at] + body[draw.draw(st.integers(0, at)) :])
