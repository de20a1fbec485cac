"""Habits: kinds of nonsense that a process may say in the place of an answer.

Owns the bytes. Who says them is `nonsense`; that nothing comes of it is shown by `test_nonsense`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import msgspec
from tests.chaos import doubles

from tidegate.core.stage import Component
from tidegate.wire import frames, messages


def finished(serial: int, **changed: object) -> messages.StageFinished:
    honest: dict[str, object] = {
        "serial": serial, "stage": "denoise", "artifact": "", "sha256": "0" * 64, "ms": 1,
        "card_peak_bytes": 0, "ram_peak_bytes": 0,
    }  # fmt: skip
    return msgspec.convert({**honest, **changed}, type=messages.StageFinished)


def framed(message: object) -> bytes:
    return frames.encode_frame(msgspec.msgpack.encode(message))


def _deep(levels: int) -> bytes:
    return frames.encode_frame(b"\x91" * levels + b"\xc0")


# What is sent in the place of an answer to the command with this serial.
HABITS: dict[str, Callable[[int], bytes]] = {
    "noise": lambda serial: random.Random(serial).randbytes(70_000),
    "huge": lambda _serial: (1 << 31).to_bytes(4, "little") + b"x" * 100,
    "empty": lambda _serial: bytes(4),
    "text": lambda _serial: b"Traceback (most recent call last):\n" * 20,
    "unknown": lambda serial: framed({"kind": "wish", "serial": serial}),
    "untyped": lambda serial: framed({"kind": "loaded", "serial": str(serial)}),
    "list": lambda _serial: framed([1, 2, 3]),
    "deep": lambda _serial: _deep(100_000),
    "other": lambda serial: framed(
        messages.Released(serial=serial, component=Component.VAE, card_bytes=0, ram_bytes=0)
    ),
    "negative": lambda serial: framed(
        messages.Measured(
            serial=serial, card_free_bytes=-1, card_total_bytes=-5, card_bytes=-(1 << 40), ram_bytes=-7
        )
    ),
    "enormous": lambda serial: framed(
        messages.Measured(
            serial=serial, card_free_bytes=1 << 63, card_total_bytes=1, card_bytes=1 << 63, ram_bytes=1 << 63
        )
    ),
    "elsewhere": lambda serial: framed(
        finished(serial, artifact=os.environ[doubles.BAIT_VARIABLE], sha256="../../../not-ours")
    ),
    "null": lambda serial: framed(finished(serial, artifact="a\0b", sha256="\0" * 64)),
    "nothing-there": lambda serial: framed(finished(serial, artifact="/nowhere/at/all")),
    "slow-load": lambda serial: framed(
        {"kind": "loaded", "serial": serial, "component": "vae", "ms": -5, "card_bytes": -1, "ram_bytes": -1}
    ),
    "many-steps": lambda serial: b"".join(
        framed(
            {
                "kind": "progress",
                "serial": serial,
                "stage": "decode",
                "step": step * 10**15,
                "steps": -step,
                "preview_width": 10**9,
                "preview_height": 10**9,
                "preview": b"x",
            }
        )
        for step in range(2_000)
    ),
    "hello-again": lambda serial: framed(messages.Hello(version=99, engine_build="", pid=-1)) * (serial + 1),
}


def mutated(frame: bytes, chance: random.Random) -> bytes:
    changed = bytearray(frame)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.randint(1, len(changed))] if chance.random() < 0.3 else changed)
