"""The world of the policy benchmark: performs a policy's effects at measured cost, without faults.

Owns time, processes, who physically holds which bytes, and telemetry. Nothing fails here but allocations for
which there is no room: the card is exactly as large as it is, whoever asks. Every policy speaks the arbiter's
protocol, events in and effects out; images are in `painting.py`, language models in `talking.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from policies.costs import Costs
from policies.instances import Instance, Request
from policies.outcome import CHAT_WEIGHT, Outcome
from policies.painting import Painting
from policies.shared import Shared
from policies.talking import Talking

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.effects import Effect
from tidegate.core.house import RAM
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Execution
from tidegate.core.worker import WorkerKind

CARD = "gpu0"
PROCESS_BYTES = 256 * MIB
# Whoever has no answer this long after the last request never gets one.
PATIENCE_MS = 1_200_000


class Policy(Protocol):
    """Whoever decides: the arbiter, or one of its rivals."""

    def handle(self, event: ev.Event) -> tuple[Effect, ...]:
        """Take in a fact and answer with what shall be done."""


@dataclass(slots=True)
class Part:
    """Bytes of one part of a process."""

    card_bytes: int = 0
    ram_bytes: int = 0
    execution: Execution | None = None


@dataclass(slots=True, kw_only=True)
class Process:
    """A living process."""

    worker: str
    incarnation: int
    kind: WorkerKind
    model: str
    is_ready: bool = False
    is_dead: bool = False
    level: str = "cold"
    layers: int = 0
    parts: dict[str, Part] = field(default_factory=dict)

    def bytes_on(self, pool: str) -> int:
        """Bytes that it holds on a pool."""
        if pool == RAM:
            return sum(part.ram_bytes for part in self.parts.values())
        return sum(part.card_bytes for part in self.parts.values())


class World:
    """One instance under one policy."""

    def __init__(self, instance: Instance, policy: Policy, *, costs: Costs) -> None:
        self.instance = instance
        self.policy = policy
        self.costs = costs
        self.now_ms = 0.0
        self.outcome = Outcome()
        self.processes: dict[str, Process] = {}
        self.card = Shared(self)
        self.cores = Shared(self)
        self.painting = Painting(self)
        self.talking = Talking(self)
        self._totals = {CARD: instance.card_gib * GIB, RAM: int(costs.machine["ram_mib"]) * MIB}
        self._open: dict[str, Request] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._wake_number = 0
        self._sampling: set[str] = set()

    def run(self) -> Outcome:
        """Let everything happen, and say what became of it."""
        for request in self.instance.requests:
            self._open[request.name] = request
            self.later(request.at_ms, self._asked(request))
        end_ms = max(request.at_ms for request in self.instance.requests) + PATIENCE_MS
        while self._heap and self._open and self._heap[0][0] <= end_ms:
            self.now_ms, _, do = heapq.heappop(self._heap)
            do()
        for request in tuple(self._open.values()):
            self.ended(request.name, answered=False)
        return self.outcome

    # --- time ---

    def later(self, in_ms: float, do: Callable[[], None]) -> None:
        """Do something after a while."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0.0, in_ms), self._number, do))

    @property
    def at_ms(self) -> int:
        """The time as events carry it."""
        return int(self.now_ms)

    def deliver(self, event: ev.Event) -> None:
        """Tell the policy a fact and perform what it wants."""
        self.outcome.events_count += 1
        for effect in self.policy.handle(event):
            self._perform(effect)

    def say(self, process: Process, in_ms: float, make: Callable[[], ev.Event]) -> None:
        """A process reports something after a while, unless it is dead by then."""

        def speak() -> None:
            if not process.is_dead:
                self.deliver(make())

        self.later(in_ms, speak)

    # --- requests ---

    def _asked(self, request: Request) -> Callable[[], None]:
        def ask() -> None:
            if request.is_image:
                self.deliver(self.painting.submitted(request))
            else:
                self.deliver(self.talking.submitted(request))

        return ask

    def ended(self, name: str, *, answered: bool) -> None:
        """A request has its answer, or will never have one."""
        request = self._open.pop(name)
        waited_ms = int(self.now_ms - request.at_ms)
        if not answered:
            self.outcome.failed_images += request.is_image
            self.outcome.failed_chats += not request.is_image
            self.outcome.failed_wait_ms += waited_ms if request.is_image else CHAT_WEIGHT * waited_ms
        elif request.is_image:
            self.outcome.image_ms.append(waited_ms)
        else:
            own_ms = request.answer_count * self.costs.llms[request.model].token_ms
            self.outcome.chat_ms.append(int(waited_ms - own_ms))
            self.outcome.first_token_ms.append(self.talking.first_token_ms(name))

    # --- bytes ---

    def used(self, pool: str) -> int:
        """Bytes in use on a pool."""
        return sum(process.bytes_on(pool) for process in self.processes.values())

    def fits(self, *, card_bytes: int, ram_bytes: int) -> bool:
        """Whether there are that many bytes more; a refusal is counted."""
        fits = self.used(CARD) + max(0, card_bytes) <= self._totals[CARD]
        fits = fits and self.used(RAM) + max(0, ram_bytes) <= self._totals[RAM]
        self.outcome.refused_count += not fits
        return fits

    def context_part(self, process: Process) -> int:
        """Bytes of a device context that a process does not have yet."""
        return 0 if "context" in process.parts else self.costs.context_bytes

    def sample(self, pool: str) -> None:
        """Show the policy who holds what on a pool, now."""
        self._sampling.discard(pool)
        holders = tuple(
            ev.Holding(name, process.incarnation, process.bytes_on(pool))
            for name, process in self.processes.items()
            if process.bytes_on(pool)
        )
        self.deliver(
            ev.PoolObserved(
                at_ms=self.at_ms, pool=pool, taken_ms=self.at_ms, used_bytes=self.used(pool), holders=holders
            )
        )

    # --- effects ---

    def process_of(self, worker: str, incarnation: int) -> Process | None:
        """The living process that an effect is meant for."""
        process = self.processes.get(worker)
        return process if process is not None and process.incarnation == incarnation else None

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ef.WakeAt():
                self._wake(effect.at_ms)
            case ef.Observe():
                if effect.pool not in self._sampling:
                    self._sampling.add(effect.pool)
                    self.later(self.costs.machine["sample_ms"], lambda: self.sample(effect.pool))
            case ef.StartWorker():
                self._start(effect)
            case ef.TerminateWorker() | ef.KillWorker():
                self._end(effect)
            case ef.RunStage() | ef.StopStage() | ef.ReleaseComponents() | ef.ReinitialiseWorker():
                self.painting.perform(effect)
            case ef.SetLevel() | ef.ServeChat() | ef.DropChat():
                self.talking.perform(effect)
            case ef.FinishJob():
                self.ended(effect.job, answered=effect.outcome is ef.Outcome.DONE)
                self.later(1, lambda: self.deliver(ev.JobClosed(at_ms=self.at_ms, job=effect.job)))
            case ef.FinishChat():
                self.ended(effect.request, answered=effect.outcome is ef.Outcome.DONE)
            case ef.Predict() | ef.PredictLlm() | ef.AnswerGuest() | ef.AskGuest():
                raise AssertionError(f"nobody expects {effect} here")
            case ef.Tell():
                pass

    def _wake(self, at_ms: int) -> None:
        self._wake_number += 1
        number = self._wake_number

        def ring() -> None:
            if number == self._wake_number:
                self.deliver(ev.Woke(at_ms=self.at_ms))

        self.later(at_ms - self.at_ms + 1, ring)

    def _start(self, effect: ef.StartWorker) -> None:
        assert effect.worker not in self.processes, f"{effect.worker} is started twice"
        process = Process(
            worker=effect.worker, incarnation=effect.incarnation, kind=effect.kind, model=effect.model
        )
        process.parts["process"] = Part(ram_bytes=PROCESS_BYTES)
        self.processes[effect.worker] = process

        def up() -> ev.Event:
            process.is_ready = True
            return ev.WorkerReady(at_ms=self.at_ms, worker=effect.worker, incarnation=effect.incarnation)

        self.say(process, self.costs.machine["standby_ms"], up)

    def _end(self, effect: ef.TerminateWorker | ef.KillWorker) -> None:
        process = self.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        self.painting.lost(process)
        self.talking.lost(process)

        def reaped() -> None:
            if self.processes.get(effect.worker) is process:
                process.is_dead = True
                del self.processes[effect.worker]
                self.deliver(
                    ev.WorkerExited(
                        at_ms=self.at_ms, worker=effect.worker, incarnation=effect.incarnation, signal=15
                    )
                )

        self.later(self.costs.machine["exit_ms"], reaped)
