"""Painting: how the image worker of the benchmark's world loads components and runs stages.

Owns the physical side of RunStage, StopStage and ReleaseComponents, and the tape: how many steps of an image
are done survives every stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.instances import Request

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.image.failure import Failure
from tidegate.core.stage import COMPONENT_OF, Execution, Placement, Stage, relay

if TYPE_CHECKING:
    from policies.shared import Shared
    from policies.world import Process, World

# Sampling says how far it is this many times; more would only make runs long.
TOLD_COUNT = 10


@dataclass(slots=True, kw_only=True)
class Running:
    """A stage that runs."""

    effect: ef.RunStage
    process: Process
    begun_ms: float
    loaded_ms: float = 0.0
    task: int = 0
    where: Shared
    step_ms: float = 0.0
    is_stopping: bool = False


class Painting:
    """Image workers of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._requests: dict[str, Request] = {}
        self._steps: dict[str, int] = {}  # On the tape of an image.
        self._running: dict[str, Running] = {}  # By worker.

    def submitted(self, request: Request) -> ev.JobSubmitted:
        """A user wants an image."""
        self._requests[request.name] = request
        costs = self._world.costs.images[request.model]
        return ev.JobSubmitted(
            at_ms=self._world.at_ms,
            job=request.name,
            model=request.model,
            latent_height=costs.latent,
            latent_width=costs.latent,
            steps_count=costs.steps_count,
            stages=relay(from_image=False),
        )

    def lost(self, process: Process) -> None:
        """A process is told to end: what it computes stops."""
        running = self._running.pop(process.worker, None)
        if running is not None:
            running.where.remove(running.task)

    def perform(
        self, effect: ef.RunStage | ef.StopStage | ef.ReleaseComponents | ef.ReinitialiseWorker
    ) -> None:
        """Do what an image worker was told."""
        process = self._world.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        assert process.is_ready, f"{effect.worker} was told something before it was ready"
        match effect:
            case ef.RunStage():
                self._run(process, effect)
            case ef.StopStage():
                self._stop(effect)
            case ef.ReleaseComponents():
                self._release(process, effect)
            case ef.ReinitialiseWorker():
                raise AssertionError("nothing leaks in this world")

    def _release(self, process: Process, effect: ef.ReleaseComponents) -> None:
        assert process.worker not in self._running, f"{process.worker} is asked to release while it computes"
        world = self._world

        def released() -> ev.Event:
            for name in effect.parts:
                process.parts.pop(name, None)
            return ev.ComponentsReleased(
                at_ms=world.at_ms, worker=effect.worker, incarnation=effect.incarnation, parts=effect.parts
            )

        world.say(process, world.costs.machine["release_ms"], released)

    # --- running a stage ---

    def _run(self, process: Process, effect: ef.RunStage) -> None:
        from policies.world import Part

        world = self._world
        assert process.worker not in self._running, f"{process.worker} is given a second stage"
        truly = world.costs.footprint(effect.model, effect.stage, effect.execution)
        name = f"{effect.model}/{COMPONENT_OF[effect.stage]}"
        kept = process.parts.get(name)
        if kept is not None and not _same(kept.execution, effect.execution):
            process.parts.pop(name)
            kept = None
        on_card = effect.execution.placement is Placement.CARD
        card_weights = truly.weights_bytes if on_card else 0
        ram_weights = 0 if on_card else truly.weights_bytes
        part = kept or Part(card_bytes=card_weights, ram_bytes=ram_weights, execution=effect.execution)
        compute = Part(card_bytes=truly.card_bytes - card_weights, ram_bytes=truly.ram_bytes - ram_weights)
        context_bytes = world.context_part(process) if truly.card_bytes else 0
        new = (compute,) if kept is not None else (part, compute)
        if not world.fits(
            card_bytes=sum(part.card_bytes for part in new) + context_bytes,
            ram_bytes=sum(part.ram_bytes for part in new),
        ):
            process.parts.pop(name, None)
            world.say(process, world.costs.machine["refusal_ms"], lambda: self._failure(effect))
            return
        process.parts[name], process.parts["compute"] = part, compute
        if context_bytes:
            process.parts["context"] = Part(card_bytes=context_bytes)
        where = world.cores if effect.execution.placement is Placement.CPU else world.card
        running = Running(effect=effect, process=process, begun_ms=world.now_ms, where=where)
        self._running[process.worker] = running
        load_ms = 0.0
        if kept is None:
            load_ms = world.costs.load_ms(truly.weights_bytes) + world.costs.machine["file_open_ms"]
            world.outcome.moved_bytes += card_weights
        running.task = where.add(process.worker, load_ms, lambda: self._loaded(running))

    def _failure(self, effect: ef.RunStage) -> ev.StageFailed:
        return ev.StageFailed(
            at_ms=self._world.at_ms,
            worker=effect.worker,
            incarnation=effect.incarnation,
            job=effect.job,
            attempt=effect.attempt,
            failure=Failure.REFUSED,
        )

    def _loaded(self, running: Running) -> None:
        world, effect = self._world, running.effect
        running.loaded_ms = world.now_ms
        if running.is_stopping:
            self._stopped(running)
            return
        whole_ms = world.costs.run_ms(effect.model, effect.stage, effect.execution)
        if effect.stage is not Stage.DENOISE:
            self._work(running, whole_ms, lambda: self._finish(running))
            return
        steps_count = world.costs.images[effect.model].steps_count
        running.step_ms = whole_ms / steps_count
        self._sample_on(running, steps_count=steps_count)

    def _work(self, running: Running, work_ms: float, done: Callable[[], None]) -> None:
        running.task = running.where.add(running.process.worker, work_ms, done)

    def _sample_on(self, running: Running, *, steps_count: int) -> None:
        """The next few steps, or none when it was told to stop."""
        if running.is_stopping:
            self._stopped(running)
            return
        job = running.effect.job
        before = self._steps.get(job, 0)
        count = min(steps_count - before, max(1, steps_count // TOLD_COUNT))
        if count <= 0:
            self._finish(running)
            return

        def stepped() -> None:
            running.task = 0
            self._steps[job] = before + count
            effect = running.effect
            self._world.deliver(
                ev.StageProgressed(
                    at_ms=self._world.at_ms,
                    worker=effect.worker,
                    incarnation=effect.incarnation,
                    job=job,
                    attempt=effect.attempt,
                    step=before + count,
                    steps_count=steps_count,
                )
            )
            if self._running.get(effect.worker) is running:
                self._sample_on(running, steps_count=steps_count)

        self._work(running, count * running.step_ms, stepped)

    def _stop(self, effect: ef.StopStage) -> None:
        """Go on to the end of the step, and then stop."""
        running = self._running.get(effect.worker)
        if running is None or running.effect.attempt != effect.attempt or running.is_stopping:
            return
        running.is_stopping = True
        if not running.step_ms or not running.task:
            return  # It loads, or a step has just ended: whoever goes on sees that it shall stop.
        left_ms = running.where.remove(running.task)
        whole, rest_ms = divmod(left_ms, running.step_ms)
        job = running.effect.job
        costs = self._world.costs.images[running.effect.model]
        told = max(1, costs.steps_count // TOLD_COUNT)
        planned = min(costs.steps_count, self._steps.get(job, 0) + told)
        self._steps[job] = planned - int(whole)
        self._work(running, rest_ms, lambda: self._stopped(running))

    def _stopped(self, running: Running) -> None:
        effect, process = running.effect, running.process
        if self._running.pop(process.worker, None) is None:
            return
        process.parts.pop("compute", None)
        self._world.deliver(
            ev.StageStopped(
                at_ms=self._world.at_ms,
                worker=effect.worker,
                incarnation=effect.incarnation,
                job=effect.job,
                attempt=effect.attempt,
            )
        )

    def _finish(self, running: Running) -> None:
        world, effect, process = self._world, running.effect, running.process
        del self._running[process.worker]
        process.parts.pop("compute", None)
        world.deliver(
            ev.StageFinished(
                at_ms=world.at_ms,
                worker=effect.worker,
                incarnation=effect.incarnation,
                job=effect.job,
                attempt=effect.attempt,
                load_ms=int(running.loaded_ms - running.begun_ms),
                run_ms=int(world.now_ms - running.loaded_ms),
                card_peak_bytes=effect.card_bytes,
            )
        )


def _same(loaded: Execution | None, wanted: Execution) -> bool:
    return loaded is not None and (loaded.placement, loaded.budget_bytes) == (
        wanted.placement,
        wanted.budget_bytes,
    )
