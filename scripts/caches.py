"""Where things that can be made again are kept, and how their names are found.

Owns: the cache folder's layout, content hashes of parts of the tree, replacing a folder in one step, pruning.
Does not own: what is made (build_native.py, demo_models.py) nor when (bootstrap.py). Standard library only,
because it runs before anything is installed.

    <cache>/sources/<sha256>/    engine sources           native/fetch_sources.py
    <cache>/native/<key>/        finished native wheels   build_native.py
    <cache>/native-build/<key>/  its object files         build_native.py
    <cache>/build-env/<key>/     cmake, ninja, nanobind   build_native.py
    <cache>/models/<kind>-<key>/ synthetic checkpoints    demo_models.py
    <cache>/setup/<key>          a lock for each tree     bootstrap.py
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
IGNORED_FOLDERS = frozenset({"__pycache__", ".venv", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"})


def cache_folder() -> Path:
    """$TIDEGATE_CACHE, else $XDG_CACHE_HOME/tidegate, else ~/.cache/tidegate.

    The rule is written once, in native/fetch_sources.py, which must work from a source distribution of its
    own.
    """
    spec = importlib.util.spec_from_file_location("fetch_sources", TREE / "native" / "fetch_sources.py")
    assert spec is not None and spec.loader is not None
    fetch_sources = importlib.util.module_from_spec(spec)
    # A dataclass looks its own module up by name while it is being made.
    sys.modules[spec.name] = fetch_sources
    spec.loader.exec_module(fetch_sources)
    return Path(fetch_sources.cache_folder())


def digest(parts: Iterable[str]) -> str:
    """A short name for these parts, in this order."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.encode())
        hashed.update(b"\0")
    return hashed.hexdigest()[:20]


def digest_of_files(*roots: Path, without: Iterable[Path] = ()) -> str:
    """The content hash of files and folders of the tree, by relative path; a missing one counts as empty."""
    left_out = tuple(without)
    parts = []
    for root in roots:
        for path in sorted(files_under(root)):
            if any(path.is_relative_to(folder) for folder in left_out):
                continue
            parts += [path.relative_to(TREE).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
    return digest(parts)


def files_under(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in IGNORED_FOLDERS]
        yield from (Path(folder, name) for name in names)


@contextlib.contextmanager
def made_in_one_step(target: Path) -> Iterator[Path]:
    """Gives an empty folder to fill and renames it to `target` if that went well: complete, or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield scratch
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock at `path` against other processes; the kernel gives it back whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def keep_newest(folders: Iterable[Path], kept_max: int) -> None:
    """Deletes all but the `kept_max` most recently used folders (their time is set on every use)."""
    by_use = sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in by_use[kept_max:]:
        shutil.rmtree(folder, ignore_errors=True)
