"""Builds a native wheel, or takes it from the cache, and prints its path.

There are two, each under a key of its own, so that a change in one engine does not compile the other:
`tidegate-engines` (images: native/) and `tidegate-llama` (language: native/llama/).

Owns: the key under which a build is cached, the build environment, parallelism, progress.
Does not own: what is compiled (native/CMakeLists.txt) and from which sources (native/fetch_sources.py).

    python scripts/build_native.py [image | llama]    stdout: one line, the wheel's path; stderr: progress
    python scripts/build_native.py llama --key        only prints the key

The key covers everything that can change the result: the engine's files in native/ (the pin of its sources
among them), the locked build tools, compiler flags and CMAKE_ARGS, the compilers' versions, the CPU's
features (the engine is compiled for the CPU it runs on) and the Python it is for. CMAKE_ARGS chooses a
backend as users of these engines know it, for instance CMAKE_ARGS=-DSD_CUDA=ON.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import caches

NATIVE = caches.TREE / "native"
LOCK = caches.TREE / "requirements" / "native.txt"
FLAG_VARIABLES = (
    "CMAKE_ARGS",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "LDFLAGS",
    "CUDACXX",
    "CUDAFLAGS",
    "CUDA_HOME",
)
# One translation unit of the engine's C++ takes up to 1.3 GB in the compiler (gcc 12, -O3).
RAM_PER_JOB_BYTES = 1_500_000_000
WHEELS_KEPT_MAX = 12
PROGRESS = re.compile(r"^\[(\d+)/(\d+)\]")
HOOK = "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1])"


@dataclass(frozen=True)
class Part:
    """One of the two wheels: its project, the files of the tree that decide what is in it, and its pin."""

    project: Path
    covers: tuple[Path, ...]
    without: tuple[Path, ...]
    pins: Path
    says: str

    def digest(self) -> str:
        return caches.digest_of_files(*self.covers, without=self.without)


LLAMA = NATIVE / "llama"
LLAMA_MODULE = NATIVE / "tidegate_engines" / "llama"
PARTS = {
    "image": Part(
        project=NATIVE,
        covers=(NATIVE,),
        without=(LLAMA, LLAMA_MODULE),
        pins=NATIVE / "engine-sources.txt",
        says="the image engine",
    ),
    "llama": Part(
        project=LLAMA,
        covers=(LLAMA, LLAMA_MODULE, NATIVE / "vcard", NATIVE / "fetch_sources.py"),
        without=(),
        pins=LLAMA / "engine-sources.txt",
        says="the language engine",
    ),
}


class BuildError(Exception):
    """The native part could not be built; the message is for people and holds the remedy."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compiler_versions() -> list[str]:
    """First line of each compiler's --version: a new compiler is a new build."""
    versions = []
    commands = [os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")]
    if "CUDA" in os.environ.get("CMAKE_ARGS", ""):
        commands.append(os.environ.get("CUDACXX", "nvcc"))
    for command in commands:
        program = shlex.split(command)[0]
        found = shutil.which(program)
        if found is None:
            raise BuildError(
                f"there is no compiler {program!r}; install a C and C++ compiler, or set CC and CXX"
            )
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        # nvcc names its release in the last lines, the others in the first.
        versions.append(shown.stdout if "nvcc" in program else shown.stdout.partition("\n")[0])
    return versions


def cpu_features() -> str:
    """What the compiler's `native` may use, in a stable order."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    return platform.processor()


def toolchain() -> list[str]:
    """Everything but the sources that decides what comes out."""
    flags = [f"{name}={os.environ.get(name, '')}" for name in FLAG_VARIABLES]
    # The suffix names the interface: a wheel for 3.11.2 is one for 3.11.9.
    python = [str(sysconfig.get_config_var("EXT_SUFFIX")), platform.machine()]
    return [*flags, *python, *compiler_versions(), cpu_features(), caches.digest_of_files(LOCK)]


def ram_bytes() -> int:
    """RAM this process may use: the machine's available bytes, or the control group's limit if less."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return available


def job_count() -> int:
    return max(1, min(len(os.sched_getaffinity(0)), ram_bytes() // RAM_PER_JOB_BYTES))


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise BuildError("uv is not installed; `make setup` does that first")
    return found


def build_environment() -> Path:
    """A virtual environment with the locked build tools; returns its Python."""
    home = (
        caches.cache_folder()
        / "build-env"
        / caches.digest([caches.digest_of_files(LOCK), sys.version, sys.base_prefix])
    )
    python = home / "bin" / "python"
    ready = home / "ready"
    if not ready.exists():
        say("installing the build tools (cmake, ninja, nanobind, scikit-build-core)")
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=False, symlinks=True)
        sync = [uv(), "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(LOCK)]
        subprocess.run(sync, check=True, cwd=caches.TREE, stdout=sys.stderr)
        ready.touch()
    return python


def require_headers() -> None:
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise BuildError(
            "the headers of this Python are missing; install them (Debian and Ubuntu: python3-dev)"
        )
    if not (LLAMA / "CMakeLists.txt").is_file():
        raise BuildError(f"{LLAMA} holds no CMakeLists.txt; this checkout is incomplete")


class Progress:
    """Ninja's `[n/m]` lines as one line that moves on a terminal, and as a line every 30 s elsewhere."""

    EVERY_S = 30.0

    def __init__(self, log: Path) -> None:
        self._log = log
        self._began = time.monotonic()
        self._shown = self._began
        self._moving = sys.stderr.isatty()

    def show(self, line: str) -> None:
        found = PROGRESS.match(line)
        if found is None:
            return
        now = time.monotonic()
        text = f"  compiled {found[1]} of {found[2]} files, {now - self._began:.0f} s"
        if self._moving:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        elif now - self._shown >= self.EVERY_S:
            self._shown = now
            say(text)

    def end(self) -> float:
        if self._moving:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return time.monotonic() - self._began


def run_build(part: Part, python: Path, *, wheel_folder: Path, build_folder: Path) -> None:
    """Runs the build backend, shows its progress, keeps its whole output in a log."""
    jobs = job_count()
    environment = dict(os.environ)
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["SKBUILD_BUILD_DIR"] = str(build_folder)
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = str(jobs)
    environment.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    log = build_folder.with_suffix(".log")
    say(f"compiling {part.says}, {jobs} files at a time (minutes the first time; log: {log})")
    progress = Progress(log)
    last_lines: deque[str] = deque(maxlen=60)
    command = [str(python), "-c", HOOK, str(wheel_folder)]
    with (
        log.open("w", encoding="utf-8") as written,
        subprocess.Popen(
            command,
            cwd=part.project,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as building,
    ):
        assert building.stdout is not None
        for line in building.stdout:
            written.write(line)
            last_lines.append(line)
            progress.show(line)
    seconds = progress.end()
    if building.returncode != 0:
        raise BuildError(
            f"{''.join(last_lines)}\nthe native build failed after {seconds:.0f} s; whole log: {log}"
        )
    say(f"compiled in {seconds:.0f} s")


def build_folder_for(part: Part, tools: list[str]) -> Path:
    """Object files are kept per tree and toolchain, so that a changed file compiles only what includes it."""
    home = caches.cache_folder() / "native-build"
    home.mkdir(parents=True, exist_ok=True)
    for marker in home.glob("*.tree"):
        # A folder whose tree is gone (a deleted clone) can never be used again.
        if not Path(marker.read_text(encoding="utf-8"), "native").is_dir():
            shutil.rmtree(marker.with_suffix(""), ignore_errors=True)
            marker.with_suffix(".log").unlink(missing_ok=True)
            marker.unlink()
    # CMake remembers where the fetched sources and the headers of Python are, so others get another folder.
    pin = caches.digest_of_files(part.pins)
    folder = home / caches.digest([str(part.project), pin, sys.base_prefix, *tools])
    folder.with_suffix(".tree").write_text(str(caches.TREE), encoding="utf-8")
    return folder


def finished_wheel(home: Path) -> Path | None:
    wheels = sorted(home.glob("*.whl"))
    if not wheels:
        return None
    os.utime(home)
    return wheels[0]


def native_wheel(part: Part) -> Path:
    tools = toolchain()
    key = key_of(part, tools)
    home = caches.cache_folder() / "native" / key
    if (wheel := finished_wheel(home)) is not None:
        return wheel
    require_headers()
    build_folder = build_folder_for(part, tools)
    with caches.locked(build_folder.with_suffix(".lock")):
        if (wheel := finished_wheel(home)) is not None:
            return wheel
        with caches.made_in_one_step(home) as scratch:
            run_build(part, build_environment(), wheel_folder=scratch, build_folder=build_folder)
            if key_of(part, tools) != key:
                raise BuildError(
                    "native/ was changed while it was compiled; run it again, most is compiled already"
                )
        caches.keep_newest((path for path in home.parent.iterdir() if path.is_dir()), WHEELS_KEPT_MAX)
    wheel = finished_wheel(home)
    if wheel is None:
        raise BuildError(f"the build backend wrote no wheel into {home}")
    return wheel


def key_of(part: Part, tools: list[str]) -> str:
    return caches.digest([*tools, part.digest()])


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds a native wheel, or takes it from the cache.")
    parser.add_argument("part", nargs="?", default="image", choices=sorted(PARTS))
    parser.add_argument("--key", action="store_true", help="only print the key of this build")
    wanted = parser.parse_args()
    part = PARTS[wanted.part]
    try:
        print(key_of(part, toolchain()) if wanted.key else native_wheel(part))
    except (BuildError, OSError, subprocess.CalledProcessError) as failure:
        say(f"build_native: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
