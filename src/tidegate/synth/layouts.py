"""Layouts: where each tensor lies in a file, and the header that says so.

Owns the headers of the two formats as written by us. `tidegate.runtime.models` reads them; the engine does
too.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.runtime.models.tensor_types import GGML_NUMBERS, GGML_TYPES

ALIGNMENT_BYTES = 32
GGUF_VERSION = 3
GGUF_TEXT = 8
GGUF_U32 = 4
# ggml's number for the present meaning of its quantised blocks.
QUANTISATION_VERSION = 2
# What the engine calls an embedding, a time or size conditioner: small, and kept as they are by its own
# converter.
KEPT_PARTS = (
    "embedding", "time_embed.", "label_emb.", "pos_embed",
    "x_embedder.", "t_embedder.", "y_embedder.", "context_embedder.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor with its type and its place behind the header; `padding_bytes` follow it."""

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
    tensors: Sequence[tuple[str, tuple[int, ...]]], weight_type: str, *, architecture: str, title: str
) -> Layout:
    """A GGUF file: matrices quantised, every tensor aligned."""
    metadata = [
        _text("general.architecture") + struct.pack("<I", GGUF_TEXT) + _text(architecture),
        _text("general.name") + struct.pack("<I", GGUF_TEXT) + _text(title),
        _text("general.alignment") + struct.pack("<II", GGUF_U32, ALIGNMENT_BYTES),
        _text("general.quantization_version") + struct.pack("<II", GGUF_U32, QUANTISATION_VERSION),
    ]
    placed: list[Placed] = []
    infos: list[bytes] = []
    position = 0
    for name, shape in tensors:
        type_name = stored_type(name, shape, weight_type)
        size_bytes = _size_bytes(shape, type_name)
        placed.append(Placed(name, shape, type_name, size_bytes, -size_bytes % ALIGNMENT_BYTES))
        extents = shape[::-1] or (1,)
        infos.append(
            _text(name)
            + struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
            + struct.pack("<IQ", GGML_NUMBERS[type_name], position)
        )
        position += size_bytes + placed[-1].padding_bytes
    counts = struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(metadata))
    header = b"GGUF" + counts + b"".join(metadata) + b"".join(infos)
    return Layout(header + b"\0" * (-len(header) % ALIGNMENT_BYTES), tuple(placed))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _size_bytes(shape: tuple[int, ...], type_name: str) -> int:
    block = GGML_TYPES[GGML_NUMBERS[type_name]]
    return math.prod(shape) // block.block_count * block.block_bytes
