"""The shelf: model files opened and identified, one by one or as a folder of them.

Owns `Model` (a file with its identity), the scan of a models folder, and finding a model by what a user
typed. It decides nothing about which files belong together (neighbour `assembly`).
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.faults import ClientError
from tidegate.runtime.models import refusals
from tidegate.runtime.models.identity import Identity, identify
from tidegate.runtime.models.model_file import ModelFile
from tidegate.runtime.models.opening import SUFFIXES, read_model

SCANNED_FILES_MAX = 2_000
SCAN_DEPTH_MAX = 4


@dataclass(frozen=True, slots=True)
class Model:
    """A sound model file and what it is."""

    file: ModelFile
    identity: Identity

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.file.path

    @property
    def name(self) -> str:
        """How a user calls it: the file name without its ending."""
        return self.file.path.stem


@dataclass(frozen=True, slots=True)
class Shelf:
    """A models folder as it was found: its models by name, and the files that could not be read, with the
    reason.
    """

    folder: Path
    models: tuple[Model, ...]
    refused: tuple[tuple[Path, ClientError], ...] = ()
    complete: bool = True
    """False when the folder holds more than `SCANNED_FILES_MAX` model files and the rest was left out."""


def open_model(path: Path) -> Model:
    """Read and identify one file; raises `ClientError`."""
    file = read_model(path)
    return Model(file, identify(file))


def scan(folder: Path) -> Shelf:
    """Open every model file in a folder, four levels deep, in the order of their paths; reads headers
    only.
    """
    models: list[Model] = []
    refused: list[tuple[Path, ClientError]] = []
    paths = list(_model_paths(folder))
    for path in paths[:SCANNED_FILES_MAX]:
        try:
            models.append(open_model(path))
        except ClientError as fault:
            # One bad file must not hide the others; it is shown beside them.
            refused.append((path, fault))
    return Shelf(folder, tuple(models), tuple(refused), complete=len(paths) <= SCANNED_FILES_MAX)


def resolve(value: str, *, models_folder: Path | None = None) -> Model:
    """The model a user means by a path or by a name in the models folder; raises `ClientError` with the
    nearest names.

    A path wins over a name; a name is a file name with or without its ending, its case does not matter.
    """
    path = Path(value)
    with contextlib.suppress(RuntimeError):  # ~nobody: there is no such user, so it is a name like any other
        path = path.expanduser()
    if _exists(path):
        return open_model(path)
    if models_folder is not None and _exists(models_folder / path):
        return open_model(models_folder / path)
    if os.sep in value or models_folder is None:
        return _opened(path)
    return _named(value, models_folder)


def _opened(path: Path) -> Model:
    with contextlib.suppress(OSError, ValueError):  # opening it says in one sentence what is wrong
        there = {p.stem: p.name for p in sorted(path.parent.iterdir()) if p.suffix in SUFFIXES}
        near = [there[stem] for stem in nearest(path.stem, list(there))]
        if near:
            raise refusals.unknown_name(path.name, folder=path.parent, near=near, known=())
    return open_model(path)


def _named(value: str, folder: Path) -> Model:
    paths = list(_model_paths(folder))[:SCANNED_FILES_MAX]
    wanted = value.casefold()
    for path in paths:
        if wanted in (path.name.casefold(), path.stem.casefold()):
            return open_model(path)
    names = sorted({path.stem for path in paths})
    raise refusals.unknown_name(value, folder=folder, near=nearest(value, names), known=names)


def nearest(value: str, names: Sequence[str]) -> list[str]:
    """The names that a user may have meant, at most two, the nearest first."""
    folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(value.casefold()[:200], folded, n=2, cutoff=0.6)
    if not found:
        found = [name for name in folded if value.casefold() in name][:2]
    return [folded[name] for name in found]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # Too long for a file name, a NUL inside, or a folder we may not enter: as good as absent.
        return False


def _model_paths(folder: Path) -> Iterator[Path]:
    """Model files by ending, sorted, without hidden ones; links to files count, links to folders are not
    followed.
    """
    found: list[Path] = []
    for root, folders, files in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < SCAN_DEPTH_MAX)
        found += [Path(root, name) for name in files if not name.startswith(".") and name.endswith(SUFFIXES)]
        if len(found) > SCANNED_FILES_MAX:
            break
    yield from sorted(found)[: SCANNED_FILES_MAX + 1]
