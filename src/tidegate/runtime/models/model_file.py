"""Model files as data: what a header says, and nothing about what it means.

Owns `ModelFile` and its parts, and the limits every header reader keeps. It does not read files (neighbours
`safetensors_header` and `gguf_header`) and does not name what a file is good for (neighbour `identity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

# Limits on what a header may ask of us. The largest headers in the wild stay far below: SDXL has 2,600
# tensors and 0.3 MB of JSON; a language model with a vocabulary of 262k tokens has 16 MB of header and 800k
# list entries.
SAFETENSORS_HEADER_MAX_BYTES = 8 * 2**20
GGUF_HEADER_MAX_BYTES = 128 * 2**20
GGUF_LIST_ENTRIES_MAX = 2_000_000
TENSORS_MAX = 100_000
METADATA_ENTRIES_MAX = 20_000
NAME_MAX_BYTES = 1024
DIMENSIONS_MAX = 8
ELEMENTS_MAX = 2**48


class Format(Enum):
    """How the tensors are stored."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: `shape` in torch order (slowest first), `offset_bytes` from the start of the
    file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MetadataList:
    """A list in the metadata: its type and length. The entries (a vocabulary, mostly) stay in the file."""

    element_type: str
    count: int


MetadataValue = str | int | float | bool | MetadataList


@dataclass(frozen=True)
class ModelFile:
    """A model file whose header was read and found sound: every tensor lies inside the file, none overlap."""

    path: Path
    format: Format
    size_bytes: int
    header_bytes: int
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        """The tensors by their names in the file."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @cached_property
    def dtypes(self) -> Mapping[str, int]:
        """How many tensors there are of each type, most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def metadata_text(self, key: str) -> str:
        """The metadata entry if it is a text, else an empty text."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs for the second time, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
