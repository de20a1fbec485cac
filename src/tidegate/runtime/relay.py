"""The relay: an image's stages one after the other, each in the best way that fits, until it is done.

    make(stage) -> what it needs first, saved or made
                -> plan with what is free now -> release, load, run -> keep the result
                -> on failure: classify, a fresh worker if the old one died, plan below the rung that failed

Owns that loop. Every decision is the planner's and the ladder's (`tidegate.core`), what is loaded and free is
the `workbench`'s, what is finished stands in `results`. What to make is an ImageOrder; how a run begins and
ends is `oneshot`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from tidegate.core import notice
from tidegate.core.faults import Bug, CapacityError, WorkerError
from tidegate.core.image.failure import Attempt, Failure
from tidegate.core.image.ladder import climb, is_delivered_blank
from tidegate.core.planner import Plan, Refusal, RelayQuestion, StageOption, StageQuestion, choose, plan_image
from tidegate.core.stage import COMPONENT_OF, Component, Execution, Stage
from tidegate.runtime.checkpoints import JobFolder
from tidegate.runtime.footprints import Footprints
from tidegate.runtime.order import ImageOrder
from tidegate.runtime.report import StageRecord
from tidegate.runtime.results import Result, Results
from tidegate.runtime.workbench import Rooms, Workbench, unusable
from tidegate.runtime.worker import CommandFailed, ImageWorker, WorkerLost
from tidegate.wire import artifacts, messages
from tidegate.wire.messages import FaultKind

SUBJECT: Final = "image"

# What an attempt that failed inside a living worker says about the next one. The kinds that are missing here
# are not cured by any rung.
_FAILURE_OF: Final = {
    FaultKind.OUT_OF_MEMORY: Failure.REFUSED,
    FaultKind.NOT_FINITE: Failure.NOT_FINITE,
    FaultKind.ENGINE: Failure.ENGINE,
    FaultKind.STORAGE: Failure.ENGINE,
}


class Listener(Protocol):
    """Whoever shows the run to a person."""

    def stage_began(self, stage: Stage, *, image: int, count: int, how: Execution) -> None:
        """A stage begins; `image` counts from 0."""

    def step_done(self, step: int, steps: int, *, card_bytes: int) -> None:
        """One step of the stage is done; `card_bytes` are in use on the card."""

    def told(self, text: str) -> None:
        """A notice for the user."""


class Relay:
    """One order on its way through the stages."""

    def __init__(self, order: ImageOrder, *, bench: Workbench, folder: JobFolder, listener: Listener) -> None:
        self._order = order
        self._bench = bench
        self._folder = folder
        self._listener = listener
        self._results = Results(order, folder)
        # A virtual card is known by its ledger, and computes like the CPU.
        self._footprints = Footprints(
            order.request, bench.opened.latent_factor, is_card_slow=bool(bench.site.ledger_path)
        )
        self._pixels_sha256 = ""
        self.last_step = 0
        self.records: list[StageRecord] = []
        self.notices: list[str] = []

    # ------------------------------------------------------------ what a run is made of

    def begin(self) -> None:
        """Take up saved work, and make sure that there is a way to the end."""
        self.tell(self._bench.site.notice)
        for text in self._folder.begin(self._bench.engine_build, wish=self._order.wish):
            self.tell(text)
        self._journal(self._folder.save)
        for stage in self._order.stages[:-1]:
            for image in range(self._order.count):
                self._take_up(stage, image)
        self._surviving(self._foresee)

    def make(self, stage: Stage, image: int) -> Result:
        """The result of a stage with all that it needs before it: as it exists, or made now."""
        if (result := self._available(stage, image)) is not None:
            return result
        tried: list[Attempt] = []
        while True:
            for needed in self._results.needs(stage):
                self.make(needed, image)
            if (result := self._attempt(stage, image, tried)) is not None:
                self._results.keep(stage, image, result=result)
                return result

    def pixels(self, image: int) -> bytes:
        """Decode one image and return its rows of RGB pixels."""
        tried: list[Attempt] = []
        while True:
            for needed in self._results.needs(Stage.DECODE):
                self.make(needed, image)
            result = self._attempt(Stage.DECODE, image, tried)
            if result is None:
                continue
            data = self._exchanged()
            if data != data[:3] * (len(data) // 3):
                return data
            tried.append(Attempt(result.execution, Failure.BLANK))
            if is_delivered_blank(tried):
                self.tell(notice.blank_delivered(SUBJECT).text)
                return data
            self.records.pop()

    def executions(self, image: int) -> dict[Stage, Execution]:
        """How each stage of an image was run."""
        shown = {(record.stage, record.image): record.execution for record in self.records}
        return {stage: shown[stage, self._results.image_of(stage, image)] for stage in self._order.stages}

    def has(self, stage: Stage) -> bool:
        """Whether a stage is finished for every image."""
        return all(self._available(stage, image) is not None for image in range(self._order.count))

    def tell(self, text: str) -> None:
        """Keep a notice for the report and show it, once."""
        if text and text not in self.notices:
            self.notices.append(text)
            self._listener.told(text)

    # ------------------------------------------------------------ saved work and workers

    def _available(self, stage: Stage, image: int) -> Result | None:
        return self._results.available(stage, image, incarnation=self._bench.incarnation)

    def _take_up(self, stage: Stage, image: int) -> None:
        try:
            result = self._results.take_up(stage, image)
        except artifacts.UnreadableArtifact as error:
            self.tell(f"Saved work cannot be used and is made again: {error}.")
            return
        if result is not None:
            shown = self._results.image_of(stage, image)
            self.records.append(StageRecord(stage=stage, image=shown, execution=result.execution))

    def _surviving(self, ask: Callable[[], object]) -> None:
        """Ask, with a fresh worker as often as one is lost; the workbench bounds that."""
        while True:
            try:
                ask()
                return
            except WorkerLost as lost:
                self._mourn(lost)

    def _mourn(self, lost: WorkerLost) -> None:
        self._bench.lose()
        self.tell(f"The worker {lost.ending.text()}. A new one takes over; finished work is kept.")

    # ------------------------------------------------------------ planning

    def _foresee(self) -> None:
        """Make sure that every stage to come has a way; raises CapacityError if one has none."""
        worker = self._bench.ready()
        rooms = self._bench.rooms(worker)
        todo = [stage for stage in self._order.stages if not self.has(stage)]
        first = {stage: next(self._options(stage, worker, rooms=rooms), None) for stage in todo}
        question = RelayQuestion(subject=SUBJECT, card=rooms.card, ram=rooms.ram, options={})
        try:
            options = {stage: (option,) for stage, option in first.items() if option}
            plan_image(replace(question, options=options))
        except CapacityError:
            # The best way does not fit somewhere: now every way is predicted, which takes a while.
            every = {stage: tuple(self._options(stage, worker, rooms=rooms)) for stage in todo}
            plan_image(replace(question, options=every))

    def _options(
        self, stage: Stage, worker: ImageWorker, *, rooms: Rooms, yielded_bytes: int = 0
    ) -> Iterator[StageOption]:
        """The ways to run a stage, best first, each predicted when it is looked at."""
        room_bytes = max(0, rooms.card.usable_bytes + yielded_bytes) if rooms.card else 0
        try:
            for execution in self._footprints.executions(stage, worker, room_bytes=room_bytes):
                option = self._footprints.option(stage, worker, execution=execution)
                if option is not None:
                    yield option
        except CommandFailed as error:
            raise unusable(error) from error

    def _plan(self, worker: ImageWorker, stage: Stage, tried: list[Attempt]) -> Plan:
        component, encoder = COMPONENT_OF[stage], stage is Stage.ENCODE_IMAGE
        rooms = self._bench.rooms(worker)
        question = StageQuestion(
            stage=stage,
            subject=SUBJECT,
            card=rooms.card,
            ram=rooms.ram,
            options=(),
            held=self._bench.held(component, needs_encoder=encoder),
            concessions=self._bench.concessions(component, needs_encoder=encoder),
        )
        yielded_bytes = sum(release.card_bytes for release in question.concessions)
        yielded_bytes += question.held.card_bytes if question.held else 0
        for option in self._options(stage, worker, rooms=rooms, yielded_bytes=yielded_bytes):
            question = replace(question, options=(*question.options, option))
            # Options come in order of preference, so the first that fits is the one; below a failure the
            # ladder has to know all of them.
            if not tried and isinstance(answer := choose(question), Plan):
                return answer
        answer = climb(question, tried)
        if isinstance(answer, Plan):
            return answer
        raise _no_way(answer, tried)

    # ------------------------------------------------------------ one attempt

    def _attempt(self, stage: Stage, image: int, tried: list[Attempt]) -> Result | None:
        """Try once. A failure that another attempt may cure is added to `tried`, and None is returned."""
        try:
            worker = self._bench.ready()
            plan = self._plan(worker, stage, tried)
        except WorkerLost as lost:
            self._mourn(lost)
            return None
        if tried:
            self.tell(notice.retried(SUBJECT, stage, attempt=tried[-1], then=plan.execution).text)
        for told in notice.notices_of(plan):
            self.tell(told.text)
        try:
            return self._run(worker, plan, stage=stage, image=image, attempts=len(tried) + 1)
        except WorkerLost as lost:
            self._mourn(lost)
            tried.append(Attempt(plan.execution, lost.failure))
        except CommandFailed as error:
            tried.append(Attempt(plan.execution, self._failure(error, stage, image)))
            self._clear(COMPONENT_OF[stage])
        return None

    def _run(self, worker: ImageWorker, plan: Plan, *, stage: Stage, image: int, attempts: int) -> Result:
        component, how = COMPONENT_OF[stage], plan.execution
        encoder = stage is Stage.ENCODE_IMAGE
        for release in plan.releases:
            if release.component is not None:
                self._bench.release(release.component)
        serves = self._bench.held(component, needs_encoder=encoder) is not None
        if component in self._bench.loaded and (plan.drops_held or not serves):
            self._bench.release(component)
        record = StageRecord(
            stage=stage, image=self._results.image_of(stage, image), execution=how, attempts=attempts
        )
        record.predicted_bytes = self._bench.expected_bytes(worker, plan.option, component=component)
        self.last_step = 0
        self._listener.stage_began(stage, image=image, count=self._order.count, how=how)
        record.load_ms = self._bench.load(worker, component, option=plan.option, with_encoder=encoder)
        if stage is Stage.ENCODE_IMAGE and self._order.init is not None:
            _put(worker.exchange, self._order.init.pixels)
        if stage is Stage.DENOISE:
            self._announce_tape(image)
        finished = worker.run(
            self._results.command(stage, image, how=how), on_progress=lambda at: self._progressed(worker, at)
        )
        record.ms = finished.ms
        record.observed_peak_bytes = self._bench.observed_bytes(worker, finished, how=how)
        self.records.append(record)
        return self._kept(finished, stage, image, how=how)

    def _announce_tape(self, image: int) -> None:
        seed = self._order.seed_of(image)
        fingerprint = self._folder.fingerprint(Stage.DENOISE, seed=seed)
        if artifacts.tape_belongs(self._folder.tape(seed=seed), fingerprint):
            self.tell("Sampling goes on from its tape: the steps on it are not computed again.")

    def _progressed(self, worker: ImageWorker, progress: messages.Progress) -> None:
        self.last_step = progress.step
        card_bytes = self._bench.used_bytes(worker, progress)
        self._listener.step_done(progress.step, progress.steps, card_bytes=card_bytes)

    def _kept(self, finished: messages.StageFinished, stage: Stage, image: int, *, how: Execution) -> Result:
        path = Path(finished.artifact)
        if stage is Stage.DECODE:
            self._pixels_sha256 = finished.sha256
            return Result(path=path, execution=how)
        if finished.storage_error:
            self._warn(finished.storage_error)
            return Result(path=path, execution=how, unsaved_by=self._bench.incarnation)
        self._journal(self._results.journal(stage, image, sha256=finished.sha256, how=how))
        return Result(path=path, execution=how)

    def _exchanged(self) -> bytes:
        size = self._order.request.width * self._order.request.height * 3
        data = os.pread(self._bench.ready().exchange, size, 0)
        if hashlib.sha256(data).hexdigest() != self._pixels_sha256:
            raise Bug("The pixels that arrived are not those that the worker sent.")
        return data

    def _journal(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            # The work itself is done; only a crash from now on would cost it.
            self._warn(error.strerror or str(error))

    def _warn(self, why: str) -> None:
        self.tell(
            f"Finished work cannot be saved in {self._folder.path}: {why[:1].lower()}{why[1:]}. "
            "The image is made all the same, but a crash would cost the work done so far."
        )

    # ------------------------------------------------------------ failures

    def _failure(self, error: CommandFailed, stage: Stage, image: int) -> Failure:
        """Classify; what no attempt can cure is raised."""
        if error.fault not in _FAILURE_OF:
            raise unusable(error) from error
        if error.fault is FaultKind.NOT_FINITE and stage is not Stage.DECODE:
            self._results.forget(stage, image)  # the poison is on the tape too
        if error.fault is FaultKind.STORAGE:
            self._results.forget_missing(stage, image)
        return _FAILURE_OF[error.fault]

    def _clear(self, component: Component) -> None:
        """After a failure nothing of the component is trusted to be in its place."""
        try:
            self._bench.release(component)
        except WorkerLost as lost:
            self._mourn(lost)
        except CommandFailed as error:
            raise unusable(error) from error


def _no_way(refusal: Refusal, tried: list[Attempt]) -> CapacityError | WorkerError:
    if not tried:
        return refusal.fault()
    last = tried[-1]
    why = f"{last.failure.text()} {last.execution.text()}"
    return WorkerError(
        f"{refusal.stage} failed {len(tried)} times, at last because {why}.",
        remedy=last.failure.advice(),
        code="attempts_used_up",
    )


def _put(exchange: int, data: bytes) -> None:
    os.ftruncate(exchange, len(data))
    view, offset = memoryview(data), 0
    while offset < len(data):
        offset += os.pwrite(exchange, view[offset:], offset)
