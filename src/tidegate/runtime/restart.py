"""The restart: a core that goes on where the last server stopped, and what it must be told first.

    the last snapshot and the events after it  ->  the same core, told that its workers are gone
    no snapshot, another house, or lost work   ->  a new core, given every job that had not ended

Owns the choice between the two ways and the events that close the gap between journal and core. Jobs that
had ended are history; jobs that had not are finished whatever it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.faults import Bug
from tidegate.core.house import House
from tidegate.core.image.job import ENDED
from tidegate.core.policy import Policy
from tidegate.core.stage import Stage
from tidegate.runtime.jobbook import Entry, Frame, JobBook
from tidegate.runtime.journal import codec
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Record
from tidegate.runtime.journal.recovery import Recovered
from tidegate.runtime.registry import Entry as Model
from tidegate.runtime.registry import Registry

# Latent cells of a side of pixels, for a job whose model is not there any more and will be refused.
_FACTOR: Final = 8


@dataclass(slots=True, kw_only=True)
class Resumption:
    """A core and the letters that it gets before any other."""

    arbiter: Arbiter
    is_fresh: bool
    events: list[ev.Event] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def resumed(
    found: Recovered,
    book: JobBook,
    *,
    house: House,
    policy: Policy,
    models: Registry,
    engine_build: str,
    is_sound: Callable[[str], bool],
    now_ms: int,
) -> Resumption:
    """Take up what the journal held. Blocks: kept results are read and hashed."""
    lost = _lost_work(book, engine_build=engine_build, is_sound=is_sound)
    problems: list[str] = []
    known = _replayed(found, problems) if found.snapshot else None
    arbiter = known
    if known is not None and (lost or (known.state.house, known.state.policy) != (house, policy)):
        # Work, cards, models or limits are others now. What was measured is as true as before.
        arbiter = None
    fresh = Arbiter(house, policy)
    if known is not None:
        fresh.inherit(known)
    if lost:
        problems.append(f"{len(lost)} kept results are damaged or of another engine and are made again.")
    is_fresh = arbiter is None
    resumption = Resumption(
        arbiter=arbiter or fresh,
        is_fresh=is_fresh,
        records=[rec.stages_forgotten(frame.name) for frame in lost],
        problems=problems,
    )
    _close_gap(resumption, book, models, now_ms=now_ms)
    return resumption


def submission(entry: Entry, frame: Frame, model: Model | None, *, at_ms: int) -> ev.JobSubmitted:
    """An image as the core is told about it."""
    factor = model.opened.latent_factor if model is not None else _FACTOR
    return ev.JobSubmitted(
        at_ms=at_ms,
        job=frame.name,
        model=model.name if model is not None else entry.ticket.model,
        latent_height=max(1, frame.request.height // factor),
        latent_width=max(1, frame.request.width // factor),
        steps_count=max(1, frame.request.steps),
        stages=entry.remaining(frame),
        priority=entry.ticket.priority,
    )


def _lost_work(book: JobBook, *, engine_build: str, is_sound: Callable[[str], bool]) -> list[Frame]:
    """Forget kept results that cannot be used; name the images that have lost some."""
    lost = []
    for _, frame in book.unfinished():
        kept = [checkpoint for stage, checkpoint in frame.checkpoints.items() if stage is not Stage.DECODE]
        if all(known.engine_build == engine_build and is_sound(known.sha256) for known in kept):
            continue
        frame.forget()
        lost.append(frame)
    return lost


def _replayed(found: Recovered, problems: list[str]) -> Arbiter | None:
    try:
        arbiter = codec.arbiter_of(found.snapshot)
        for event in found.events:
            arbiter.handle(event)
    except (codec.Misread, Bug, AssertionError, KeyError) as error:
        # Another version of the core judges these events otherwise; the tables are true all the same.
        problems.append(f"The journal could not be replayed ({error}); jobs are taken up from its tables.")
        return None
    return arbiter


def _close_gap(resumption: Resumption, book: JobBook, models: Registry, *, now_ms: int) -> None:
    jobs = resumption.arbiter.state.jobs
    unfinished = {frame.name: (entry, frame) for entry, frame in book.unfinished()}
    if not resumption.is_fresh:
        resumption.events.append(ev.Restarted(at_ms=now_ms))
    for name, job in jobs.items():
        if job.phase in ENDED:
            resumption.events.append(ev.JobClosed(at_ms=now_ms, job=name))
        elif name not in unfinished:
            resumption.events.append(ev.JobCancelled(at_ms=now_ms, job=name))
    for known in resumption.arbiter.state.models.values():
        # Whoever asked was connected to the server that is gone.
        resumption.events += [ev.ChatCancelled(at_ms=now_ms, request=name) for name in known.requests]
    for name, (entry, frame) in unfinished.items():
        if name not in jobs:
            model = models.entries.get(entry.ticket.model)
            resumption.events.append(submission(entry, frame, model, at_ms=now_ms))
