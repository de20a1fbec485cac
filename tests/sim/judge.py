"""The judge: what must never happen, decided from effects and physical truth alone.

Owns the rules of safety (bytes, protocol, jobs, requests, guests) and of fairness. It never calls core code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.truth import Truth

from tidegate.core import effects as ef
from tidegate.core.events import JobSubmitted
from tidegate.core.stage import Execution, Stage

# A job may be overtaken by this many later ones of no higher priority; batching is bounded by time, so few.
OVERTAKEN_MAX = 3
# The ladder has five rungs at most; with a retry for each and one more the ladder ends at eight.
ATTEMPTS = 8
# In a world without faults a chat waits for an answer that goes on (10 s), for the turn of an image or of a
# model (5 s), and where it does not pay to stop anybody, for its own bound (30 s).
CHAT_WAIT_MAX_MS = 45_000


class Violation(AssertionError):
    """A rule was broken."""


@dataclass(slots=True)
class JobRecord:
    """What the judge remembers of a job."""

    at_ms: int
    priority: int
    kind: tuple[object, ...]  # Model, size and stages.
    left: list[Stage]
    started: bool = False
    finished: str = ""
    overtaken_count: int = 0
    failed_attempts: int = 0
    blanks_count: int = 0
    nans: list[tuple[Stage, Execution]] = field(default_factory=list)


@dataclass(slots=True)
class RequestRecord:
    """What the judge remembers of a request."""

    model: str
    at_ms: int
    left_ms: int
    serving: bool = False
    ended: str = ""
    waits_since_ms: int = 0
    failed_attempts: int = 0
    cancelled: bool = False


@dataclass(slots=True)
class Judge:
    """Keeps its own books."""

    truth: Truth
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    requests: dict[str, RequestRecord] = field(default_factory=dict)
    answers: dict[str, ef.GuestState] = field(default_factory=dict)
    is_calm: bool = False  # Nothing fails and nobody else is there, so that waiting has a bound.
    longest_wait_ms: int = 0
    one_at_a_time: bool = False  # There is one image worker, so that like jobs begin in their order.
    impossible: set[str] = field(
        default_factory=set
    )  # Jobs for which the machine is too small, as the world knows.

    def must(self, holds: bool, what: str) -> None:
        """Complain when a rule is broken."""
        if not holds:
            raise Violation(what)

    def bytes_granted(self, why: str, **amounts: int) -> None:
        """After every grant: what may be used as far as can be known never exceeds what there is.

        `amounts` are the bytes granted on each pool; who takes nothing from a pool is not to blame for it.
        """
        for name, pool in self.truth.pools.items():
            if not amounts.get(name):
                continue
            entitled = self.truth.entitled(name)
            if entitled > pool.total_bytes:
                over = (entitled - pool.total_bytes) >> 20
                raise Violation(f"{name}: {over} MiB more promised than there is, after {why}")

    def submitted(self, event: JobSubmitted) -> None:
        """A job came."""
        self.jobs[event.job] = JobRecord(
            event.at_ms, event.priority, (event.model, event.latent_height, event.stages), list(event.stages)
        )

    def stage_begins(self, effect: ef.RunStage) -> None:
        """Stages run in order, none twice after it was finished, and nobody is overtaken for ever."""
        record = self.jobs.get(effect.job)
        self.must(record is not None and not record.finished, f"{effect.job} runs though it has ended")
        assert record is not None, "checked in the line above"
        self.must(
            bool(record.left) and record.left[0] is effect.stage, f"{effect.job}: {effect.stage} out of turn"
        )
        if record.started:
            return
        record.started = True
        for name, other in self.jobs.items():
            waits = not other.started and not other.finished and name not in self.impossible
            if waits and other.at_ms < record.at_ms and other.priority >= record.priority:
                other.overtaken_count += 1
                alike = other.kind == record.kind and self.one_at_a_time
                self.must(not alike, f"{name} was overtaken by {effect.job}, which is like it")
                self.must(other.overtaken_count <= OVERTAKEN_MAX, f"{name} was overtaken too often")

    def stage_done(self, job: str) -> None:
        """A checkpoint was written; that work must not be lost."""
        self.jobs[job].left.pop(0)

    def job_finished(self, effect: ef.FinishJob) -> None:
        """Every job ends once, and fails only when it was tried in every way or cannot be done."""
        record = self.jobs.get(effect.job)
        self.must(record is not None, f"{effect.job} ended and never was")
        assert record is not None, "checked in the line above"
        self.must(not record.finished, f"{effect.job} ended twice")
        record.finished = effect.outcome.value
        match effect.outcome:
            case ef.Outcome.DONE:
                # An image that was of one colour twice is delivered: somebody may have asked for black.
                blank = record.left == [Stage.DECODE] and record.blanks_count >= 2
                self.must(not record.left or blank, f"{effect.job} is done with {record.left} left")
            case ef.Outcome.FAILED:
                tried = record.failed_attempts >= ATTEMPTS or effect.code == "prediction"
                # What was NaN twice in the same execution need not be tried again.
                tried = tried or len(set(record.nans)) < len(record.nans)
                too_big = effect.code == "out_of_memory" and effect.job in self.impossible
                self.must(tried or too_big, f"{effect.job} failed ({effect.code}): {effect.message}")
                self.must(bool(effect.message), "a failure without words")
            case ef.Outcome.CANCELLED:
                pass

    def chat_begins(self, request: str, *, at_ms: int) -> None:
        """A request is served, first or again; where nothing fails it has not waited long."""
        waited_ms = at_ms - self.requests[request].waits_since_ms
        self.longest_wait_ms = max(self.longest_wait_ms, waited_ms)
        late = self.is_calm and waited_ms > CHAT_WAIT_MAX_MS
        self.must(not late, f"{request} waited {waited_ms} ms though nothing failed")

    def request_ended(self, effect: ef.FinishChat, *, may_fail: bool) -> None:
        """Every request ends once, and fails only after it was tried several times or cannot be served."""
        record = self.requests.get(effect.request)
        self.must(record is not None and not record.ended, f"{effect.request} ended twice, or never was")
        assert record is not None, "checked in the line above"
        record.ended = effect.outcome.value
        record.serving = False
        if effect.outcome is ef.Outcome.DONE:
            self.must(record.left_ms <= 0, f"{effect.request} is done before its last token")
        if effect.outcome is ef.Outcome.FAILED:
            self.must(may_fail, f"{effect.request} failed ({effect.code}): {effect.message}")
        if effect.outcome is ef.Outcome.CANCELLED:
            self.must(record.cancelled, f"{effect.request} was cancelled by nobody")

    def guest_answered(self, effect: ef.AnswerGuest) -> None:
        """A guest hears granted, waiting or denied, and nothing after its end."""
        before = self.answers.get(effect.lease)
        over = before in (ef.GuestState.DENIED, ef.GuestState.ENDED)
        self.must(not over, f"{effect.lease} was answered after its end")
        if effect.state is ef.GuestState.ENDED:
            self.must(before is not None, f"{effect.lease} ended and never began")
        self.answers[effect.lease] = effect.state

    def all_ended(self) -> None:
        """Liveness: everybody got an answer."""
        for name, job in self.jobs.items():
            self.must(bool(job.finished), f"{name} never ended: {[str(stage) for stage in job.left]} left")
        for name, request in self.requests.items():
            self.must(bool(request.ended), f"{name} was never answered")
        for lease, state in self.answers.items():
            done = state in (ef.GuestState.DENIED, ef.GuestState.ENDED)
            self.must(done, f"{lease} is still {state}")
