"""The studio: one image worker's open models and loaded components, and its stages, one after the other.

    open the model -> load the component as the execution says -> run the stage -> keep its result -> report

Owns the order of commands to one process and what that process holds, component by component. It carries
out RunStage, ReleaseComponents and ReinitialiseWorker and reports each with one event; what to do is the
core's decision. Where results go is `darkroom`'s part, the process the supervisor's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.image.failure import Failure
from tidegate.core.stage import COMPONENT_OF, Component, Execution, Placement, Stage
from tidegate.runtime import registry
from tidegate.runtime.assignment import Assignment, Spoilt
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Declined, Gone
from tidegate.runtime.darkroom import Darkroom
from tidegate.runtime.journal.records import Record
from tidegate.runtime.supervisor import Process
from tidegate.wire import messages
from tidegate.wire.messages import FaultKind

_FAILURE_OF: Final = {
    FaultKind.OUT_OF_MEMORY: Failure.REFUSED,
    FaultKind.NOT_FINITE: Failure.NOT_FINITE,
}
# What a stage starts from cannot be read, or is not there at all.
_UNREADABLE: Final = (FaultKind.STORAGE, FaultKind.INVALID_REQUEST)
Task = ef.RunStage | ef.ReleaseComponents | ef.ReinitialiseWorker


@dataclass(slots=True, kw_only=True)
class Holding:
    """A component in the process; models that share its files share it."""

    execution: Execution
    with_encoder: bool
    card_bytes: int


class Studio:
    """One incarnation of one image worker."""

    def __init__(
        self,
        process: Process,
        *,
        models: registry.Registry,
        device: str,
        clock: Clock,
        darkroom: Darkroom,
        post: Callable[[ev.Event, Sequence[Record]], None],
        on_progress: Callable[[ef.RunStage, messages.Progress], None],
    ) -> None:
        self._process = process
        self._models = models
        self._device = device
        self._clock = clock
        self._darkroom = darkroom
        self._post = post
        self._on_progress = on_progress
        self._tasks: asyncio.Queue[Task | None] = asyncio.Queue()  # None: the process is gone
        self._open: set[str] = set()
        self._held: dict[tuple[str, Component], Holding] = {}
        self._running: ef.RunStage | None = None
        self._is_computing = False
        self._stopped_attempt = (0, "")

    def give(self, task: Task) -> None:
        """Have it done after what was given before."""
        self._tasks.put_nowait(task)

    def stop(self, effect: ef.StopStage) -> bool:
        """Stop a stage at its next step, or before it began; whether it was the one that is running."""
        self._stopped_attempt = (effect.attempt, effect.job)
        running = self._running
        if running is None or (running.attempt, running.job) != self._stopped_attempt:
            return False
        if self._is_computing:
            self._process.talk.cancel()
        return True

    def is_running(self, job: str, attempt: int) -> bool:
        """Whether this attempt is still being carried out."""
        running = self._running
        return running is not None and (running.job, running.attempt) == (job, attempt)

    @property
    def stage(self) -> Stage | None:
        """The stage that is being carried out."""
        return self._running.stage if self._running else None

    async def work(self) -> None:
        """Carry out what is given until the process is gone; its end is reported by the supervisor."""
        self._process.ended.add_done_callback(lambda _ended: self._tasks.put_nowait(None))
        try:
            while True:
                task = await self._tasks.get()
                match task:
                    case None:
                        return
                    case ef.RunStage():
                        await self._run(task)
                    case ef.ReleaseComponents():
                        await self._release(task)
                    case ef.ReinitialiseWorker():
                        await self._reinitialise(task)
                    case _:
                        assert_never(task)
        except Gone:
            return
        finally:
            self._running = None

    # --- stages

    async def _run(self, task: ef.RunStage) -> None:
        self._running = task
        try:
            await self._attempt(task)
        except Declined as declined:
            await self._declined(task, declined)
        except Spoilt as spoilt:
            await self._drop(task)
            self._post(self._failed(task, spoilt.failure), ())
        finally:
            self._running = None

    async def _attempt(self, task: ef.RunStage) -> None:
        assignment = self._darkroom.assign(task)
        if assignment is None:
            self._post(self._failed(task, Failure.ENGINE), ())
            return
        if assignment.is_made:
            # Another image of the same prompt was encoded meanwhile.
            records = self._darkroom.keep_again(assignment)
            self._post(self._finished(task, load_ms=0, run_ms=0, card_peak_bytes=0), records)
            return
        entry = self._models.entries[task.model]
        load_ms = await self._load(task, entry)
        if self._stopped_attempt == (task.attempt, task.job):
            self._post(self._stopped(task), ())
            return
        await self._darkroom.lay_out(assignment, exchange=self._process.child.exchange)
        owner = entry.owner(COMPONENT_OF[task.stage])
        began_ns = time.monotonic_ns()
        done = await self._compute(task, assignment, owner)
        run_ms = (time.monotonic_ns() - began_ns) // 1_000_000
        others_bytes = self._others_bytes(owner, COMPONENT_OF[task.stage])
        records = await self._darkroom.keep(assignment, done, exchange=self._process.child.exchange)
        peak_bytes = max(0, done.card_peak_bytes - others_bytes)
        self._post(self._finished(task, load_ms=load_ms, run_ms=run_ms, card_peak_bytes=peak_bytes), records)

    async def _compute(self, task: ef.RunStage, assignment: Assignment, owner: str) -> messages.StageFinished:
        command = msgspec.structs.replace(assignment.command, model=owner, resets_peaks=True)
        self._is_computing = True
        try:
            return await self._process.talk.ask(
                command,
                messages.StageFinished,
                on_progress=lambda progress: self._on_progress(task, progress),
            )
        finally:
            self._is_computing = False

    async def _declined(self, task: ef.RunStage, declined: Declined) -> None:
        if declined.fault is FaultKind.CANCELLED:
            self._post(self._stopped(task), ())
            return
        if declined.fault in _UNREADABLE:
            stages, records = await self._darkroom.lost(task)
            if stages:
                self._post(self._lost(task, stages), records)
                return
        failure = _FAILURE_OF.get(declined.fault, Failure.ENGINE)
        self._darkroom.note(task, declined.message)
        await self._drop(task)
        self._post(self._failed(task, failure), await self._darkroom.spoil(task, failure))

    async def _drop(self, task: ef.RunStage) -> None:
        """After a failure nothing of the component is trusted to be in its place."""
        component = COMPONENT_OF[task.stage]
        owner = self._models.entries[task.model].owner(component)
        if owner in self._open:
            await self._free(owner, component)

    # --- components

    async def _load(self, task: ef.RunStage, entry: registry.Entry) -> int:
        component = COMPONENT_OF[task.stage]
        owner = entry.owner(component)
        await self._open_model(owner)
        with_encoder = task.stage is Stage.ENCODE_IMAGE
        held = self._held.get((owner, component))
        if held is not None and (held.execution, held.with_encoder) == (_seat(task.execution), with_encoder):
            return 0
        if held is not None:
            await self._free(owner, component)
        command = messages.Load(
            serial=0, component=component, execution=task.execution, encoder=with_encoder, model=owner
        )
        before_bytes = self._others_bytes(owner, component)
        # Entered before it is there: what a load that failed half way left is freed like the rest.
        holding = Holding(execution=_seat(task.execution), with_encoder=with_encoder, card_bytes=0)
        self._held[owner, component] = holding
        loaded = await self._process.talk.ask(command, messages.Loaded)
        holding.card_bytes = max(0, loaded.card_bytes - before_bytes)
        return loaded.ms

    async def _open_model(self, name: str) -> None:
        if name in self._open:
            return
        await self._process.talk.ask(self._models.entries[name].command(self._device), messages.Opened)
        self._open.add(name)

    async def _free(self, owner: str, component: Component) -> None:
        self._held.pop((owner, component), None)
        await self._process.talk.ask(
            messages.Release(serial=0, component=component, model=owner), messages.Released
        )

    def _others_bytes(self, owner: str, component: Component) -> int:
        """What else this model holds on the card; the engine counts each open model by itself."""
        return sum(
            holding.card_bytes
            for (name, part), holding in self._held.items()
            if name == owner and part is not component
        )

    async def _release(self, task: ef.ReleaseComponents) -> None:
        for part in task.parts:
            owner, _, name = part.rpartition("/")
            if name not in set(Component):
                continue  # Buffers and contexts are freed with the stage and with the process.
            if (owner, Component(name)) in self._held:
                await self._free(owner, Component(name))
        self._post(
            ev.ComponentsReleased(
                at_ms=self._clock.now_ms(),
                worker=task.worker,
                incarnation=task.incarnation,
                parts=task.parts,
            ),
            (),
        )

    async def _reinitialise(self, task: ef.ReinitialiseWorker) -> None:
        for owner, component in tuple(self._held):
            await self._free(owner, component)
        opened, self._open = self._open, set()
        for name in sorted(opened):
            await self._open_model(name)
        self._post(
            ev.Reinitialised(at_ms=self._clock.now_ms(), worker=task.worker, incarnation=task.incarnation),
            (),
        )

    # --- reports

    def _finished(
        self, task: ef.RunStage, *, load_ms: int, run_ms: int, card_peak_bytes: int
    ) -> ev.StageFinished:
        return ev.StageFinished(
            at_ms=self._clock.now_ms(),
            worker=task.worker,
            incarnation=task.incarnation,
            job=task.job,
            attempt=task.attempt,
            load_ms=load_ms,
            run_ms=run_ms,
            card_peak_bytes=card_peak_bytes,
        )

    def _failed(self, task: ef.RunStage, failure: Failure) -> ev.StageFailed:
        return ev.StageFailed(
            at_ms=self._clock.now_ms(),
            worker=task.worker,
            incarnation=task.incarnation,
            job=task.job,
            attempt=task.attempt,
            failure=failure,
        )

    def _lost(self, task: ef.RunStage, stages: tuple[Stage, ...]) -> ev.CheckpointLost:
        return ev.CheckpointLost(
            at_ms=self._clock.now_ms(),
            worker=task.worker,
            incarnation=task.incarnation,
            job=task.job,
            attempt=task.attempt,
            stages=stages,
        )

    def _stopped(self, task: ef.RunStage) -> ev.StageStopped:
        return ev.StageStopped(
            at_ms=self._clock.now_ms(),
            worker=task.worker,
            incarnation=task.incarnation,
            job=task.job,
            attempt=task.attempt,
        )


def _seat(execution: Execution) -> Execution:
    """How weights are placed, whatever the tiles: a loaded VAE serves every tile size."""
    if execution.placement is Placement.STREAM:
        return execution
    return Execution(execution.placement)
