"""The checkup: what of this machine helps or hinders tidegate, and what to do about it.

Owns the findings of `tidegate doctor`: driver, cards, engines, memory, disk, limits, settings and models.
Each is looked at by itself, so that one that fails hides no other. Nothing is changed and no card is used;
that the recovery works is shown by the neighbour `proof`.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import platform
import resource
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate import __version__
from tidegate.core.faults import ClientError, Fault
from tidegate.core.quantity import GIB, MIB, size_text
from tidegate.runtime import children
from tidegate.runtime.cards import drm, nvml
from tidegate.runtime.cards.memory import read_host_memory
from tidegate.runtime.registry import gathered
from tidegate.runtime.settings import Settings
from tidegate.runtime.settings_file import models_folder_of, state_folder_of
from tidegate.runtime.site import BUILD_FOR_CARD
from tidegate.runtime.worker import CommandFailed, ImageWorker, WorkerLost
from tidegate.wire.messages import Surveyed

# Workers, their pipes and files, and 512 connections.
DESCRIPTORS_MIN: Final = 1_024
# Embeddings, a tape and the pixels of one large image.
DISK_MIN_BYTES: Final = 2 * GIB
RAM_MIN_BYTES: Final = 2 * GIB
DEVICE_NODES: Final = ("/dev/nvidia0", "/dev/kfd")


class Level(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do, and is empty when there is nothing to do."""

    topic: str
    level: Level
    text: str
    remedy: str = ""


def checkup(settings: Settings) -> Iterator[Finding]:
    """Look at everything, one thing after the other. Takes a few seconds: the engine is asked in a child."""
    yield _system()
    surveyed = _surveyed()
    yield surveyed[0]
    yield from _drivers()
    yield from _devices(surveyed[1])
    yield _ram()
    yield from _disk(settings)
    yield from _limits()
    yield from _listening(settings)
    yield from _models(settings)


def _ok(topic: str, text: str) -> Finding:
    return Finding(topic=topic, level=Level.OK, text=text)


def _note(topic: str, text: str, remedy: str = "") -> Finding:
    return Finding(topic=topic, level=Level.NOTE, text=text, remedy=remedy)


def _bad(topic: str, text: str, remedy: str) -> Finding:
    return Finding(topic=topic, level=Level.BAD, text=text, remedy=remedy)


def _system() -> Finding:
    text = (
        f"tidegate {__version__}, {platform.system()} {platform.release()}, {platform.machine()}, "
        f"Python {platform.python_version()}"
    )
    if sys.platform != "linux":
        return _bad("system", f"{text}: only Linux is supported.", "Run it on Linux.")
    return _ok("system", text)


def _surveyed() -> tuple[Finding, Surveyed | None]:
    """What the engine says of itself, in a child as always."""
    if importlib.util.find_spec("tidegate_engines") is None:
        remedy = "Build them with: make setup"
        return _bad("engines", "The native engines are not installed.", remedy), None
    worker = None
    try:
        worker = ImageWorker.start()
        surveyed = worker.survey()
    except (WorkerLost, CommandFailed, Fault, children.Undead) as error:
        ending = error.ending.last_lines[-1:] if isinstance(error, WorkerLost) else ()
        why = "; ".join([str(error), *ending])
        remedy = "Build them anew with: make setup"
        return _bad("engines", f"The engines do not start: {why}.", remedy), None
    finally:
        if worker is not None:
            worker.end()
    return _ok("engines", worker.engine_build), surveyed


def _drivers() -> Iterator[Finding]:
    opened = nvml.open_nvml()
    if isinstance(opened, nvml.Nvml):
        with opened:
            for number in range(opened.card_count()):
                found, use = opened.descriptor(number), opened.use(number)
                seen = f"{found.name}: {size_text(use.free_bytes)} of {size_text(use.total_bytes)} free"
                others = len(use.process_bytes)
                yield _ok("driver", f"{seen}, {others} processes on it, seen {found.sight.value}")
    elif Path("/dev/nvidia0").exists():
        remedy = "Install the package nvidia-ml-py and check that `nvidia-smi` works."
        yield _note("driver", f"There is an NVIDIA card, but {opened.reason}.", remedy)
    for card in drm.find_cards():
        found = drm.describe(card, device="")
        yield _ok("driver", f"{found.name}: {size_text(found.total_bytes)}, seen {found.sight.value}")
    nodes = [*map(Path, DEVICE_NODES), *sorted(Path("/dev/dri").glob("renderD*"))]
    for node in nodes:
        if node.exists() and not os.access(node, os.R_OK | os.W_OK):
            remedy = "Add yourself to the groups render and video, and log in again."
            yield _bad("driver", f"{node} may not be used by this user.", remedy)


def _devices(surveyed: Surveyed | None) -> Iterator[Finding]:
    if surveyed is None:
        return
    cards = [device for device in surveyed.devices if device.type == "gpu"]
    for device in cards:
        yield _ok("card", f"the engine sees {device.name}: {device.description}")
    if not cards:
        remedy = f"For a card, build the engines for it, such as: {BUILD_FOR_CARD}"
        yield _note(
            "card", "The engine sees no card; everything runs on the CPU, which takes longer.", remedy
        )


def _ram() -> Finding:
    host = read_host_memory()
    text = f"{size_text(host.available_bytes)} of {size_text(host.total_bytes)} available"
    if host.limited_by != "machine":
        text += f", limited by the control group {host.limited_by}"
    if host.available_bytes < RAM_MIN_BYTES:
        return _bad("RAM", text, f"Free memory: less than {size_text(RAM_MIN_BYTES)} holds no model.")
    return _ok("RAM", text)


def _disk(settings: Settings) -> Iterator[Finding]:
    state = state_folder_of(settings)
    place = _existing(state)
    free_bytes = shutil.disk_usage(place).free
    text = f"state folder {state}: {size_text(free_bytes)} free"
    if not os.access(place, os.W_OK):
        yield _bad("disk", f"The state folder {state} cannot be written.", "Choose another with --state.")
    elif free_bytes < DISK_MIN_BYTES:
        yield _bad("disk", text, "Free disk space, or choose another folder with --state.")
    else:
        yield _ok("disk", text)
    if state.is_dir() and stat.S_IMODE(state.stat().st_mode) & 0o077:
        yield _bad("disk", f"Others may look into {state}.", f"chmod 700 {state}")
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    if shared is not None and shared.free < 64 * MIB:
        yield _note("disk", f"/dev/shm has only {size_text(shared.free)} free.", "Make it larger.")


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS_MIN:
        yield _bad("limits", f"Only {soft} files may be open.", f"ulimit -n {min(hard, 65_536)}")
    else:
        yield _ok("limits", f"{soft} files may be open")
    for name, kind in (("address space", resource.RLIMIT_AS), ("data", resource.RLIMIT_DATA)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            text = (
                f"The {name} of a process is limited to {size_text(limit)}, which the planner does not know."
            )
            yield _note("limits", text, "ulimit -v unlimited; use limit_bytes under [ram] instead.")


def _listening(settings: Settings) -> Iterator[Finding]:
    listen = settings.listen
    who = "this machine" if listen.is_loopback else "other machines"
    keys = f"{len(listen.keys)} keys" if listen.keys else "no key needed"
    yield _ok("listen", f"{listen.host} port {listen.port}: {who}, {keys}")


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        registry = gathered(settings)
    except ClientError as fault:
        yield _bad("models", fault.message, fault.remedy)
        return
    for entry in registry.entries.values():
        mark = ", the default" if entry.name == registry.default else ""
        files = ", ".join(f"{role} {path.name}" for role, path in entry.files.items())
        yield _ok("models", f"{entry.name}: {entry.family}{mark} ({files})")
    for name, why in registry.refused:
        yield _note("models", f"{name} cannot be used: {why}")
    if not registry.entries:
        folder = models_folder_of(settings)
        yield _bad(
            "models",
            f"There is no image model in {folder}.",
            "Put one there, or name a folder with --models.",
        )


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
