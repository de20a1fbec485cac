"""Opening a model file: from a path to a `ModelFile`, or to one sentence that says why not.

Owns the look at the path and at the first bytes: which format it is, and what a file that is no model seems
to be. The headers are read by the neighbours `safetensors_header` and `gguf_header`.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO

from tidegate.runtime.models import refusals
from tidegate.runtime.models.gguf_header import MAGIC, read_gguf
from tidegate.runtime.models.model_file import SAFETENSORS_HEADER_MAX_BYTES, Format, ModelFile
from tidegate.runtime.models.safetensors_header import LENGTH_BYTES, read_safetensors

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
SUFFIXES = (*SAFETENSORS_SUFFIXES, ".gguf")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
FIRST_BYTES = 512
# A pickle of protocol 2 or later begins with the PROTO opcode and its number.
PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
ZIP_START = b"PK\x03\x04"
LARGE_FILE_POINTER_START = b"version https://git-lfs"


def read_model(path: Path) -> ModelFile:
    """Read the header of a model file; whatever is wrong becomes a `ClientError` that names the file.

    Reads at most the header (limits in `model_file`); never follows into the data, never executes anything.
    """
    try:
        with _open(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes == 0:
                raise refusals.empty(path)
            match _format(file.read(FIRST_BYTES), path):
                case Format.SAFETENSORS:
                    return read_safetensors(file, path, size_bytes)
                case Format.GGUF:
                    return read_gguf(file, path, size_bytes)
    except OSError as error:
        # Any disk or permission trouble between the first look and the last read.
        raise refusals.unreadable(path, error.strerror or type(error).__name__) from error


def _open(path: Path) -> BinaryIO:
    try:
        # Non-blocking, or a named pipe in the folder would hang the whole program here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise refusals.not_found(path) from None
    except ValueError:
        # A NUL character in the path; no file can be named so.
        raise refusals.not_found(path) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise refusals.is_folder(path) if stat.S_ISDIR(mode) else refusals.not_a_regular_file(path)
    return os.fdopen(descriptor, "rb")


def _format(first: bytes, path: Path) -> Format:
    if first.startswith(MAGIC):
        return Format.GGUF
    if first[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" or _plausible(first, path):
        # The brace decides before the pickle test: a header of 640 bytes starts with the bytes of a pickle.
        return Format.SAFETENSORS
    if first.startswith(PICKLE_STARTS) or (first.startswith(ZIP_START) and path.suffix in PICKLE_SUFFIXES):
        raise refusals.pickle(path)
    if first.startswith(LARGE_FILE_POINTER_START):
        raise refusals.large_file_pointer(path)
    raise refusals.not_a_model(path, _likeness(first))


def _plausible(first: bytes, path: Path) -> bool:
    """Named safetensors and with a believable header length: its own reader then says best what is wrong."""
    (length,) = struct.unpack("<Q", first[:LENGTH_BYTES].ljust(LENGTH_BYTES, b"\0"))
    return path.suffix in SAFETENSORS_SUFFIXES and 0 < length <= SAFETENSORS_HEADER_MAX_BYTES


def _likeness(first: bytes) -> str:
    if first.startswith(ZIP_START):
        return "a ZIP archive"
    if first.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps the error page of a download"
    if first.startswith(b"\x89PNG"):
        return "a PNG image"
    if not first.strip(b"\0"):
        return "filled with zeros, perhaps an unfinished download"
    if b"\0" in first:
        return "of an unknown binary format"
    try:
        # The cut may fall inside a character, so up to three last bytes may be incomplete.
        first[:-3].decode("utf-8") if len(first) == FIRST_BYTES else first.decode("utf-8")
    except UnicodeDecodeError:
        return "of an unknown binary format"
    return "a text file"
