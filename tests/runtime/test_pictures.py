"""Pictures from outside: bounded by their header, upright, fitted, and refused in one sentence."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from tidegate.core.faults import ClientError
from tidegate.runtime.pictures import OutputFormat, TooDeep, converted, enlarged, fitted, rgb

PIXELS_MAX = 1 << 20


def file_of(size: tuple[int, int], kind: str = "PNG", **how: object) -> io.BytesIO:
    out = io.BytesIO()
    picture = Image.new("RGB", size, (255, 0, 0))
    picture.paste((0, 0, 255), (size[0] // 2, 0, size[0], size[1]))
    picture.save(out, kind, **how)  # type: ignore[arg-type]  # options differ between formats
    return io.BytesIO(out.getvalue())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_comes_at_the_size_asked_for(kind: str) -> None:
    pixels = fitted(file_of((100, 60), kind), 64, 32, pixels_max=PIXELS_MAX)
    assert len(pixels) == 64 * 32 * 3


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, as a camera writes it
    pixels = fitted(file_of((64, 64), exif=exif), 64, 64, pixels_max=PIXELS_MAX)
    assert pixels[:3] == bytes((0, 0, 255))


def claiming(width: int, height: int) -> io.BytesIO:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [1_025, 30_000, 100_000])
def test_a_picture_with_too_many_pixels_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ClientError) as caught:
        fitted(claiming(side, side), 64, 64, pixels_max=PIXELS_MAX)
    assert caught.value.code == "picture_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        file_of((64, 64)).getvalue()[:60],
        file_of((64, 64), "JPEG").getvalue()[:-200],
        file_of((64, 64), "GIF").getvalue(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_no_sound_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        fitted(io.BytesIO(data), 64, 64, pixels_max=PIXELS_MAX)
    assert caught.value.code == "picture_unreadable"


@pytest.mark.parametrize("to", list(OutputFormat))
def test_a_finished_image_is_had_in_every_format(to: OutputFormat) -> None:
    png = file_of((64, 64)).getvalue()
    out = converted(png, to=to, quality=90)
    assert Image.open(io.BytesIO(out)).format == to.name
    assert (out == png) == (to is OutputFormat.PNG)


def test_a_preview_is_brought_to_the_full_size() -> None:
    out = enlarged(bytes(8 * 4 * 3), (8, 4), (64, 32), to=OutputFormat.PNG)
    assert Image.open(io.BytesIO(out)).size == (64, 32)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\x08", b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1\x12"]
)
def test_a_picture_with_broken_exif_is_taken_as_it_is(exif: bytes) -> None:
    pixels = fitted(file_of((64, 64), "JPEG", exif=exif), 64, 64, pixels_max=PIXELS_MAX)
    assert pixels[0] > 200


def test_sixteen_bits_of_grey_are_brought_to_eight() -> None:
    out = io.BytesIO()
    Image.new("I;16", (64, 64), 257 * 100).save(out, "PNG")
    pixels = fitted(io.BytesIO(out.getvalue()), 64, 64, pixels_max=PIXELS_MAX)
    assert pixels == bytes([100]) * 64 * 64 * 3


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_of_32_bits_is_refused_by_name(mode: str) -> None:
    with pytest.raises(TooDeep, match="32 bits"):
        rgb(Image.new(mode, (8, 8)))
