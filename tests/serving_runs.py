"""Servers for tests: real settings, real processes, the real engine, a virtual card in the test's folder.

Owns no expectation. `python tests/serving_runs.py STATE MODEL DEVICE` is a server of its own process, which
reads commands from stdin and answers in lines of JSON; tests kill it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from tidegate.runtime.gate import Gate
from tidegate.runtime.server import serving
from tidegate.runtime.settings import Settings
from tidegate.runtime.views import JobOrder, JobView
from tidegate.wire.messages import ImageRequest

# One thread: on a busy machine two of them wait for each other.
THREADS = 1
WAIT_S = 240


def settings_for(
    state: Path,
    model: Path,
    *,
    device: str = "virtual:3GiB",
    names: tuple[str, ...] = ("tiny",),
    plain: tuple[str, ...] = (),
) -> Settings:
    """Settings of a server for one checkpoint with its TAESD, under one or more names.

    The models called `plain` have flash attention off, so that they share nothing with the others.
    """
    files = {"model": str(model), "taesd": str(model.with_name("taesd.safetensors"))}
    models = [
        {"name": name, "threads": THREADS, "flash_attention": name not in plain, **files}
        for name in (*names, *plain)
    ]
    return Settings.model_validate(
        {
            "paths": {"models": str(model.parent), "state": str(state)},
            "cards": [{"device": device}],
            "models": models,
        }
    )


def order_of(
    prompt: str = "a lighthouse at dusk",
    *,
    steps: int = 2,
    seed: int = 7,
    model: str = "",
    count: int = 1,
    key: str = "",
) -> JobOrder:
    """Images of 64 pixels."""
    request = ImageRequest(prompt=prompt, width=64, height=64, steps=steps, seed=seed)
    return JobOrder(request=request, model=model, count=count, idempotency_key=key)


async def made(gate: Gate, order: JobOrder) -> JobView:
    """Submit and wait."""
    handle = await gate.submit(order)
    async with asyncio.timeout(WAIT_S):
        return await gate.ended(handle.id)


async def pixels(gate: Gate, job: str) -> list[str]:
    """Hashes of the pixels of a job's images."""
    return [(await gate.image(image)).pixels_sha256 for image in gate.result(job)]


async def _serve(state: Path, model: Path, device: str) -> None:
    """Answer commands until stdin ends: `submit KEY STEPS`, `wait ID`, `jobs`, `workers`."""
    loop = asyncio.get_running_loop()
    settings = settings_for(state, model, device=device)
    # Killed again and again by a test, a worker is not to be rested for as long as one that fails by itself.
    policy = replace(settings.policy, backoff_ms=50, backoff_max_ms=200, quarantine_ms=200)
    async with serving(settings.model_copy(update={"policy": policy})) as gate:
        _say({"up": True})
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode().split():
            match line:
                case ["submit", key, steps]:
                    handle = await gate.submit(order_of(steps=int(steps), key=key))
                    _say({"id": handle.id, "created": handle.created})
                case ["watch", job, stage]:
                    async for item in gate.feed(job):
                        if item.kind == "progress" and item.stage == stage and item.step:
                            break
                    _say({"step": True})
                case ["wait", job]:
                    view = await gate.ended(job)
                    _say({"phase": view.phase, "message": view.message, "pixels": await pixels(gate, job)})
                case ["workers"]:
                    _say({worker.name: worker.pid for worker in gate.health().workers if worker.pid})
                case _:
                    _say({"unknown": line})


def _say(data: object) -> None:
    print(json.dumps(data), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
