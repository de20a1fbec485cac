"""Pictures that come in and go out: bounded before they are decoded, fitted, and put into other formats.

Owns what is read (PNG, JPEG, WebP), how a picture is brought to the size of a request, and conversion of
finished images and previews. All of it is blocking work for a thread. PNG files with the recipe are `png`'s.
"""

from __future__ import annotations

import io
import warnings
from enum import Enum
from typing import BinaryIO, Final, assert_never

from PIL import Image, ImageOps, UnidentifiedImageError

from tidegate.core.faults import ClientError

READ_FORMATS: Final = ("PNG", "JPEG", "WEBP")
_REMEDY: Final = "Give a PNG, JPEG or WebP picture."


class OutputFormat(Enum):
    """What a finished image can be had as."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """As HTTP calls it."""
        return f"image/{self.value}"


def fitted(
    file: BinaryIO,
    width: int,
    height: int,
    *,
    pixels_max: int,
    what: str = "picture",
    remedy: str = _REMEDY,
) -> bytes:
    """Rows of RGB pixels at the size of the request, cut evenly where the shapes differ.

    Raises ClientError: `picture_too_large` by the header alone, before anything is decoded.
    """
    upright = _opened(file, pixels_max=pixels_max, what=what, remedy=remedy)
    return ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS).tobytes()


def decoded(file: BinaryIO, *, pixels_max: int, what: str = "picture") -> tuple[int, int, bytes]:
    """Width, height, and rows of RGB pixels. Raises ClientError as `fitted` does."""
    upright = _opened(file, pixels_max=pixels_max, what=what, remedy=_REMEDY)
    return *upright.size, upright.tobytes()


def _opened(file: BinaryIO, *, pixels_max: int, what: str, remedy: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # broken Exif is no news to a user
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=READ_FORMATS) as picture:
                _check_size(picture.size, pixels_max, what)
                return rgb(picture)
    except UnidentifiedImageError as error:
        raise unreadable(what, "it is not a picture", remedy=remedy) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(what, pixels_max) from error
    except TooDeep as error:
        raise unreadable(what, str(error), remedy=remedy) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # the ways in which Pillow says "damaged"
        raise unreadable(what, "it is damaged", remedy=remedy) from error


class TooDeep(ValueError):
    """A picture with more bits in a pixel than can be brought to eight without knowing what they mean."""


def rgb(picture: Image.Image) -> Image.Image:
    """The picture upright, in RGB of eight bits. Raises TooDeep, and what Pillow raises for damage."""
    picture.load()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        picture = _turned(picture).point(lambda value: value * (1 / 257) + 0).convert("L")
    elif picture.mode in ("I", "F"):
        raise TooDeep("it has 32 bits in a pixel, and 8 or 16 are read")
    return _turned(picture).convert("RGB")


def _turned(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    # Broken Exif fails in every way there is: struct.error, EOFError, KeyError, SyntaxError ...
    except Exception:  # noqa: BLE001 - the pixels are read already, and how they are turned is a detail
        return picture


def converted(png: bytes, *, to: OutputFormat, quality: int) -> bytes:
    """A finished PNG in another format; as PNG it stays as it is, with its recipe."""
    match to:
        case OutputFormat.PNG:
            return png
        case OutputFormat.JPEG | OutputFormat.WEBP:
            out = io.BytesIO()
            with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
                picture.convert("RGB").save(out, to.name, quality=quality)
            return out.getvalue()
        case _:
            assert_never(to)


def enlarged(pixels: bytes, shape: tuple[int, int], size: tuple[int, int], *, to: OutputFormat) -> bytes:
    """A preview (RGB, one pixel per latent cell, `shape` is width and height) as a file of the full size."""
    out = io.BytesIO()
    small = Image.frombytes("RGB", shape, pixels)
    small.resize(size, Image.Resampling.BICUBIC).save(out, to.name)
    return out.getvalue()


def _check_size(size: tuple[int, int], pixels_max: int, what: str) -> None:
    if size[0] * size[1] > pixels_max:
        raise _too_large(what, pixels_max)


def _too_large(what: str, pixels_max: int) -> ClientError:
    return ClientError(
        f"The {what} has more than {pixels_max} pixels.",
        remedy="Send a smaller one.",
        code="picture_too_large",
    )


def unreadable(what: str, why: str, *, remedy: str = _REMEDY) -> ClientError:
    """The one sentence about a picture that is none."""
    return ClientError(f"The {what} cannot be read: {why}.", remedy=remedy, code="picture_unreadable")
