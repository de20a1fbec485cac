"""The GGUF header, read as input that may be hostile.

Owns the parsing of one header into a `ModelFile`: versions 2 and 3, little-endian. The reader of the `gguf`
package maps the whole file and trusts its counts, so it is not used here. Long lists (vocabularies) are
walked but not kept. The file is opened by the neighbour `opening`; the walk itself is in `gguf_cursor`.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from tidegate.runtime.models import refusals
from tidegate.runtime.models.gguf_cursor import GgufCursor
from tidegate.runtime.models.model_file import (
    ELEMENTS_MAX,
    METADATA_ENTRIES_MAX,
    NAME_MAX_BYTES,
    TENSORS_MAX,
    Format,
    MetadataValue,
    ModelFile,
    Tensor,
    first_repeated,
)
from tidegate.runtime.models.tensor_types import GGML_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
ALIGNMENT_DEFAULT_BYTES = 32
ALIGNMENT_MAX_BYTES = 65_536
# ggml has four dimensions; the engine folds a fifth (video models) into the fourth.
GGUF_DIMENSIONS_MAX = 5


def read_gguf(file: BinaryIO, path: Path, size_bytes: int) -> ModelFile:
    """Read the header of `file` (positioned anywhere); raises `ClientError` for whatever is wrong with it."""
    file.seek(0)
    cursor = GgufCursor(file, path, size_bytes)
    if cursor.take(4) != MAGIC:
        raise refusals.not_a_model(path, "without the GGUF mark")
    _check_version(cursor, path)
    tensor_count = cursor.count("the number of tensors", TENSORS_MAX)
    entry_count = cursor.count("the number of metadata entries", METADATA_ENTRIES_MAX)
    if tensor_count == 0:
        raise refusals.corrupt(path, "it holds no tensors")
    metadata = _metadata(cursor, entry_count, path)
    alignment_bytes = _alignment_bytes(metadata, path)
    infos = [_tensor(cursor, path) for _ in range(tensor_count)]
    data_bytes = -(-cursor.position_bytes // alignment_bytes) * alignment_bytes
    tensors = tuple(
        Tensor(info.name, info.dtype, info.shape, data_bytes + info.offset_bytes, info.size_bytes)
        for info in infos
    )
    _check_layout(tensors, size_bytes, alignment_bytes, path)
    return ModelFile(
        path=path,
        format=Format.GGUF,
        size_bytes=size_bytes,
        header_bytes=data_bytes,
        tensors=tensors,
        metadata=metadata,
    )


def _check_version(cursor: GgufCursor, path: Path) -> None:
    raw = cursor.take(4)
    (version,) = struct.unpack("<I", raw)
    if version in VERSIONS:
        return
    if struct.unpack(">I", raw)[0] in VERSIONS:
        raise refusals.unsupported_version(path, "a big-endian GGUF file")
    raise refusals.unsupported_version(path, f"GGUF version {version}")


def _metadata(cursor: GgufCursor, entry_count: int, path: Path) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for _ in range(entry_count):
        key = cursor.text("a metadata key", NAME_MAX_BYTES)
        if key in metadata:
            raise refusals.corrupt(path, f"its metadata names {refusals.quoted(key)} twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    return metadata


def _alignment_bytes(metadata: dict[str, MetadataValue], path: Path) -> int:
    value = metadata.get(ALIGNMENT_KEY, ALIGNMENT_DEFAULT_BYTES)
    if type(value) is not int or not 0 < value <= ALIGNMENT_MAX_BYTES or value & (value - 1):
        raise refusals.corrupt(path, "its alignment is not a power of two")
    return value


def _tensor(cursor: GgufCursor, path: Path) -> Tensor:
    name = cursor.text("a tensor name", NAME_MAX_BYTES)
    if not name or not name.isprintable():
        raise refusals.corrupt(path, f"{refusals.quoted(name)} is not a tensor name")
    dimension_count = cursor.number("<I")
    if dimension_count > GGUF_DIMENSIONS_MAX:
        raise refusals.corrupt(path, f"tensor {refusals.quoted(name)} has {dimension_count} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimension_count))[::-1]
    type_number = cursor.number("<I")
    offset_bytes = cursor.number("<Q")
    block = GGML_TYPES.get(type_number)
    if block is None:
        raise refusals.unknown_dtype(path, tensor=name, dtype=f"ggml type {type_number}")
    element_count = math.prod(shape)
    if element_count > ELEMENTS_MAX or any(n >= 2**63 for n in shape):
        raise refusals.corrupt(path, f"the shape of tensor {refusals.quoted(name)} makes no sense")
    row_count = shape[-1] if shape else 1
    if row_count % block.block_count:
        raise refusals.corrupt(
            path,
            f"the rows of tensor {refusals.quoted(name)} are no multiple of the {block.block_count} values"
            f" of a {block.name} block",
        )
    return Tensor(
        name, block.name, shape, offset_bytes, element_count // block.block_count * block.block_bytes
    )


def _check_layout(tensors: tuple[Tensor, ...], size_bytes: int, alignment_bytes: int, path: Path) -> None:
    """Tensors lie aligned behind the header, without overlap, inside the file. Gaps are padding and
    allowed.
    """
    twice = first_repeated(tensor.name for tensor in tensors)
    if twice is not None:
        raise refusals.corrupt(path, f"it holds two tensors named {refusals.quoted(twice)}")
    position = 0
    for tensor in sorted(tensors, key=lambda t: (t.offset_bytes, t.size_bytes)):
        if tensor.offset_bytes % alignment_bytes:
            raise refusals.corrupt(path, f"tensor {refusals.quoted(tensor.name)} is not aligned")
        if tensor.offset_bytes < position:
            raise refusals.corrupt(path, f"tensor {refusals.quoted(tensor.name)} overlaps another one")
        position = tensor.offset_bytes + tensor.size_bytes
    if position > size_bytes:
        raise refusals.truncated(path, declared_bytes=position, present_bytes=size_bytes)
