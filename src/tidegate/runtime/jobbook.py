"""The job book: every job that the server knows, with its images, as clients see them.

    a job (what somebody asked for)  ->  one image per seed, each of them a job of the core

Owns tickets, ids and what was kept of finished stages. Where an image stands while it is being made is the
core's knowledge; here is only what the core does not know or has forgotten.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tidegate.core.faults import ClientError
from tidegate.core.image.job import JobPhase
from tidegate.core.stage import Execution, Stage, relay
from tidegate.runtime.journal.records import Checkpoint, Ticket
from tidegate.runtime.journal.recovery import SavedJob
from tidegate.runtime.order import SEED_MAX
from tidegate.runtime.views import ImageState, JobView
from tidegate.wire.messages import ImageRequest

# Ended jobs that are remembered; their images stay in the gallery for longer.
JOBS_MAX: Final = 2_000
NOTICES_MAX: Final = 100
_ID_BYTES: Final = 8


@dataclass(slots=True, kw_only=True)
class Frame:
    """One image of a job."""

    name: str
    job: str
    index: int
    request: ImageRequest
    outcome: JobPhase | None = None
    code: str = ""
    message: str = ""
    retry_after_ms: int = 0
    step: int = 0
    steps_count: int = 0
    checkpoints: dict[Stage, Checkpoint] = field(default_factory=dict)
    executions: dict[Stage, Execution] = field(default_factory=dict)

    def forget(self) -> None:
        """What was kept of its stages does not count any more."""
        self.checkpoints.clear()


@dataclass(slots=True, kw_only=True)
class Entry:
    """One job."""

    id: str
    key: str
    ticket: Ticket
    submitted_at_ms: int
    ended_at_ms: int = 0
    frames: list[Frame] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of each image, in order."""
        return relay(from_image=bool(self.ticket.init_sha256))

    def remaining(self, frame: Frame) -> tuple[Stage, ...]:
        """The stages that must still run: what a kept result makes needless is left out."""
        if Stage.DENOISE in frame.checkpoints:
            return (Stage.DECODE,)
        return tuple(stage for stage in self.stages if stage not in frame.checkpoints)


class JobBook:
    """All jobs, the oldest first."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._frames: dict[str, Frame] = {}
        self._keys: dict[str, str] = {}

    def restore(self, saved: Iterable[SavedJob]) -> None:
        """Take over what the journal held."""
        for job in saved:
            entry = Entry(
                id=job.id,
                key=job.key,
                ticket=job.ticket,
                submitted_at_ms=job.submitted_at_ms,
                ended_at_ms=job.ended_at_ms,
                notices=job.notices[-NOTICES_MAX:],
            )
            for index, image in enumerate(job.images):
                frame = _frame(entry, index)
                frame.outcome = JobPhase(image.outcome) if image.outcome else None
                frame.code, frame.message = image.code, image.message
                # Of an image that has ended nothing is kept but how it was made.
                frame.checkpoints = {} if image.outcome else dict(image.checkpoints)
                frame.executions = {stage: kept.execution for stage, kept in image.checkpoints.items()}
                entry.frames.append(frame)
            self._enter(entry)

    def open(self, ticket: Ticket, *, key: str, at_ms: int) -> Entry:
        """Make a job; it counts from `enter` on."""
        entry = Entry(id=secrets.token_hex(_ID_BYTES), key=key, ticket=ticket, submitted_at_ms=at_ms)
        entry.frames = [_frame(entry, index) for index in range(ticket.count)]
        return entry

    def enter(self, entry: Entry) -> list[str]:
        """Remember a job; return the ids of those that are forgotten for it."""
        self._enter(entry)
        ended = [old.id for old in self._entries.values() if old.ended_at_ms]
        forgotten = ended[: max(0, len(ended) - JOBS_MAX)]
        for job in forgotten:
            self._leave(job)
        return forgotten

    def by_key(self, key: str) -> Entry | None:
        """The job that was sent with this idempotency key."""
        job = self._keys.get(key) if key else None
        return self._entries.get(job) if job else None

    def entry(self, job: str) -> Entry:
        """A job. Raises ClientError `unknown_job`."""
        try:
            return self._entries[job]
        except KeyError:
            raise ClientError(
                f"There is no job {job}.", remedy="GET /api/jobs lists them.", code="unknown_job"
            ) from None

    def frame(self, name: str) -> Frame | None:
        """An image by its name, which is also the name of the core's job."""
        return self._frames.get(name)

    def entries(self) -> list[Entry]:
        """All jobs, the youngest first."""
        return list(reversed(self._entries.values()))

    def unfinished(self) -> list[tuple[Entry, Frame]]:
        """Every image that has not ended, in the order of submission."""
        return [
            (entry, frame)
            for entry in self._entries.values()
            for frame in entry.frames
            if frame.outcome is None
        ]

    def objects(self) -> set[str]:
        """Every object of the store that an unfinished job needs."""
        kept = set()
        for entry, frame in self.unfinished():
            kept |= {checkpoint.sha256 for checkpoint in frame.checkpoints.values()}
            kept.add(entry.ticket.init_sha256)
        return kept - {""}

    def _enter(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        if entry.key:
            self._keys[entry.key] = entry.id
        for frame in entry.frames:
            self._frames[frame.name] = frame

    def _leave(self, job: str) -> None:
        entry = self._entries.pop(job)
        self._keys.pop(entry.key, None)
        for frame in entry.frames:
            self._frames.pop(frame.name, None)


def _frame(entry: Entry, index: int) -> Frame:
    seed = (entry.ticket.request.seed + index) % (SEED_MAX + 1)
    request = msgspec.structs.replace(entry.ticket.request, seed=seed)
    return Frame(name=f"{entry.id}-{index}", job=entry.id, index=index, request=request)


# An earlier phase stands before a later one; the job is where its least advanced image is.
_ORDER: Final = tuple(JobPhase)


def view_of(entry: Entry, phase_of: Callable[[Frame], JobPhase]) -> JobView:
    """A job as clients see it; `phase_of` tells where an image stands."""
    images = tuple(
        ImageState(
            index=frame.index,
            seed=frame.request.seed,
            phase=phase_of(frame),
            step=frame.step,
            steps_count=frame.steps_count,
            image=frame.name if frame.outcome is JobPhase.DONE else "",
            code=frame.code,
            message=frame.message,
            retry_after_ms=frame.retry_after_ms,
            executions=dict(frame.executions),
        )
        for frame in entry.frames
    )
    ended = all(frame.outcome is not None for frame in entry.frames)
    phase = min((image.phase for image in images), key=_ORDER.index)
    if ended:
        # Done, failed or cancelled: the worst of them, which stands last.
        phase = max((image.phase for image in images), key=_ORDER.index)
        phase = JobPhase.FAILED if any(image.phase is JobPhase.FAILED for image in images) else phase
    worst = next((image for image in images if image.code), None)
    return JobView(
        id=entry.id,
        model=entry.ticket.model,
        phase=phase,
        request=entry.ticket.request,
        images=images,
        priority=entry.ticket.priority,
        submitted_at_ms=entry.submitted_at_ms,
        ended_at_ms=entry.ended_at_ms,
        code=worst.code if worst else "",
        message=worst.message if worst else "",
        retry_after_ms=worst.retry_after_ms if worst else 0,
        notices=tuple(entry.notices),
        from_image=bool(entry.ticket.init_sha256),
    )
