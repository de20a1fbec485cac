"""What happens inside a server, measured in this process: round trips of workers, jobs without an engine, the
overhead of an image, the event loop, and how fast components come back.

Each figure is a median of five runs. CPU time stands beside wall time where others may be computing.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from serving_runs import made, order_of, settings_for
from tidegate.core.stage import Component, Execution, Placement, Stage
from tidegate.runtime import children, png, supervisor
from tidegate.runtime.conversation import Conversation
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Checkpoint, Ticket
from tidegate.runtime.models.assembly import assemble
from tidegate.runtime.models.extents import bytes_of, extents_of
from tidegate.runtime.models.shelf import open_model
from tidegate.runtime.restart import submission
from tidegate.runtime.server import serving
from tidegate.wire import messages
from tidegate.wire.messages import ImageRequest

RUNS = 5
ROUND_TRIPS, ECHOES = 400, 60
COPY_BYTES = 64 << 20
# That the job was accepted, and its end with the picture.
ECHO_SYNCS = 2


@dataclass(frozen=True)
class Figure:
    """One line of the table; `bound` is 0 where there is none."""

    name: str
    value: float
    unit: str
    bound: float = 0.0
    beside: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is within its bound."""
        return not self.bound or self.value <= self.bound


def p50(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def of_five(work: Callable[[], float]) -> float:
    """The median of five runs."""
    return p50([work() for _ in range(RUNS)])


# --- worker round trip


async def _round_trip_us(module: str) -> float:
    child = children.Child.spawn(module)
    talk = Conversation(child)
    try:
        await talk.hello()
        took = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            await talk.ask(messages.Survey(serial=0), messages.Surveyed)
            took.append((time.perf_counter() - began) * 1e6)
        return p50(took[ROUND_TRIPS // 10 :])
    finally:
        talk.say_goodbye()
        talk.close()
        child.finish()


def round_trips() -> list[Figure]:
    """A command and its answer, from the event loop to the worker's engine thread and back."""
    engine = of_five(lambda: uvloop.run(_round_trip_us("tidegate.workers.image")))
    echo = of_five(lambda: uvloop.run(_round_trip_us("echo_worker")))
    return [
        Figure("worker round trip, real engine", engine, "µs", 150),
        Figure("worker round trip, no engine", echo, "µs"),
    ]


# --- a job without an engine


@asynccontextmanager
async def echoing(state: Path, model: Path):  # type: ignore[no-untyped-def]  # what `serving` gives
    """A server whose workers are echoes."""
    before = supervisor._spawned
    supervisor._spawned = lambda _kind: children.Child.spawn("echo_worker")  # type: ignore[assignment]  # a real worker of another kind
    try:
        async with serving(settings_for(state, model)) as gate:
            yield gate
    finally:
        supervisor._spawned = before


async def _echo_ms(gate: FrontDesk, latent: Checkpoint) -> float:
    """The last stage of one job: admitted, queued, bound, run by a worker, kept as a picture and answered."""
    desk = gate._desk
    model = desk.models.find("")
    request = ImageRequest(prompt="echo", width=16, height=16, steps=1)
    ticket = Ticket(request=request, model=model.name)
    began = time.perf_counter()
    entry = desk.book.open(ticket, key="", at_ms=desk.clock.now_ms())
    (frame,) = entry.frames
    frame.checkpoints[Stage.DENOISE] = latent
    rows = rec.job_accepted(entry.id, ticket, key="", at_ms=entry.submitted_at_ms, images=(frame.name,))
    desk.book.enter(entry)
    await desk.shell.tell(submission(entry, frame, model, at_ms=desk.clock.now_ms()), rows)
    view = await gate.ended(entry.id)
    took_ms = (time.perf_counter() - began) * 1_000
    assert view.phase == "done", view.message
    return took_ms


async def _echo_run_ms(folder: Path, model: Path) -> float:
    async with echoing(folder, model) as gate:
        latent = Checkpoint(
            stage=Stage.DENOISE,
            sha256=gate._desk.store.put(b"a latent"),
            engine_build="echo",
            execution=Execution(Placement.CARD),
        )
        took = [await _echo_ms(gate, latent) for _ in range(ECHOES)]
    return p50(took[ECHOES // 6 :])


def sync_ms(folder: Path) -> float:
    """One write that is on the disk when it returns; an echo job waits for two, one after the other."""
    took = []
    descriptor = os.open(folder / "sync", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(50):
        os.write(descriptor, b"\0" * 4_096)
        began = time.perf_counter()
        os.fsync(descriptor)
        took.append((time.perf_counter() - began) * 1_000)
    os.close(descriptor)
    return p50(took)


def echoes(model: Path) -> list[Figure]:
    """What a job costs beside its engine, durability included."""

    syncs: list[float] = []

    def run() -> float:
        with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
            took_ms = uvloop.run(_echo_run_ms(Path(folder), model))
            syncs.append(sync_ms(Path(folder)))
            return took_ms

    whole_ms = of_five(run)
    disk_ms = ECHO_SYNCS * p50(syncs)
    beside = f"{whole_ms - disk_ms:.2f} ms without the {ECHO_SYNCS} syncs of this disk that it waits for"
    return [
        Figure("echo job: admit, queue, worker, answer", whole_ms, "ms", 1.6, beside),
        Figure("sync of this disk", p50(syncs), "ms"),
    ]


# --- overhead of an image


async def _overheads_ms(folder: Path, model: Path) -> tuple[float, float]:
    found, cpu = [], []
    async with serving(settings_for(folder, model)) as gate:
        await made(gate, order_of(steps=1))
        for number in range(RUNS):
            began, began_cpu = time.perf_counter(), time.process_time()
            job = await made(gate, order_of(steps=1, prompt=f"image {number}"))
            whole_ms = (time.perf_counter() - began) * 1_000
            cpu.append((time.process_time() - began_cpu) * 1_000)
            stages = re.findall(r"done in (\d+) ms", " ".join(gate.story(job.id)))
            found.append(whole_ms - sum(int(one) for one in stages))
    return p50(found), p50(cpu)


def _png_ms(side: int = 64) -> float:
    pixels = bytes(number % 251 for number in range(side * side * 3))
    began = time.perf_counter()
    png.encode(pixels, width=side, height=side, text="a lighthouse")
    return (time.perf_counter() - began) * 1_000


def overheads(model: Path) -> list[Figure]:
    """All that is neither engine nor PNG."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        wall_ms, cpu_ms = uvloop.run(_overheads_ms(Path(folder), model))
    beside = f"{cpu_ms:.0f} ms of CPU in the server, all its threads"
    return [
        Figure("overhead of an image beside engine and PNG", wall_ms - of_five(_png_ms), "ms", 50, beside)
    ]


# --- the event loop


class Watch:
    """Notes how long single callbacks keep an event loop busy, in CPU time and in wall time."""

    def __init__(self) -> None:
        self.cpu_ms = self.wall_ms = 0.0
        self._run = asyncio.events.Handle._run

    def __enter__(self) -> Watch:
        watch, run = self, self._run

        def timed(handle: asyncio.events.Handle) -> None:
            cpu, wall = time.thread_time(), time.perf_counter()
            run(handle)
            watch.cpu_ms = max(watch.cpu_ms, (time.thread_time() - cpu) * 1_000)
            watch.wall_ms = max(watch.wall_ms, (time.perf_counter() - wall) * 1_000)

        # The one place through which everything on a loop runs.
        asyncio.events.Handle._run = timed  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        # As it was before we looked.
        asyncio.events.Handle._run = self._run  # type: ignore[method-assign]


async def _busy(folder: Path, model: Path, watch: Watch) -> None:
    async with serving(settings_for(folder, model)) as gate:
        await made(gate, order_of(steps=1))
        watch.cpu_ms = watch.wall_ms = 0.0

        async def looks() -> None:
            for _ in range(300):
                gate.vram(), gate.health(), gate.models(), gate.jobs(), gate.metrics()
                await asyncio.sleep(0)

        jobs: list[Awaitable[object]] = [
            made(gate, order_of(steps=2, count=4, prompt=f"load {number}")) for number in range(3)
        ]
        await asyncio.gather(looks(), *jobs)


def blocking(model: Path) -> list[Figure]:
    """The longest that one callback kept the loop from others, while images are made and views are asked."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder, Watch() as watch:
        asyncio.run(_busy(Path(folder), model, watch))
    beside = f"{watch.wall_ms:.0f} ms of wall time, with whatever else computes here"
    return [Figure("loop blocked at most, CPU time", watch.cpu_ms, "ms", 10, beside)]


# --- reload


async def _reload_ms(model: Path, component: Component) -> float:
    child = children.Child.spawn("tidegate.workers.image", environment=children.engine_environment())
    talk = Conversation(child)
    files = {"model": str(model), "taesd": str(model.with_name("taesd.safetensors"))}
    try:
        await talk.hello()
        await talk.ask(messages.Open(serial=0, files=files, device="CPU", threads=1), messages.Opened)
        took = []
        for _ in range(RUNS + 1):
            load = messages.Load(serial=0, component=component, execution=Execution(Placement.CPU))
            began = time.perf_counter()
            await talk.ask(load, messages.Loaded)
            took.append((time.perf_counter() - began) * 1_000)
            await talk.ask(messages.Release(serial=0, component=component), messages.Released)
        return p50(took[1:])
    finally:
        talk.say_goodbye()
        talk.close()
        child.finish()


def _copy_ms(model: Path, component: Component) -> tuple[float, int]:
    """Reading the component's bytes from the page cache into memory that is new, as a load has to."""
    extents = extents_of(assemble(open_model(model)))[component]
    took = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        for extent in extents:
            with extent.path.open("rb", buffering=0) as file:
                for offset in range(0, extent.size_bytes, COPY_BYTES):
                    os.pread(
                        file.fileno(),
                        min(COPY_BYTES, extent.size_bytes - offset),
                        extent.offset_bytes + offset,
                    )
        took.append((time.perf_counter() - began) * 1_000)
    return p50(took[1:]), bytes_of(extents)


def reloads(model: Path) -> list[Figure]:
    """A component that was released comes back from the page cache."""
    found = []
    for component in (Component.TEXT_ENCODER, Component.DIFFUSION):
        load_ms = uvloop.run(_reload_ms(model, component))
        copy_ms, amount_bytes = _copy_ms(model, component)
        beside = f"{load_ms:.0f} ms for {amount_bytes >> 20} MiB, read alone {copy_ms:.0f} ms"
        found.append(
            Figure(f"reload of the {component.value}, by its copy", load_ms / copy_ms, "×", 1.25, beside)
        )
    return found


def figures(model: Path) -> list[Figure]:
    """All of them."""
    return [
        *round_trips(),
        *echoes(model),
        *overheads(model),
        *blocking(model),
        *reloads(model),
    ]
