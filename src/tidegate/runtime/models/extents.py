"""Extents: where in its files each component of an image model lies.

Owns that map, made of headers alone. It is advice for reading ahead: a tensor that no rule knows is left out,
and is read when the component is loaded. Which file plays which role is the neighbour `assembly`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate.core.stage import Component
from tidegate.runtime.models.assembly import ImageFiles
from tidegate.runtime.models.identity import (
    DIFFUSION_PREFIXES,
    TAESD_PREFIXES,
    TEXT_PREFIXES,
    VAE_PREFIXES,
)
from tidegate.runtime.models.model_file import ModelFile, Tensor

# Tensors that lie this near to each other are read in one go.
GAP_BYTES_MAX: Final = 1 << 20
ENCODER_ROLES: Final = ("clip_l", "clip_g", "t5xxl", "llm")
_INSIDE: Final[Mapping[Component, tuple[str, ...]]] = {
    Component.TEXT_ENCODER: TEXT_PREFIXES,
    Component.DIFFUSION: DIFFUSION_PREFIXES,
    Component.VAE: (*VAE_PREFIXES, *TAESD_PREFIXES),
}
_ALONE: Final[Mapping[Component, tuple[str, ...]]] = {
    Component.TEXT_ENCODER: ENCODER_ROLES,
    Component.DIFFUSION: ("diffusion_model",),
    # The smaller decoder is used where both are given.
    Component.VAE: ("taesd", "vae"),
}


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file."""

    path: Path
    offset_bytes: int
    size_bytes: int


def extents_of(files: ImageFiles) -> dict[Component, tuple[Extent, ...]]:
    """Where the bytes of each component are."""
    return {component: tuple(_of(files, component)) for component in Component}


def _of(files: ImageFiles, component: Component) -> list[Extent]:
    alone = [files.models[role].file for role in _ALONE[component] if role in files.models]
    if component is not Component.TEXT_ENCODER:
        alone = alone[:1]
    found = [extent for file in alone for extent in merged(file.path, file.tensors)]
    main = files.models.get("model")
    # A text encoder in a file of its own stands beside those of the checkpoint, others in its place.
    if main is not None and (not found or component is Component.TEXT_ENCODER):
        found += merged(main.file.path, _inside(main.file, _INSIDE[component]))
    return found


def _inside(file: ModelFile, prefixes: tuple[str, ...]) -> list[Tensor]:
    return [tensor for tensor in file.tensors if tensor.name.startswith(prefixes)]


def merged(path: Path, tensors: Iterable[Tensor]) -> list[Extent]:
    """The runs of bytes that hold these tensors, in the order of the file."""
    runs: list[list[int]] = []
    for tensor in sorted(tensors, key=lambda one: one.offset_bytes):
        end_bytes = tensor.offset_bytes + tensor.size_bytes
        if runs and tensor.offset_bytes - runs[-1][1] <= GAP_BYTES_MAX:
            runs[-1][1] = max(runs[-1][1], end_bytes)
        else:
            runs.append([tensor.offset_bytes, end_bytes])
    return [Extent(path, begin, end - begin) for begin, end in runs]


def bytes_of(extents: Sequence[Extent]) -> int:
    """How many bytes these are."""
    return sum(extent.size_bytes for extent in extents)
