"""The darkroom: what an image's stages start from and leave behind, and the finished picture.

    assignment (inputs, output, tape)  ->  the worker writes  ->  the store takes it in  ->  records

Owns the way of results between worker and disk, the memory of embeddings, and the judgement whether pixels
are a picture. Files are the `store`'s, finished images the `gallery`'s; nothing here counts after a crash
before its records were committed together with the event.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tidegate.core import effects as ef
from tidegate.core.image.failure import Failure
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Execution, Placement, Stage
from tidegate.runtime.assignment import Assignment, Spoilt
from tidegate.runtime.clock import Clock
from tidegate.runtime.filing import Filing
from tidegate.runtime.gallery import Gallery
from tidegate.runtime.jobbook import Frame, JobBook
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Checkpoint, Embedding, Record
from tidegate.runtime.prints import printed
from tidegate.runtime.registry import Entry as Model
from tidegate.runtime.registry import Registry
from tidegate.runtime.store import Store
from tidegate.runtime.threads import Threads, on
from tidegate.wire import artifacts, messages

_ROLES: Final = {Stage.ENCODE: "embeddings", Stage.ENCODE_IMAGE: "init_latent", Stage.DENOISE: "latent"}
_NEEDS: Final = {
    Stage.ENCODE: (),
    Stage.ENCODE_IMAGE: (),
    Stage.DENOISE: (Stage.ENCODE, Stage.ENCODE_IMAGE),
    Stage.DECODE: (Stage.DENOISE,),
}


class Darkroom:
    """Results of stages, on their way."""

    def __init__(
        self,
        *,
        store: Store,
        gallery: Gallery,
        book: JobBook,
        models: Registry,
        threads: Threads,
        clock: Clock,
        engine_build: str,
        device: str,
        embeddings: dict[str, Embedding],
        embeddings_bytes_max: int,
        on_problem: Callable[[str], None],
        remember: Callable[[Sequence[Record]], None],
    ) -> None:
        self._store = store
        self._gallery = gallery
        self._book = book
        self._threads = threads
        self._clock = clock
        self._device = device
        self._embeddings = embeddings
        self._embeddings_bytes_max = embeddings_bytes_max
        self._on_problem = on_problem
        self._unsaved: dict[tuple[str, Stage], str] = {}
        self._troubles = {"work": "", "images": ""}
        self.filing = Filing(
            gallery,
            thread=threads.filing,
            remember=remember,
            on_trouble=lambda text: self._trouble("images", text),
        )
        self.models = models
        self.engine_build = engine_build
        self.remarks: dict[str, str] = {}

    # --- before a stage

    def assign(self, task: ef.RunStage) -> Assignment | None:
        """Say what an attempt starts from; None when the image is not known any more."""
        frame, model = self._book.frame(task.job), self.models.entries.get(task.model)
        if frame is None or model is None:
            return None
        entry = self._book.entry(frame.job)
        key = ""
        if task.stage is Stage.ENCODE:
            key = self._key(model, frame.request, task.execution.placement)
        output = self._store.work(f"{frame.name}.{task.attempt}.{task.stage.value}")
        command = messages.RunStage(
            serial=0,
            stage=task.stage,
            request=frame.request,
            execution=task.execution,
            inputs=self._inputs(frame, task.stage),
            output="" if task.stage is Stage.DECODE else str(output),
            tape=str(self._tape(frame)) if task.stage is Stage.DENOISE else "",
            fingerprint={
                "image": frame.name,
                "engine_build": self.engine_build,
                "stage": task.stage.value,
                "seed": str(frame.request.seed),
            },
            previews=True,
        )
        return Assignment(
            task=task,
            frame=frame,
            entry=entry,
            model=model,
            command=command,
            embedding_key=key,
            is_made=bool(key) and key in self._embeddings,
        )

    async def lay_out(self, assignment: Assignment, *, exchange: int) -> None:
        """Put the given picture where the worker reads it."""
        if assignment.task.stage is not Stage.ENCODE_IMAGE:
            return
        path = self._store.path(assignment.entry.ticket.init_sha256)
        try:
            await on(self._threads.files, _put, exchange, path)
        except OSError as error:
            raise Spoilt(Failure.ENGINE, f"the given picture cannot be read: {error.strerror}") from error

    def remembered(self, model: Model, request: messages.ImageRequest, *, has_card: bool) -> Embedding | None:
        """Embeddings of this prompt as a machine with room for everything would compute them."""
        placement = Placement.CARD if has_card else Placement.CPU
        return self._embeddings.get(self._key(model, request, placement))

    def _key(self, model: Model, request: messages.ImageRequest, placement: Placement) -> str:
        where = "cpu" if placement is Placement.CPU else self._device
        return model.embedding_key(request, engine_build=self.engine_build, device=where)

    def _inputs(self, frame: Frame, stage: Stage) -> dict[str, str]:
        found = {}
        for needed in _NEEDS[stage]:
            unsaved = self._unsaved.get((frame.name, needed))
            if unsaved is not None:
                found[_ROLES[needed]] = unsaved
            elif needed in frame.checkpoints:
                found[_ROLES[needed]] = str(self._store.path(frame.checkpoints[needed].sha256))
        return found

    def _tape(self, frame: Frame) -> Path:
        return self._store.work(tape_of(frame.name))

    # --- after a stage

    def keep_again(self, assignment: Assignment) -> list[Record]:
        """Use what another image's stage left."""
        known = self._embeddings[assignment.embedding_key]
        return self._counted(assignment, known.sha256, known.execution)

    async def keep(
        self, assignment: Assignment, done: messages.StageFinished, *, exchange: int
    ) -> list[Record]:
        """Take in what a stage left, and return the records that make it count. Raises `Spoilt`."""
        task, frame = assignment.task, assignment.frame
        if task.stage is Stage.DECODE:
            return await self._develop(assignment, done, exchange)
        if not done.storage_error:
            # Only what we asked for, where we asked for it, is taken in; its name shall tell the truth.
            output = Path(assignment.command.output)
            if not await on(self._threads.files, _holds, output, done.sha256):
                raise Spoilt(Failure.ENGINE, "the file that was announced is not there, or is another one")
            try:
                await on(self._threads.files, self._store.adopt, output, done.sha256)
            except OSError as error:
                # What the worker wrote is there all the same, under the name that it was written to.
                return self._left_unsaved(assignment, error.strerror or str(error))
            self._trouble("work", "")
            if task.stage is Stage.DENOISE:
                await on(self._threads.files, self._store.discard, tape_of(frame.name))
            return self._counted(assignment, done.sha256, task.execution)
        return self._left_unsaved(assignment, done.storage_error)

    def _left_unsaved(self, assignment: Assignment, why: str) -> list[Record]:
        self._unsaved[assignment.frame.name, assignment.task.stage] = assignment.command.output
        assignment.frame.executions[assignment.task.stage] = assignment.task.execution
        self._trouble(
            "work",
            f"Finished work cannot be saved: {why[:1].lower()}{why[1:]}. "
            "The image is made all the same, but a crash would cost the work done so far.",
        )
        return []

    def _trouble(self, what: str, text: str) -> None:
        """Tell what the disk does not take, once, and that it takes it again."""
        if self._troubles[what] != text:
            self._troubles[what] = text
            self._on_problem(" ".join(told for told in self._troubles.values() if told))

    def _counted(self, assignment: Assignment, sha256: str, execution: Execution) -> list[Record]:
        frame, stage = assignment.frame, assignment.task.stage
        checkpoint = Checkpoint(
            stage=stage, sha256=sha256, engine_build=self.engine_build, execution=execution
        )
        frame.checkpoints[stage] = checkpoint
        frame.executions[stage] = execution
        self._unsaved.pop((frame.name, stage), None)
        self.remarks.pop(frame.name, None)
        records = [rec.stage_kept(frame.name, checkpoint)]
        if assignment.embedding_key:
            records += self._remember(assignment.embedding_key, sha256, execution)
        return records

    def _remember(self, key: str, sha256: str, execution: Execution) -> list[Record]:
        self._embeddings.pop(key, None)
        embedding = Embedding(
            sha256=sha256,
            size_bytes=self._store.size_bytes(sha256),
            used_at_ms=self._clock.now_ms(),
            execution=execution,
        )
        self._embeddings[key] = embedding
        records = [rec.embedding_kept(key, embedding)]
        in_use = self._book.objects()
        total_bytes = sum(known.size_bytes for known in self._embeddings.values())
        for old, known in tuple(self._embeddings.items()):
            if total_bytes <= self._embeddings_bytes_max:
                break
            if known.sha256 in in_use:
                continue
            total_bytes -= known.size_bytes
            del self._embeddings[old]
            records.append(rec.embedding_forgotten(old))
            self._threads.files.submit(self._store.remove, known.sha256)
        return records

    async def spoil(self, task: ef.RunStage, failure: Failure) -> list[Record]:
        """An attempt failed: throw away what its successor must not go on from."""
        if failure is Failure.NOT_FINITE and task.stage is Stage.DENOISE:
            # The poison is on the tape too.
            await on(self._threads.files, self._store.discard, tape_of(task.job))
        return []

    async def lost(self, task: ef.RunStage) -> tuple[tuple[Stage, ...], list[Record]]:
        """The earlier stages whose results an attempt could not use, and the records by which they do not
        count any more.
        """
        frame = self._book.frame(task.job)
        if frame is None:
            return (), []
        gone = await on(self._threads.files, self._gone, frame, task.stage)
        records: list[Record] = []
        for stage in gone:
            self._unsaved.pop((frame.name, stage), None)
            kept = frame.checkpoints.pop(stage, None)
            records.append(rec.stage_forgotten(frame.name, stage))
            spoilt = [key for key, known in self._embeddings.items() if kept and known.sha256 == kept.sha256]
            for key in spoilt:
                del self._embeddings[key]
                records.append(rec.embedding_forgotten(key))
        return gone, records

    def _gone(self, frame: Frame, stage: Stage) -> tuple[Stage, ...]:
        """What must run again before this stage can, in order. On the `files` thread."""
        gone: list[Stage] = []
        for needed in _NEEDS[stage]:
            if needed not in self._book.entry(frame.job).stages:
                continue
            unsaved, kept = self._unsaved.get((frame.name, needed)), frame.checkpoints.get(needed)
            if unsaved is not None:
                is_there = Path(unsaved).is_file()
            else:
                is_there = kept is not None and self._store.is_sound(kept.sha256)
            if not is_there:
                gone += [*self._gone(frame, needed), needed]
        return tuple(dict.fromkeys(gone))

    def note(self, task: ef.RunStage, message: str) -> None:
        """Remember what the engine said about a failure, for the story."""
        self.remarks[task.job] = message

    def clear(self, frame: Frame) -> None:
        """The image has ended: nothing is needed for it any more but what others remember."""
        if frame.outcome is JobPhase.DONE:
            self.filing.committed(frame.name)
        kept = self._book.objects() | {known.sha256 for known in self._embeddings.values()}
        gone = {checkpoint.sha256 for checkpoint in frame.checkpoints.values()} - kept - {""}
        gone -= self._gallery.objects()
        for sha256 in sorted(gone):
            self._threads.files.submit(self._store.remove, sha256)
        self._threads.files.submit(self._store.discard, tape_of(frame.name))
        self.remarks.pop(frame.name, None)
        for stage in Stage:
            self._unsaved.pop((frame.name, stage), None)
        frame.forget()

    def objects(self) -> set[str]:
        """Every object that something refers to."""
        known = {embedding.sha256 for embedding in self._embeddings.values()}
        return known | self._book.objects() | self._gallery.objects()

    # --- the picture

    async def _develop(
        self, assignment: Assignment, done: messages.StageFinished, exchange: int
    ) -> list[Record]:
        frame, execution = assignment.frame, assignment.task.execution
        frame.executions[Stage.DECODE] = execution
        picture = await on(self._threads.pictures, self._print, assignment, done.sha256, exchange)
        checkpoint = Checkpoint(
            stage=Stage.DECODE, sha256="", engine_build=self.engine_build, execution=execution
        )
        return [rec.stage_kept(frame.name, checkpoint), picture]

    def _print(self, assignment: Assignment, sha256: str, exchange: int) -> Record:
        """Make the PNG and the record by which it is safe. Raises `Spoilt`. On the `pictures` thread."""
        view, data, is_blank = printed(
            assignment,
            exchange=exchange,
            sha256=sha256,
            at_ms=self._clock.now_ms(),
            made_with={"engine_build": self.engine_build, "device": self._device},
        )
        record = self.filing.take(view, data)
        if is_blank:
            # It may be delivered all the same, by an event that carries no record: it has files at once.
            self.filing.write()
            raise Spoilt(Failure.BLANK, "the image is of one colour")
        return record


def _holds(path: Path, sha256: str) -> bool:
    try:
        return artifacts.sha256_of(path) == sha256
    except artifacts.UnreadableArtifact:
        return False


def tape_of(image: str) -> str:
    """The name of an image's tape in the work folder."""
    return f"{image}.tape"


def _put(exchange: int, path: Path) -> None:
    data = memoryview(path.read_bytes())
    os.ftruncate(exchange, len(data))
    offset = 0
    while offset < len(data):
        offset += os.pwrite(exchange, data[offset:], offset)


def kept_by(frames: Sequence[Frame]) -> set[str]:
    """Names of the tapes that somebody will go on with."""
    return {tape_of(frame.name) for frame in frames}
