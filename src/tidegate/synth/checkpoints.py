"""Synthetic checkpoints: which files a named one has, and writing them so that no half file is ever seen.

Owns the list of checkpoints and the writing: streamed in pieces, into a temporary file beside the target,
fsynced and renamed. Names and shapes come from `shapes`, numbers from `weights`, headers from `layouts`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tidegate.core.faults import CapacityError, ClientError
from tidegate.core.quantity import size_text
from tidegate.synth.language import LANGUAGE_RECIPES, language_layout
from tidegate.synth.layouts import Layout, gguf_layout, safetensors_layout
from tidegate.synth.projectors import projector_layout
from tidegate.synth.quantising import PACKED_TYPES
from tidegate.synth.shapes import ask_engine
from tidegate.synth.weights import WeightPool

Progress = Callable[[str, int, int], None]
"""Called with a file name, the bytes written and the bytes it will have."""

PLAIN_TYPE = "f16"
WEIGHT_TYPES = (PLAIN_TYPE, *PACKED_TYPES)
TINY_DECODER = "taesd"
# T5-XXL alone is 9.5 GB; the engine conditions SD3 on the two CLIP encoders when it is absent.
LEFT_OUT = ".t5xxl."


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named checkpoint: its components in one file, and whether a TAESD is written beside it."""

    architecture: str
    components: tuple[str, ...]
    with_taesd: bool = False


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "sd1-tiny": Recipe("sd1", ("text_encoder", "diffusion"), with_taesd=True),
        "sd15": Recipe("sd1", ("text_encoder", "diffusion", "vae")),
        "sdxl": Recipe("sdxl", ("text_encoder", "diffusion", "vae")),
        "sd3": Recipe("sd3", ("text_encoder", "diffusion", "vae")),
    }
)

NAMES = (*RECIPES, *LANGUAGE_RECIPES)
SHORT_NAMES: Mapping[str, str] = MappingProxyType({"llama": "llama-100m"})


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file to write."""

    path: Path
    layout: Layout


def synthesise(
    name: str,
    folder: Path,
    *,
    weight_type: str = PLAIN_TYPE,
    sparse: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the files of a named checkpoint into a folder and return their paths, the checkpoint first.

    A sparse file has the true header and the true length, and zeros that take no space on the disk.
    """
    planned = plan_files(name, folder, weight_type=weight_type)
    prepare_folder(folder, needed_bytes=0 if sparse else sum(file.layout.size_bytes for file in planned))
    pool = None if sparse else WeightPool(seed)
    for file in planned:
        write_file(file, pool, progress=progress or (lambda *_: None))
    return [file.path for file in planned]


def plan_files(name: str, folder: Path, *, weight_type: str = PLAIN_TYPE) -> list[PlannedFile]:
    """The files a checkpoint would have, with their layouts; writes nothing."""
    named = SHORT_NAMES.get(name, name)
    if named not in NAMES:
        raise ClientError(
            f"There is no synthetic checkpoint named '{name}'.",
            remedy=f"Known are {', '.join(NAMES)}.",
            code="unknown_checkpoint",
        )
    known = {known_type.lower(): known_type for known_type in WEIGHT_TYPES}
    if weight_type.lower() not in known:
        raise ClientError(
            f"Synthetic weights cannot be written as '{weight_type}'.",
            remedy=f"Known types are {', '.join(WEIGHT_TYPES)}.",
            code="unknown_weight_type",
        )
    stored = known[weight_type.lower()]
    if named in LANGUAGE_RECIPES:
        return _plan_language(named, folder, stored)
    return _plan_image(named, folder, stored)


def _plan_language(name: str, folder: Path, stored: str) -> list[PlannedFile]:
    recipe = LANGUAGE_RECIPES[name]
    suffix = "" if stored == PLAIN_TYPE else f"-{stored}"
    planned = [PlannedFile(folder / f"{name}{suffix}.gguf", language_layout(name, stored))]
    if recipe.projector:
        title = f"{name}-mmproj"
        planned.append(PlannedFile(folder / f"{title}.gguf", projector_layout(title, recipe)))
    return planned


def _plan_image(name: str, folder: Path, stored: str) -> list[PlannedFile]:
    recipe = RECIPES[name]
    decoder = (TINY_DECODER,) if recipe.with_taesd else ()
    answer = ask_engine(name, (*recipe.components, *decoder))
    tensors = [(t.name, t.shape) for c in recipe.components for t in answer[c] if LEFT_OUT not in t.name]
    if stored == PLAIN_TYPE:
        main = PlannedFile(folder / f"{name}.safetensors", safetensors_layout(tensors, stored))
    else:
        title = f"{name} (synthetic)"
        layout = gguf_layout(tensors, stored, architecture=recipe.architecture, title=title)
        main = PlannedFile(folder / f"{name}-{stored}.gguf", layout)
    beside = [(t.name.removeprefix("tae."), t.shape) for c in decoder for t in answer[c]]
    if not beside:
        return [main]
    return [main, PlannedFile(folder / f"{TINY_DECODER}.safetensors", safetensors_layout(beside, PLAIN_TYPE))]


def prepare_folder(folder: Path, *, needed_bytes: int) -> None:
    """Make the folder and see that its disk has room; raises `ClientError` or `CapacityError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        # No permission, a file in the way, a read-only disk: all for the user to mend.
        raise _unwritable(folder, error) from error
    if needed_bytes > free_bytes:
        raise _full(folder, needed_bytes=needed_bytes, free_bytes=free_bytes)


def write_file(file: PlannedFile, pool: WeightPool | None, *, progress: Progress) -> None:
    """Write one file, whole or not at all; without a pool it is sparse."""
    partial = file.path.with_name(f".{file.path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            out.write(file.layout.header)
            if pool is None:
                out.truncate(file.layout.size_bytes)
            else:
                _write_tensors(out.write, file, pool, progress)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file.path)
        _sync_folder(file.path.parent)
    except OSError as error:
        # A full disk is the likely one; anything else is told by its own words.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_bytes = shutil.disk_usage(file.path.parent).free
            raise _full(
                file.path.parent, needed_bytes=file.layout.size_bytes, free_bytes=free_bytes
            ) from error
        raise _unwritable(file.path, error) from error
    finally:
        partial.unlink(missing_ok=True)
    progress(file.path.name, file.layout.size_bytes, file.layout.size_bytes)


def _write_tensors(
    write: Callable[[memoryview | bytes], int], file: PlannedFile, pool: WeightPool, progress: Progress
) -> None:
    written_bytes = len(file.layout.header)
    for tensor in file.layout.tensors:
        for piece in pool.pieces(tensor.name, tensor.shape, tensor.type_name):
            written_bytes += write(piece)
            progress(file.path.name, written_bytes, file.layout.size_bytes)
        written_bytes += write(b"\0" * tensor.padding_bytes)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> ClientError:
    return ClientError(
        f"{path} cannot be written: {error.strerror or type(error).__name__}.",
        remedy="Choose another folder.",
        code="unwritable",
    )


def _full(folder: Path, *, needed_bytes: int, free_bytes: int) -> CapacityError:
    return CapacityError(
        f"The disk of {folder} is too full: {size_text(needed_bytes)} are needed,"
        f" {size_text(free_bytes)} are free.",
        remedy="Free some space, choose another folder, or use --sparse where only headers matter.",
        code="disk_full",
        needed_bytes=needed_bytes,
        available_bytes=free_bytes,
    )
