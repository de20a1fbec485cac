"""The world: performs the arbiter's effects physically, sometimes badly, and reports what happened as events.

Owns virtual time, deliveries and the dispatch of effects. What image workers do is in `studio.py`, what
language models do in `talk.py`; who holds what is in `truth.py`, what must not happen in `judge.py`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.chance import Chance
from tests.sim.guests import Guests
from tests.sim.judge import Judge
from tests.sim.needs import need
from tests.sim.studio import Studio
from tests.sim.talk import Talk
from tests.sim.telemetry import Telemetry
from tests.sim.truth import Part, Process, truth_of
from tests.sim.workload import Act, Faults, Workload, is_calm

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.house import RAM, Sight
from tidegate.core.invariants import check
from tidegate.core.llm.level import Level
from tidegate.core.notice import NoticeKind
from tidegate.core.quantity import MIB
from tidegate.core.stage import relay

PROCESS_BYTES = 256 * MIB


@dataclass(slots=True)
class Counts:
    """What happened in a run, for the statistics."""

    events: int = 0
    effects: int = 0
    workers: int = 0
    faults: int = 0
    evictions: int = 0
    notices: int = 0
    kinds: set[str] = field(default_factory=set)


class World:
    """One seeded world around one arbiter."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.faults = workload.faults
        self.chance = Chance(workload.seed)
        self.truth = truth_of(workload.house)
        self.judge = Judge(self.truth)
        self.judge.is_calm = is_calm(workload)
        self.judge.one_at_a_time = len(workload.house.cards) <= 1
        self.arbiter = Arbiter(workload.house)
        self.now_ms = 0
        self.counts = Counts()
        self.log: list[ev.Event] = []
        self.studio = Studio(self)
        self.talk = Talk(self)
        self.telemetry = Telemetry(self)
        self.guests = Guests(self)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._wake_number = 0
        for act in workload.acts:
            self.later(act.at_ms, self._act_of(act))

    # --- time ---

    def later(self, in_ms: int, do: Callable[[], None]) -> None:
        """Do something after a while."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_ms + max(0, in_ms), self._number, do))

    def step(self) -> bool:
        """Do the next thing; False when there is nothing any more."""
        if not self._heap:
            return False
        self.now_ms, _, do = heapq.heappop(self._heap)
        do()
        return True

    def deliver(self, event: ev.Event) -> None:
        """Tell the arbiter a fact and perform what it wants."""
        self.counts.events += 1
        self.log.append(event)
        for effect in self.arbiter.handle(event):
            self.counts.effects += 1
            self._perform(effect)
        check(self.arbiter.state)

    def calm(self) -> None:
        """Faults are over: foreign processes leave, nobody hangs, dies or insists on anything any more."""
        self.faults = Faults()
        for model in self.workload.llms:
            if any(act.what == "wish" and act.who == model for act in self.workload.acts):
                self._wish(model, "", layers_count=0)
        for name, pool in self.truth.pools.items():
            if pool.foreign:
                pool.foreign = 0
                self.telemetry.soon(name)

    def fault(self, kind: str, name: str, permille: int) -> bool:
        """Whether a fault happens now; it is counted."""
        if self.chance.happens(f"{kind} {name}", permille):
            self.counts.faults += 1
            self.counts.kinds.add(kind)
            return True
        return False

    # --- from outside ---

    def _act_of(self, act: Act) -> Callable[[], None]:
        return lambda: self._act(act)

    def _act(self, act: Act) -> None:
        match act.what:
            case "job":
                side, steps_count, from_image, priority = act.data
                event = ev.JobSubmitted(
                    at_ms=self.now_ms,
                    job=act.who,
                    model=act.text,
                    latent_height=side,
                    latent_width=side,
                    steps_count=steps_count,
                    stages=relay(from_image=bool(from_image)),
                    priority=priority,
                )
                self.judge.submitted(event)
                if self.studio.is_impossible(event):
                    self.judge.impossible.add(act.who)
                self.deliver(event)
            case "job_cancel":
                self.deliver(ev.JobCancelled(at_ms=self.now_ms, job=act.who))
            case "unload":
                self.deliver(ev.ModelUnwanted(at_ms=self.now_ms, model=act.who))
            case "chat":
                self.talk.asked(act.who, act.text, priority=act.data[0], length_ms=act.data[1])
            case "chat_cancel":
                self.talk.cancelled(act.who)
            case "foreign":
                self._foreign(act.who, act.data[0])
            case "guest":
                amount, hold_ms, wait_ms = act.data
                self.guests.ask(act.who, act.text, amount_bytes=amount, hold_ms=hold_ms, wait_ms=wait_ms)
            case "wish":
                self._wish(act.who, act.text, layers_count=act.data[0])
            case "intent":
                self.deliver(ev.IntentHeard(at_ms=self.now_ms, model=act.who))
            case "kill":
                self._kill_anybody()
            case "restart":
                self._restart()
            case _:
                raise AssertionError(f"nobody knows how to {act.what}")

    def _wish(self, model: str, level: str, *, layers_count: int) -> None:
        """Somebody wants a model held at a level, or ("") not any more."""
        wanted = Level(level) if level else None
        self.deliver(ev.LevelWished(at_ms=self.now_ms, model=model, level=wanted, layers_count=layers_count))

    def _foreign(self, pool: str, percent: int) -> None:
        truth = self.truth.pools[pool]
        room = truth.total_bytes - self.truth.actual(pool) + truth.foreign
        truth.foreign = min(room, truth.total_bytes * percent // 100)
        self.counts.faults += 1
        self.counts.kinds.add("foreign")
        self.telemetry.soon(pool)

    def _kill_anybody(self) -> None:
        names = sorted(self.truth.processes)
        if names:
            self.counts.faults += 1
            self.counts.kinds.add("killed")
            victim = self.truth.processes[names[self.chance.number("victim", 0, len(names) - 1)]]
            self.die(victim, signal=9, by_others=True)

    def _restart(self) -> None:
        """The arbiter's process is replaced: its state comes back from a snapshot, its children are gone."""
        self.counts.faults += 1
        self.counts.kinds.add("restart")
        saved = json.loads(json.dumps(self.arbiter.snapshot()))
        self.arbiter = Arbiter.restored(saved)
        for process in tuple(self.truth.processes.values()):
            self._gone(process, by_others=True)
        self.deliver(ev.Restarted(at_ms=self.now_ms))

    # --- processes ---

    def process_of(self, worker: str, incarnation: int) -> Process | None:
        """The living process that an effect is meant for; None when its end is on the way."""
        process = self.truth.processes.get(worker)
        return process if process is not None and process.incarnation == incarnation else None

    def die(self, process: Process, *, signal: int = 0, by_others: bool = False) -> None:
        """A process ends, and somewhat later the arbiter hears of it."""
        if process.is_dead:
            return
        self._gone(process, by_others=by_others)

        def reaped() -> None:
            self.deliver(
                ev.WorkerExited(
                    at_ms=self.now_ms, worker=process.worker, incarnation=process.incarnation, signal=signal
                )
            )

        self.later(self.chance.number("reaped", 0, 30), reaped)
        if self.fault("twice", "reaped", self.faults.die):
            self.later(self.chance.number("reaped again", 100, 3_000), reaped)

    def _gone(self, process: Process, *, by_others: bool) -> None:
        """Ended by others it says nothing against the stage that it was busy with."""
        process.is_dead = True
        if process.busy_with and not by_others:
            self.judge.jobs[process.busy_with.partition("#")[0]].failed_attempts += 1
        self.talk.lost(process)
        del self.truth.processes[process.worker]
        for pool in self.truth.pools.values():
            pool.over_reported.pop(process.worker, None)

    def say(self, process: Process, in_ms: int, make: Callable[[], ev.Event]) -> None:
        """A process reports something after a while, unless it is dead or deaf by then."""

        def speak() -> None:
            if not process.is_dead and not process.is_deaf:
                self.deliver(make())

        self.later(in_ms, speak)

    def free(self, process: Process, names: tuple[str, ...], *, at_fault: str) -> None:
        """Give parts back: now, late, or never (until the process ends)."""
        for name in names:
            part = process.parts.get(name)
            if part is not None:  # From now on it may hold what it holds, and take nothing more.
                part.card_promised = min(part.card_promised, part.card_actual)
                part.ram_promised = min(part.ram_promised, part.ram_actual)
        if self.fault("leak", at_fault, self.faults.leak):
            return
        parts = [(name, process.parts[name]) for name in names if name in process.parts]
        if self.fault("free_late", at_fault, self.faults.free_late):
            self.later(self.chance.number("late by", 200, 4_000), lambda: self._free_now(process, parts))
            return
        self._free_now(process, parts)

    def _free_now(self, process: Process, parts: list[tuple[str, Part]]) -> None:
        """Free these very bytes, also when something new of the same name has taken their place meanwhile."""
        if process.is_dead:
            return
        for name, part in parts:
            if process.parts.get(name) is part:
                del process.parts[name]
            elif (stranded := process.parts.get("stranded")) is not None:
                stranded.card_actual = max(0, stranded.card_actual - part.card_actual)
                stranded.card_promised = min(stranded.card_promised, stranded.card_actual)
                stranded.ram_actual = max(0, stranded.ram_actual - part.ram_actual)
                stranded.ram_promised = min(stranded.ram_promised, stranded.ram_actual)
            self._sample_changed(process)

    def _sample_changed(self, process: Process) -> None:
        for pool in (process.card, RAM):
            if pool:
                self.telemetry.soon(pool)

    def fits(self, process: Process, *, card_bytes: int, ram_bytes: int) -> bool:
        """Whether the machine physically has these bytes."""
        for pool, extra in ((process.card, card_bytes), (RAM, ram_bytes)):
            if pool and extra > 0 and self.truth.actual(pool) + extra > self.truth.pools[pool].total_bytes:
                return False
        return True

    # --- effects ---

    def _perform(self, effect: ef.Effect) -> None:
        match effect:
            case ef.WakeAt():
                self._wake(effect.at_ms)
            case ef.Observe():
                self.later(1, lambda: self.telemetry.take(effect.pool))
            case ef.StartWorker():
                self._start(effect)
            case ef.TerminateWorker() | ef.KillWorker():
                self._end(effect)
            case ef.Predict() | ef.PredictLlm():
                self._predict(effect)
            case ef.ReleaseComponents() | ef.ReinitialiseWorker() | ef.RunStage() | ef.StopStage():
                self.studio.perform(effect)
            case ef.SetLevel() | ef.ServeChat() | ef.DropChat() | ef.FinishChat():
                self.talk.perform(effect)
            case ef.FinishJob():
                self.judge.job_finished(effect)
                self.later(1, lambda: self.deliver(ev.JobClosed(at_ms=self.now_ms, job=effect.job)))
            case ef.AnswerGuest():
                self.guests.answered(effect)
            case ef.AskGuest():
                if not self.fault("deaf", "guest", self.faults.deaf):
                    self.later(200, lambda: self.guests.give_back(effect.lease))
            case ef.Tell():
                self.counts.notices += 1
                if effect.notice.kind is NoticeKind.OFFLOADED:
                    self.counts.evictions += 1
                self.judge.must(bool(effect.notice.text), "a notice without words")

    def _wake(self, at_ms: int) -> None:
        self._wake_number += 1
        number = self._wake_number

        def ring() -> None:
            if number == self._wake_number:
                self.deliver(ev.Woke(at_ms=self.now_ms))

        self.later(at_ms - self.now_ms, ring)

    def _start(self, effect: ef.StartWorker) -> None:
        self.judge.must(effect.worker not in self.truth.processes, f"{effect.worker} was started twice")
        process = Process(effect.worker, effect.incarnation, effect.card, effect.model)
        pool = self.truth.pools.get(effect.card)
        process.is_unseen = pool is not None and pool.sight is Sight.OWN_LEDGER
        process.parts["process"] = Part(ram_actual=PROCESS_BYTES, ram_promised=PROCESS_BYTES)
        self.truth.processes[effect.worker] = process
        self.counts.workers += 1
        self.judge.bytes_granted(f"starting {effect.worker}", ram=PROCESS_BYTES)
        if self.fault("die", "start", self.faults.die // 3):
            self.later(self.chance.number("start", 20, 400), lambda: self.die(process, signal=11))
            return
        process.is_deaf = self.fault("hang", "start", self.faults.hang // 3)

        def up() -> ev.Event:
            process.is_ready = True
            return ev.WorkerReady(at_ms=self.now_ms, worker=effect.worker, incarnation=effect.incarnation)

        self.say(process, self.chance.number("start", 20, 400), up)

    def _end(self, effect: ef.TerminateWorker | ef.KillWorker) -> None:
        process = self.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        by_force = isinstance(effect, ef.KillWorker)
        at_work = process.busy_with and not process.is_deaf and self.now_ms < process.deadline_ms
        self.judge.must(by_force or not at_work, f"{effect.worker} is ended while it computes in good time")
        if not by_force and (process.is_deaf or self.fault("deaf", "term", self.faults.deaf)):
            return
        signal = 9 if by_force else 15
        self.later(self.chance.number("ending", 5, 300), lambda: self.die(process, signal=signal))

    def _predict(self, effect: ef.Predict | ef.PredictLlm) -> None:
        process = self.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        if self.fault("die", "predict", self.faults.die // 3):
            self.later(5, lambda: self.die(process, signal=6))
            return
        self.say(process, self.chance.number("predict", 10, 300), lambda: self._prediction(effect))

    def _prediction(self, effect: ef.Predict | ef.PredictLlm) -> ev.Event:
        if isinstance(effect, ef.PredictLlm):
            return ev.LlmPredicted(
                at_ms=self.now_ms,
                worker=effect.worker,
                incarnation=effect.incarnation,
                model=effect.model,
                footprint=self.workload.llms[effect.model],
            )
        key = effect.key
        self.judge.must(len(key.executions) <= 64, "too many candidates")
        weights = self.studio.weights(key.model, key.stage)
        return ev.FootprintPredicted(
            at_ms=self.now_ms,
            worker=effect.worker,
            incarnation=effect.incarnation,
            key=key,
            footprints=tuple(
                need(key.stage, execution, weights_bytes=weights, pixels=key.latent_height * key.latent_width)
                for execution in key.executions
            ),
        )
