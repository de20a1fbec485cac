"""Fetches the pinned C++ sources of an engine into the cache and prints where they are.

Owns: download (by pip, from whatever package index pip is configured for), the hash check, unpacking.
Does not own: which version is pinned (engine-sources.txt, here and in llama/), nor the build
(CMakeLists.txt).

Interface, for CMake and for people. Standard library and pip only; any Python 3.11+ that can import `pip` and
`scikit_build_core` (pip asks the source distribution for its metadata, and that needs its build backend).

    python fetch_sources.py [image | llama]

    stdout  exactly one line: the absolute path of the unpacked `vendor/stable-diffusion.cpp` (or `llama.cpp`)
    stderr  what it is doing; nothing when the sources are already in the cache
    exit    0, or 1 with one line on stderr that names the problem and the remedy

In CMake:

    execute_process(
        COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/fetch_sources.py
        OUTPUT_VARIABLE TIDEGATE_SD_SOURCES OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

The sources lie in `<cache>/sources/<sha256 of the sdist>/`, where `<cache>` is $TIDEGATE_CACHE, else
$XDG_CACHE_HOME/tidegate, else ~/.cache/tidegate. They are unpacked beside that folder and renamed into place,
so that the folder exists completely or not at all, whoever was killed or ran at the same time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """What is pinned where, which folder of the sdist has the sources, and what else of it is wanted."""

    pins: Path
    sources: str
    bindings: str
    option: str


ENGINES = {
    "image": Engine(HERE / "engine-sources.txt", "vendor/stable-diffusion.cpp", "", "TIDEGATE_SD_SOURCES"),
    # The bindings come along, because only those of the same release fit the sources.
    "llama": Engine(
        HERE / "llama" / "engine-sources.txt", "vendor/llama.cpp", "llama_cpp", "TIDEGATE_LLAMA_SOURCES"
    ),
}


class FetchError(Exception):
    """The sources could not be had; the message is one line with its remedy."""


def cache_folder() -> Path:
    """The folder of everything tidegate can make again; scripts/caches.py follows the same rule."""
    if named := os.environ.get("TIDEGATE_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "tidegate"


def pinned_sha256(pins: Path) -> str:
    hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", pins.read_text(encoding="utf-8"))
    if len(hashes) != 1:
        raise FetchError(f"{pins.name} must pin exactly one sha256, it has {len(hashes)}")
    return str(hashes[0])


def download(engine: Engine, into: Path) -> Path:
    """Lets pip download the pinned sdist; a wrong hash is refused before any of its code runs."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "--require-hashes", "-r", str(engine.pins)]
    ended = subprocess.run([*command, "-d", str(into)], stdout=sys.stderr, check=False)
    archives = sorted(into.glob("*.tar.gz"))
    if ended.returncode != 0 or len(archives) != 1:
        raise FetchError(
            f"pip could not download the sources pinned in {engine.pins.name} (exit {ended.returncode}); "
            "check the network and pip's index settings, or name unpacked sources with "
            f"CMAKE_ARGS=-D{engine.option}=<folder>"
        )
    return archives[0]


def verify(archive: Path, sha256: str) -> None:
    with archive.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise FetchError(f"{archive.name} has sha256 {found}, pinned is {sha256}; do not use it")


def wanted(engine: Engine, inner: str) -> bool:
    folders = (engine.sources, engine.bindings) if engine.bindings else (engine.sources,)
    return any(inner.startswith(folder + "/") for folder in folders)


def unpack(archive: Path, engine: Engine, *, into: Path) -> None:
    """Unpacks only the engine's own sources, without the sdist's top folder, and only plain files.

    Written out by hand, because tarfile's extraction filters are missing from the first releases of Python
    3.11.
    """
    with tarfile.open(archive) as opened:
        for member in opened:
            _, _, inner = member.name.partition("/")
            if not member.isfile() or not wanted(engine, inner):
                continue
            if ".." in inner.split("/"):
                raise FetchError(f"{archive.name} holds the path {member.name!r}; do not use it")
            content = opened.extractfile(member)
            if content is None:
                raise FetchError(f"{archive.name} holds no bytes for {member.name!r}; do not use it")
            place = into / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            with content, place.open("wb") as written:
                shutil.copyfileobj(content, written)


def fetch(engine: Engine) -> Path:
    sha256 = pinned_sha256(engine.pins)
    home = cache_folder() / "sources"
    target = home / sha256
    sources = target / engine.sources
    if sources.is_dir():
        return sources
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetching-") as scratch:
        print("fetching the pinned engine sources (some 20 MB, once)", file=sys.stderr, flush=True)
        archive = download(engine, Path(scratch))
        verify(archive, sha256)
        unpacked = Path(scratch, "unpacked")
        unpack(archive, engine, into=unpacked)
        if not (unpacked / engine.sources / "CMakeLists.txt").is_file():
            raise FetchError(
                f"{archive.name} holds no {engine.sources}; {engine.pins.name} pins another package"
            )
        try:
            unpacked.rename(target)
        except OSError:
            # Another process was faster; its folder has the same content, because the name is the hash.
            if not sources.is_dir():
                raise
    return sources


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fetches an engine's pinned sources and prints where they are."
    )
    parser.add_argument("engine", nargs="?", default="image", choices=sorted(ENGINES))
    asked = parser.parse_args()
    try:
        print(fetch(ENGINES[asked.engine]))
    except (FetchError, OSError, tarfile.TarError) as failure:
        print(f"fetch_sources: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
