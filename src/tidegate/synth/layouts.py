"""Layouts: where each tensor lies in a file, and the header that says so.

Owns the headers of the two formats as written by us. `tidegate.runtime.models` reads them; the engine does
too.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.runtime.models.tensor_types import GGML_NUMBERS, GGML_TYPES

ALIGNMENT_BYTES = 32
GGUF_VERSION = 3
# The numbers of value kinds in a GGUF's metadata.
GGUF_U32 = 4
GGUF_I32 = 5
GGUF_F32 = 6
GGUF_BOOL = 7
GGUF_TEXT = 8
GGUF_ARRAY = 9
# ggml's number for the present meaning of its quantised blocks.
QUANTISATION_VERSION = 2
# What the engine calls an embedding, a time or size conditioner: small, and kept as they are by its own
# converter.
KEPT_PARTS = (
    "embedding", "time_embed.", "label_emb.", "pos_embed",
    "x_embedder.", "t_embedder.", "y_embedder.", "context_embedder.",
)  # fmt: skip


Scalar = str | bool | int | float
Value = Scalar | Sequence[str] | Sequence[int] | Sequence[float]
NO_ROWS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor with its type and its place behind the header; `padding_bytes` zeros follow it.

    Zeros are zero in every type, so the last rows of a matrix may be among them: `shape` is without these.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    size_bytes: int
    padding_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A file to be: its header and its tensors in order."""

    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def size_bytes(self) -> int:
        """Length of the finished file."""
        return len(self.header) + sum(tensor.size_bytes + tensor.padding_bytes for tensor in self.tensors)


def stored_type(name: str, shape: tuple[int, ...], weight_type: str) -> str:
    """How a tensor is stored in a file of this weight type: only matrices are quantised, as the engine
    converts.
    """
    block = GGML_TYPES[GGML_NUMBERS[weight_type]]
    if not block.quantised:
        return weight_type
    if len(shape) < 2:
        return "f32"
    matrix = len(shape) == 2 and name.endswith(".weight") and shape[-1] % block.block_count == 0
    return weight_type if matrix and not any(part in name for part in KEPT_PARTS) else "f16"


def safetensors_layout(tensors: Sequence[tuple[str, tuple[int, ...]]], weight_type: str) -> Layout:
    """A safetensors file of one plain type, tensors without gaps."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "source": "tidegate synth"}}
    placed: list[Placed] = []
    position = 0
    for name, shape in tensors:
        size_bytes = _size_bytes(shape, weight_type)
        entries[name] = {
            "dtype": weight_type.upper(),
            "shape": shape,
            "data_offsets": [position, position + size_bytes],
        }
        placed.append(Placed(name, shape, weight_type, size_bytes, 0))
        position += size_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Layout(struct.pack("<Q", len(text)) + text, tuple(placed))


def gguf_layout(
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    weight_type: str,
    *,
    architecture: str,
    title: str,
    metadata: Mapping[str, Value] = MappingProxyType({}),
    typed: Callable[[str, tuple[int, ...], str], str] = stored_type,
    zero_rows: Mapping[str, int] = NO_ROWS,
) -> Layout:
    """A GGUF file: every tensor of the type that `typed` names for it, aligned; the last `zero_rows` of a
    matrix are zeros.
    """
    known: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": title,
        "general.alignment": ALIGNMENT_BYTES,
        "general.quantization_version": QUANTISATION_VERSION,
        **metadata,
    }
    entries = [_text(key) + _value(value) for key, value in known.items()]
    placed: list[Placed] = []
    infos: list[bytes] = []
    position = 0
    for name, shape in tensors:
        type_name = typed(name, shape, weight_type)
        filled = (shape[0] - zero_rows[name], *shape[1:]) if name in zero_rows else shape
        whole_bytes = _size_bytes(shape, type_name)
        filled_bytes = _size_bytes(filled, type_name)
        padding_bytes = whole_bytes - filled_bytes + -whole_bytes % ALIGNMENT_BYTES
        placed.append(Placed(name, filled, type_name, filled_bytes, padding_bytes))
        extents = shape[::-1] or (1,)
        infos.append(
            _text(name)
            + struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
            + struct.pack("<IQ", GGML_NUMBERS[type_name], position)
        )
        position += filled_bytes + padding_bytes
    counts = struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(entries))
    header = b"GGUF" + counts + b"".join(entries) + b"".join(infos)
    return Layout(header + b"\0" * (-len(header) % ALIGNMENT_BYTES), tuple(placed))


def _value(value: Value) -> bytes:
    """A metadata value behind the number of its kind; an array's elements are all of its first one's kind."""
    if isinstance(value, str | bool | int | float):
        kind, raw = _scalar(value)
        return struct.pack("<I", kind) + raw
    # Engines read whole numbers in an array as signed.
    kinds = [(GGUF_I32, struct.pack("<i", v)) if type(v) is int else _scalar(v) for v in value]
    return struct.pack("<IIQ", GGUF_ARRAY, kinds[0][0], len(kinds)) + b"".join(raw for _, raw in kinds)


def _scalar(value: Scalar) -> tuple[int, bytes]:
    if isinstance(value, str):
        return GGUF_TEXT, _text(value)
    if isinstance(value, bool):
        return GGUF_BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return GGUF_U32, struct.pack("<I", value)
    return GGUF_F32, struct.pack("<f", value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _size_bytes(shape: tuple[int, ...], type_name: str) -> int:
    block = GGML_TYPES[GGML_NUMBERS[type_name]]
    return math.prod(shape) // block.block_count * block.block_bytes
