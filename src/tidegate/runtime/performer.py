"""The performer: every effect of the core carried out, by whoever owns the thing it is about.

Owns the table from effects to deeds, and the alarm clock. Nothing is decided here: a deed that takes time
becomes a task, and its end an event. What is about language models is done in the neighbour `parlour`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, assert_never

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.image.job import JobPhase
from tidegate.core.llm.tide import state_part
from tidegate.core.stage import Stage
from tidegate.core.worker import FRONT, WorkerKind
from tidegate.runtime.children import Ending
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Gone
from tidegate.runtime.darkroom import Darkroom
from tidegate.runtime.jobbook import Entry, Frame, JobBook
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Record
from tidegate.runtime.newsroom import Newsroom
from tidegate.runtime.parlour import Parlour
from tidegate.runtime.predictor import Predictor
from tidegate.runtime.prefetch import Prefetch
from tidegate.runtime.studio import Studio
from tidegate.runtime.supervisor import Process, Supervisor
from tidegate.runtime.telemetry import Telemetry
from tidegate.wire import messages

# Inside encode and decode the engine hears no wish to stop; after this long its process is ended.
CANCEL_GRACE_S: Final = 1.0
_NO_STEPS: Final = (Stage.ENCODE, Stage.ENCODE_IMAGE, Stage.DECODE)

Post = Callable[[ev.Event, Sequence[Record]], None]


class Performer:
    """Deeds of one server."""

    def __init__(
        self,
        *,
        clock: Clock,
        supervisor: Supervisor,
        predictor: Predictor,
        darkroom: Darkroom,
        book: JobBook,
        news: Newsroom,
        prefetch: Prefetch,
        parlour: Parlour,
        device: str,
        post: Post,
    ) -> None:
        self._clock = clock
        self._supervisor = supervisor
        self._predictor = predictor
        self._darkroom = darkroom
        self._book = book
        self._news = news
        self._prefetch = prefetch
        self._parlour = parlour
        self._device = device
        self._post = post
        self._group: asyncio.TaskGroup | None = None
        self._telemetry: Telemetry | None = None
        self._studios: dict[str, tuple[int, Studio]] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self, group: asyncio.TaskGroup, telemetry: Telemetry) -> None:
        """Work in this task group, and let this thread look."""
        self._group = group
        self._telemetry = telemetry

    def close(self) -> None:
        """Ring no alarm any more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def records_of(self, effect: ef.Effect) -> Sequence[Record]:
        """The rows that an effect leaves in the journal."""
        match effect:
            case ef.FinishJob():
                return self._ended_records(effect)
            case ef.Tell():
                return [rec.told(effect.notice, at_ms=self._clock.now_ms())]
            case _:
                return ()

    def perform(self, effect: ef.Effect) -> None:
        """Do it, or begin to."""
        match effect:
            case ef.WakeAt():
                self._wake_at(effect.at_ms)
            case ef.Observe():
                if self._telemetry is not None:
                    self._telemetry.observe(effect.pool)
            case ef.StartWorker():
                self._spawn(self._start(effect))
            case ef.TerminateWorker():
                self._supervisor.signal(effect.worker, effect.incarnation, signal.SIGTERM)
            case ef.KillWorker():
                self._supervisor.signal(effect.worker, effect.incarnation, signal.SIGKILL)
            case ef.Predict():
                process = self._supervisor.process(effect.worker, effect.incarnation)
                if process is not None:
                    self._spawn(self._predictor.answer(process, effect))
            case ef.PredictLlm():
                process = self._supervisor.process(effect.worker, effect.incarnation)
                if process is not None:
                    self._spawn(self._predictor.answer_llm(process, effect))
            case ef.RunStage() | ef.ReleaseComponents() | ef.ReinitialiseWorker() | ef.StopStage():
                self._instruct(effect)
            case ef.FinishJob():
                self._finish(effect)
            case ef.Tell():
                self._news.tell(effect.notice)
                self._parlour.told(effect.notice)
                self._told(effect.sequence)
            case ef.AnswerGuest():
                self._news.answer_guest(effect)
                self._told(effect.sequence)
            case ef.AskGuest():
                self._news.ask_guest(effect)
            case ef.SetLevel() | ef.ServeChat() | ef.DropChat() | ef.FinishChat():
                self._parlour.perform(effect)
            case _:
                assert_never(effect)

    # --- time

    def _wake_at(self, at_ms: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(max(0, at_ms - self._clock.now_ms()) / 1000, self._woke, at_ms)

    def _woke(self, at_ms: int) -> None:
        # The loop's clock and ours may differ by a hair; the core is told of no moment before its alarm.
        self._post(ev.Woke(at_ms=max(at_ms, self._clock.now_ms())), ())

    def _told(self, sequence: int) -> None:
        self._post(ev.Told(at_ms=self._clock.now_ms(), sequence=sequence), ())

    # --- workers

    async def _start(self, effect: ef.StartWorker) -> None:
        asked_ns = time.monotonic_ns()
        process = await self._supervisor.start(
            effect.worker,
            effect.incarnation,
            kind=effect.kind,
            on_exit=lambda ending: self._exited(effect, ending),
        )
        if process is None:
            return
        if effect.kind is WorkerKind.IMAGE:
            self._open_studio(effect, process)
            self._supervisor.keep_standby(WorkerKind.IMAGE)
        elif effect.kind is not WorkerKind.PREDICTOR:
            if effect.kind is WorkerKind.LLM:
                self._supervisor.keep_standby(WorkerKind.LLM)
            if not await self._parlour.welcome(effect, process, asked_ns=asked_ns):
                process.child.signal(signal.SIGKILL)
                return
        self._post(
            ev.WorkerReady(at_ms=self._clock.now_ms(), worker=effect.worker, incarnation=effect.incarnation),
            (),
        )

    def _open_studio(self, effect: ef.StartWorker, process: Process) -> None:
        studio = Studio(
            process,
            models=self._darkroom.models,
            device=self._device,
            clock=self._clock,
            darkroom=self._darkroom,
            post=self._post,
            on_progress=self._progressed,
        )
        self._studios[effect.worker] = (effect.incarnation, studio)
        self._spawn(studio.work())

    def _exited(self, effect: ef.StartWorker, ending: Ending) -> None:
        if self._studios.get(effect.worker, (0, None))[0] == effect.incarnation:
            del self._studios[effect.worker]
        if effect.kind in (WorkerKind.FRONT, WorkerKind.LLM):
            self._parlour.gone(effect)
            # Images that are loaded meanwhile push its file out of the page cache; it would come back slowly.
            entry = self._parlour.models.entries.get(effect.model)
            if entry is not None:
                self._prefetch.whole(entry.files.values())
        self._post(
            ev.WorkerExited(
                at_ms=self._clock.now_ms(),
                worker=effect.worker,
                incarnation=effect.incarnation,
                signal=ending.signal_number,
                status=ending.exit_code,
            ),
            (),
        )

    def _instruct(
        self, effect: ef.RunStage | ef.ReleaseComponents | ef.ReinitialiseWorker | ef.StopStage
    ) -> None:
        if effect.worker == FRONT and isinstance(effect, ef.ReleaseComponents):
            self._spawn(self._release_states(effect))
            return
        incarnation, studio = self._studios.get(effect.worker, (0, None))
        if studio is None or incarnation != effect.incarnation:
            return  # The process is gone, and the WorkerExited on its way answers this too.
        if not isinstance(effect, ef.StopStage):
            studio.give(effect)
            if isinstance(effect, ef.RunStage):
                self._news.stage_began(effect)
                self._prefetch.after(effect)
            return
        is_running = studio.stop(effect)
        job = self._book.frame(effect.job)
        if is_running and effect.reason is ef.StopReason.CANCEL and job is not None:
            asyncio.get_running_loop().call_later(CANCEL_GRACE_S, self._lose_patience, studio, effect)

    async def _release_states(self, effect: ef.ReleaseComponents) -> None:
        front = self._parlour.front
        if front is None or front.incarnation != effect.incarnation:
            return  # Its states went with it.
        try:
            for part in effect.parts:
                await front.release(part.removeprefix(state_part("")))
        except Gone:
            return
        at_ms, worker = self._clock.now_ms(), effect.worker
        freed = ev.ComponentsReleased(
            at_ms=at_ms, worker=worker, incarnation=effect.incarnation, parts=effect.parts
        )
        self._post(freed, ())

    def _lose_patience(self, studio: Studio, effect: ef.StopStage) -> None:
        if studio.is_running(effect.job, effect.attempt) and studio.stage in _NO_STEPS:
            self._supervisor.signal(effect.worker, effect.incarnation, signal.SIGKILL)

    def _progressed(self, task: ef.RunStage, progress: messages.Progress) -> None:
        self._news.progressed(task, progress)
        self._post(
            ev.StageProgressed(
                at_ms=self._clock.now_ms(),
                worker=task.worker,
                incarnation=task.incarnation,
                job=task.job,
                attempt=task.attempt,
                step=progress.step,
                steps_count=progress.steps,
            ),
            (),
        )

    # --- ends

    def _ended_records(self, effect: ef.FinishJob) -> list[Record]:
        frame = self._book.frame(effect.job)
        if frame is None:
            return []
        records = [
            rec.image_ended(
                frame.name, outcome=effect.outcome.value, code=effect.code, message=self._message(effect)
            ),
        ]
        entry = self._book.entry(frame.job)
        if all(other is frame or other.outcome is not None for other in entry.frames):
            records.append(rec.job_ended(entry.id, at_ms=self._clock.now_ms()))
        return records

    def _message(self, effect: ef.FinishJob) -> str:
        """Why an image has ended; the engine's own words tell a missing file from a broken one."""
        said = self._darkroom.remarks.get(effect.job, "").strip().rstrip(".")
        if effect.outcome is not ef.Outcome.FAILED or not said:
            return effect.message
        return f"{effect.message} The engine said: {said}."

    def _finish(self, effect: ef.FinishJob) -> None:
        frame = self._book.frame(effect.job)
        if frame is not None and frame.outcome is None:
            entry = self._book.entry(frame.job)
            self._close_frame(entry, frame, effect)
        self._post(ev.JobClosed(at_ms=self._clock.now_ms(), job=effect.job), ())

    def _close_frame(self, entry: Entry, frame: Frame, effect: ef.FinishJob) -> None:
        frame.outcome = JobPhase(effect.outcome.value)
        frame.code, frame.message = effect.code, self._message(effect)
        frame.retry_after_ms = effect.retry_after_ms
        if all(other.outcome is not None for other in entry.frames):
            entry.ended_at_ms = self._clock.now_ms()
        self._darkroom.clear(frame)
        self._news.image_ended(entry, frame)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        assert self._group is not None, "the performer works in a task group"
        self._group.create_task(work)
