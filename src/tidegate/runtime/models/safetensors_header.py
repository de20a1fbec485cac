"""The safetensors header, read as input that may be hostile.

Owns the parsing of one header into a `ModelFile`. Layout: eight bytes little-endian header length, a JSON
object `{name: {dtype, shape, data_offsets}}` with an optional `__metadata__`, then the data without gaps.
Nothing is trusted: lengths are bounded before they are read, every number is checked before it is used, and
tensors must tile the data exactly. The file is opened by the neighbour `opening`.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import BinaryIO

from tidegate.core.faults import ClientError
from tidegate.runtime.models import refusals
from tidegate.runtime.models.model_file import (
    DIMENSIONS_MAX,
    ELEMENTS_MAX,
    NAME_MAX_BYTES,
    SAFETENSORS_HEADER_MAX_BYTES,
    TENSORS_MAX,
    Format,
    ModelFile,
    Tensor,
    first_repeated,
)
from tidegate.runtime.models.tensor_types import SAFETENSORS_BITS

LENGTH_BYTES = 8


def read_safetensors(file: BinaryIO, path: Path, size_bytes: int) -> ModelFile:
    """Read the header of `file` (positioned anywhere); raises `ClientError` for whatever is wrong with it."""
    document, header_bytes = _read_json(file, path, size_bytes)
    metadata = _metadata(document.pop("__metadata__", None), path)
    if len(document) > TENSORS_MAX:
        raise refusals.beyond_limit(
            path, what="the number of tensors", value=len(document), value_max=TENSORS_MAX
        )
    if not document:
        raise refusals.corrupt(path, "it holds no tensors")
    tensors = tuple(_tensor(name, entry, header_bytes, path) for name, entry in document.items())
    _check_tiling(tensors, header_bytes, size_bytes, path)
    return ModelFile(
        path=path,
        format=Format.SAFETENSORS,
        size_bytes=size_bytes,
        header_bytes=header_bytes,
        tensors=tensors,
        metadata=metadata,
    )


def _read_json(file: BinaryIO, path: Path, size_bytes: int) -> tuple[dict[str, object], int]:
    file.seek(0)
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise refusals.truncated_header(path)
    (json_bytes,) = struct.unpack("<Q", prefix)
    if json_bytes > SAFETENSORS_HEADER_MAX_BYTES:
        raise refusals.beyond_limit(
            path, what="the header length", value=json_bytes, value_max=SAFETENSORS_HEADER_MAX_BYTES
        )
    if LENGTH_BYTES + json_bytes > size_bytes:
        raise refusals.truncated_header(path)
    raw = file.read(json_bytes)
    if len(raw) < json_bytes:
        raise refusals.truncated_header(path)
    return _parse(raw, path), LENGTH_BYTES + json_bytes


def _parse(raw: bytes, path: Path) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = first_repeated(name for name, _ in pairs)
        if twice is not None:
            raise refusals.corrupt(path, f"its header names {refusals.quoted(twice)} twice")
        return dict(pairs)

    def no_constant(word: str) -> object:
        raise ValueError(f"{word} is not JSON")

    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except ClientError:
        raise
    except (ValueError, RecursionError):
        # ValueError covers bad UTF-8, bad JSON and absurdly long numbers; RecursionError a tower of brackets.
        raise refusals.corrupt(path, "its header is not valid JSON") from None
    if not isinstance(document, dict):
        raise refusals.corrupt(path, "its header is not a JSON object")
    return document


def _metadata(value: object, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise refusals.corrupt(path, "its metadata is not a map of texts")
    return value


def _tensor(name: str, entry: object, header_bytes: int, path: Path) -> Tensor:
    if not name or len(name) > NAME_MAX_BYTES or not name.isprintable():
        raise refusals.corrupt(path, f"{refusals.quoted(name)} is not a tensor name")
    if not isinstance(entry, dict):
        raise refusals.corrupt(path, f"the entry of tensor {refusals.quoted(name)} is not an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str):
        raise refusals.corrupt(path, f"tensor {refusals.quoted(name)} has no type")
    if dtype not in SAFETENSORS_BITS:
        raise refusals.unknown_dtype(path, tensor=name, dtype=dtype)
    shape = _numbers(entry.get("shape"))
    if shape is None or len(shape) > DIMENSIONS_MAX or math.prod(shape) > ELEMENTS_MAX:
        raise refusals.corrupt(path, f"the shape of tensor {refusals.quoted(name)} makes no sense")
    offsets = _numbers(entry.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusals.corrupt(path, f"the offsets of tensor {refusals.quoted(name)} make no sense")
    begin, end = offsets
    wanted_bytes = math.prod(shape) * SAFETENSORS_BITS[dtype] // 8
    if end - begin != wanted_bytes:
        raise refusals.corrupt(
            path,
            f"tensor {refusals.quoted(name)} takes {end - begin} bytes where its shape needs {wanted_bytes}",
        )
    return Tensor(name, dtype.lower(), shape, header_bytes + begin, wanted_bytes)


def _numbers(value: object) -> tuple[int, ...] | None:
    """The value as whole numbers from 0 to 2**63, or None; JSON's true and 1.0 are not whole numbers here."""
    if not isinstance(value, list) or len(value) > DIMENSIONS_MAX:
        return None
    if not all(type(n) is int and 0 <= n < 2**63 for n in value):
        return None
    return tuple(value)


def _check_tiling(tensors: tuple[Tensor, ...], header_bytes: int, size_bytes: int, path: Path) -> None:
    """The data must be covered exactly once, from the end of the header to the end of the file."""
    declared_bytes = max(tensor.offset_bytes + tensor.size_bytes for tensor in tensors)
    position = header_bytes
    for tensor in sorted(tensors, key=lambda t: (t.offset_bytes, t.size_bytes)):
        if tensor.offset_bytes < position:
            raise refusals.corrupt(path, f"tensor {refusals.quoted(tensor.name)} overlaps another one")
        if tensor.offset_bytes > position:
            raise refusals.corrupt(path, f"there is a gap before tensor {refusals.quoted(tensor.name)}")
        position += tensor.size_bytes
    if declared_bytes > size_bytes:
        raise refusals.truncated(path, declared_bytes=declared_bytes, present_bytes=size_bytes)
    if declared_bytes < size_bytes:
        raise refusals.corrupt(path, f"{size_bytes - declared_bytes} bytes follow its last tensor")
