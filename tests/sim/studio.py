"""The studio: how image workers of a world load components, run stages, and fail.

Owns the physical side of RunStage, StopStage, ReleaseComponents and ReinitialiseWorker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.needs import need
from tests.sim.truth import Part, Process

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.house import RAM
from tidegate.core.image.failure import Failure
from tidegate.core.planner.option import Footprint
from tidegate.core.stage import COMPONENT_OF, DecodeMode, Execution, Placement, Stage

if TYPE_CHECKING:
    from tests.sim.world import World

_BEFORE = {Stage.DENOISE: Stage.ENCODE, Stage.DECODE: Stage.DENOISE}
PROGRESS_COUNT = 2  # Signs of life of a sampling stage; more would only make schedules long.


class Studio:
    """Image workers of one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def weights(self, model: str, stage: Stage) -> int:
        """True weights of a stage's component."""
        house = self._world.workload.house
        found = next(known for known in house.image_models if known.name == model)
        return found.weights_bytes[COMPONENT_OF[stage]]

    def is_impossible(self, event: ev.JobSubmitted) -> bool:
        """Whether even the least demanding ways do not fit an empty machine (with room for processes)."""
        house = self._world.workload.house
        ram_bytes = house.ram.total_bytes - house.ram.headroom_bytes - 3 * 256 * 2**20
        for stage in event.stages:
            tile = 16 if stage in (Stage.DECODE, Stage.ENCODE_IMAGE) else 0
            mode = DecodeMode.TILED if tile else DecodeMode.WHOLE
            least = need(
                stage,
                Execution(Placement.CPU, mode, tile),
                weights_bytes=self.weights(event.model, stage),
                pixels=event.latent_height * event.latent_width,
            )
            if least.ram_bytes > ram_bytes:
                return True
        return False

    def perform(
        self, effect: ef.ReleaseComponents | ef.ReinitialiseWorker | ef.RunStage | ef.StopStage
    ) -> None:
        """Do what an image worker was told."""
        process = self._world.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        self._world.judge.must(process.is_ready, f"{effect.worker} was told something before it was ready")
        match effect:
            case ef.ReleaseComponents():
                self._release(process, effect)
            case ef.ReinitialiseWorker():
                self._reinitialise(process, effect)
            case ef.RunStage():
                self._run(process, effect)
            case ef.StopStage():
                self._stop(process, effect)

    def _release(self, process: Process, effect: ef.ReleaseComponents) -> None:
        world = self._world
        busy = process.busy_with != ""
        world.judge.must(not busy, f"{process.worker} was asked to release while it computes")
        if process.is_deaf or world.fault("deaf", "release", world.faults.deaf):
            process.is_deaf = True
            return

        def released() -> ev.Event:
            world.free(process, effect.parts, at_fault="release")
            for name in effect.parts:
                if process.is_unseen and name in process.parts:
                    process.parts[name].card_promised = 0
            return ev.ComponentsReleased(
                at_ms=world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                parts=effect.parts,
            )

        world.say(process, world.chance.number("release", 1, 60), released)

    def _reinitialise(self, process: Process, effect: ef.ReinitialiseWorker) -> None:
        world = self._world
        if world.fault("deaf", "reinitialise", world.faults.deaf):
            return

        def done() -> ev.Event:
            for name in tuple(process.parts):
                if name not in ("process", "context"):
                    del process.parts[name]
            return ev.Reinitialised(at_ms=world.now_ms, worker=effect.worker, incarnation=effect.incarnation)

        world.say(process, world.chance.number("reinitialise", 20, 300), done)

    # --- running a stage ---

    def _run(self, process: Process, effect: ef.RunStage) -> None:
        _world, judge = self._world, self._world.judge
        judge.must(process.busy_with == "", f"{process.worker} was given a second stage")
        judge.stage_begins(effect)
        truly = need(
            effect.stage,
            effect.execution,
            weights_bytes=self.weights(effect.model, effect.stage),
            pixels=self._pixels(effect.job),
        )
        enough = effect.card_bytes >= truly.card_bytes and effect.ram_bytes >= truly.ram_bytes
        judge.must(enough, f"{effect.stage} of {effect.job} was granted less than was predicted for it")
        process.busy_with = f"{effect.job}#{effect.attempt}"
        process.deadline_ms = effect.deadline_ms
        self._promise(process, effect, truly)
        amounts = {process.card: effect.card_bytes, RAM: effect.ram_bytes}
        judge.bytes_granted(f"running {effect.stage} of {effect.job} {effect.execution.text()}", **amounts)
        self._allocate_and_compute(process, effect, truly)

    def _pixels(self, job: str) -> int:
        for act in self._world.workload.acts:
            if act.who == job and act.what == "job":
                return act.data[0] * act.data[0]
        return 64 * 64  # The probing job of the liveness phase.

    def _part(self, effect: ef.RunStage) -> str:
        house = self._world.workload.house
        found = next(known for known in house.image_models if known.name == effect.model)
        return found.part(COMPONENT_OF[effect.stage])

    def _promise(self, process: Process, effect: ef.RunStage, truly: Footprint) -> None:
        """Note what the process may hold from now on for this stage."""
        name = self._part(effect)
        own_word = process.is_unseen
        kept = process.parts.get(name)
        same = kept is not None and kept.execution is not None
        same = (
            same
            and kept is not None
            and kept.execution is not None
            and (
                (kept.execution.placement, kept.execution.budget_bytes)
                == (effect.execution.placement, effect.execution.budget_bytes)
            )
        )
        on_card = effect.execution.placement is Placement.CARD
        card_weights = min(truly.weights_bytes, truly.card_bytes) if on_card else 0
        ram_weights = 0 if on_card else truly.weights_bytes
        if kept is not None and not same:
            self._strand(process, name, own_word=own_word)
        if "compute" in process.parts:
            self._strand(process, "compute", own_word=own_word)
        part = process.parts.setdefault(name, Part())
        part.execution = effect.execution
        part.card_promised, part.ram_promised = card_weights, ram_weights
        compute = process.parts["compute"] = Part()
        compute.card_promised = effect.card_bytes - card_weights
        compute.ram_promised = effect.ram_bytes - ram_weights
        if effect.card_bytes and "context" not in process.parts:
            context = self._context(process.card)
            process.parts["context"] = Part(card_actual=0, card_promised=context)

    def _strand(self, process: Process, name: str, *, own_word: bool) -> None:
        """Old bytes that are still there: promised until freed, or by the worker's own word not at all."""
        old = process.parts.pop(name)
        if own_word:
            old.card_promised = 0
        stranded = process.parts.setdefault("stranded", Part())
        stranded.card_actual += old.card_actual
        stranded.card_promised += old.card_promised
        stranded.ram_actual += old.ram_actual
        stranded.ram_promised += old.ram_promised

    def _context(self, card: str) -> int:
        cards = self._world.workload.house.cards
        return next((known.context_bytes for known in cards if known.name == card), 0)

    def _allocate_and_compute(self, process: Process, effect: ef.RunStage, truly: Footprint) -> None:
        world = self._world
        part, compute = process.parts[self._part(effect)], process.parts["compute"]
        factor = 100
        if effect.card_bytes and world.fault("overshoot", "stage", world.faults.overshoot):
            factor += world.chance.number("overshoot by", 1, 40)
        context = process.parts.get("context", Part())
        context_bytes = context.card_promised - context.card_actual
        card_more = (
            part.card_promised - part.card_actual + compute.card_promised * factor // 100 + context_bytes
        )
        ram_more = part.ram_promised - part.ram_actual + compute.ram_promised
        fits = world.fits(process, card_bytes=card_more, ram_bytes=ram_more)
        if not fits or world.fault("refuse", "stage", world.faults.refuse):
            self._fail(process, effect, Failure.REFUSED)
            return
        context.card_actual = context.card_promised
        part.card_actual, part.ram_actual = part.card_promised, part.ram_promised
        compute.card_actual = compute.card_promised * factor // 100
        compute.ram_actual = compute.ram_promised
        for pool in (process.card, RAM):
            if pool:
                known = world.truth.pools[pool]
                known.peak_bytes = max(known.peak_bytes, world.truth.actual(pool))
        if world.fault("hang", "stage", world.faults.hang):
            process.is_deaf = True
            return
        if world.fault("die", "stage", world.faults.die):
            signal = (0, 6, 11)[world.chance.number("signal", 0, 2)]
            world.later(world.chance.number("dies", 1, 2_000), lambda: world.die(process, signal=signal))
            return
        if world.fault("kill", "stage", world.faults.kill):
            # Early or late: the stage may just be done.
            after_ms = world.chance.number("kills after", 1, 900)
            world.later(after_ms, lambda: world.die(process, signal=9, by_others=True))
        if effect.stage in _BEFORE and world.fault("lose", "stage", world.faults.lose):
            world.later(world.chance.number("loses", 1, 50), lambda: self._lose(process, effect))
            return
        self._compute(process, effect, compute.card_actual + part.card_actual)

    def _lose(self, process: Process, effect: ef.RunStage) -> None:
        """What the stage before had saved cannot be read: it has to run again."""
        world = self._world
        if process.is_dead or process.is_deaf or process.busy_with != f"{effect.job}#{effect.attempt}":
            return
        process.busy_with = ""
        world.free(process, ("compute",), at_fault="compute")
        lost = _BEFORE[effect.stage]
        world.judge.jobs[effect.job].left.insert(0, lost)
        self._charge_failure(effect.job)
        world.deliver(
            ev.CheckpointLost(
                at_ms=world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                job=effect.job,
                attempt=effect.attempt,
                stages=(lost,),
            )
        )

    def _charge_failure(self, job: str) -> None:
        self._world.judge.jobs[job].failed_attempts += 1

    def _compute(self, process: Process, effect: ef.RunStage, peak_bytes: int) -> None:
        world = self._world
        base = {Stage.ENCODE: 60, Stage.ENCODE_IMAGE: 200, Stage.DENOISE: 3_000, Stage.DECODE: 500}[
            effect.stage
        ]
        slow = 8 if effect.execution.placement is Placement.CPU else 1
        length_ms = base * slow * world.chance.number("length", 50, 150) // 100
        running = process.busy_with
        if effect.stage is Stage.DENOISE:
            for index in range(1, PROGRESS_COUNT + 1):
                at_ms = length_ms * index * 4 // (5 * PROGRESS_COUNT)
                world.later(at_ms, lambda step=index: self._progress(process, effect, running, step=step))  # type: ignore[misc]  # A default binds the step.
        world.later(length_ms, lambda: self._finish(process, effect, running, length_ms, peak_bytes))

    def _progress(self, process: Process, effect: ef.RunStage, running: str, *, step: int) -> None:
        if process.is_dead or process.busy_with != running:
            return
        process.deadline_ms += (
            self._world.now_ms
        )  # The limit begins anew; how long it is, is the arbiter's affair.
        self._world.deliver(
            ev.StageProgressed(
                at_ms=self._world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                job=effect.job,
                attempt=effect.attempt,
                step=step * 4,
                steps_count=PROGRESS_COUNT * 5,
            )
        )

    def _finish(
        self, process: Process, effect: ef.RunStage, running: str, length_ms: int, peak_bytes: int
    ) -> None:
        world = self._world
        if process.is_dead or process.is_deaf or process.busy_with != running:
            return
        kinds = [Failure.NOT_FINITE, Failure.ENGINE]
        if effect.stage is Stage.DECODE:
            kinds.append(Failure.BLANK)
        if world.fault("garbage", "stage", world.faults.garbage):
            self._fail(process, effect, kinds[world.chance.number("garbage kind", 0, len(kinds) - 1)])
            return
        process.busy_with = ""
        world.free(process, ("compute",), at_fault="compute")
        world.judge.stage_done(effect.job)
        world.deliver(
            ev.StageFinished(
                at_ms=world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                job=effect.job,
                attempt=effect.attempt,
                load_ms=length_ms // 10,
                run_ms=length_ms,
                card_peak_bytes=peak_bytes,
            )
        )

    def _fail(self, process: Process, effect: ef.RunStage, failure: Failure) -> None:
        world = self._world
        running = process.busy_with
        self._charge_failure(effect.job)
        record = world.judge.jobs[effect.job]

        def report() -> None:
            if process.is_dead or process.is_deaf or process.busy_with != running:
                return
            process.busy_with = ""
            world.free(process, ("compute", self._part(effect)), at_fault="failure")
            record.blanks_count += failure is Failure.BLANK
            if failure is Failure.NOT_FINITE:
                record.nans.append((effect.stage, effect.execution))
            world.deliver(
                ev.StageFailed(
                    at_ms=world.now_ms,
                    worker=process.worker,
                    incarnation=process.incarnation,
                    job=effect.job,
                    attempt=effect.attempt,
                    failure=failure,
                )
            )

        world.later(world.chance.number("fails", 1, 100), report)

    def _stop(self, process: Process, effect: ef.StopStage) -> None:
        world = self._world
        running = f"{effect.job}#{effect.attempt}"

        def stopped() -> None:
            if process.is_dead or process.is_deaf or process.busy_with != running:
                return
            process.busy_with = ""
            world.free(process, ("compute",), at_fault="stop")
            world.deliver(
                ev.StageStopped(
                    at_ms=world.now_ms,
                    worker=process.worker,
                    incarnation=process.incarnation,
                    job=effect.job,
                    attempt=effect.attempt,
                )
            )

        world.later(world.chance.number("stops", 1, 300), stopped)
