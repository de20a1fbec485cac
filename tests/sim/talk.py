"""Talk: how language models of a world rise and sink, and serve requests.

Owns the physical side of SetLevel, ServeChat and DropChat, and what of each request is left to say. A
request's rest survives suspension and crashes, as the front keeps its history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.judge import RequestRecord
from tests.sim.truth import Part, Process

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.house import RAM
from tidegate.core.image.failure import Failure
from tidegate.core.llm.level import Level

if TYPE_CHECKING:
    from tests.sim.world import World

FRONT = "front"
TRIES = 4


class Talk:
    """Language models of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._failed_rises: dict[str, int] = {}
        self._began_ms: dict[str, int] = {}
        self._tokens: dict[
            str, int
        ] = {}  # Numbers of servings, so that an old ending does not end a new one.

    # --- from outside ---

    def asked(self, request: str, model: str, *, priority: int, length_ms: int) -> None:
        """A client asks."""
        now_ms = self._world.now_ms
        self._world.judge.requests[request] = RequestRecord(model, now_ms, length_ms, waits_since_ms=now_ms)
        self._world.deliver(ev.ChatSubmitted(at_ms=now_ms, request=request, model=model, priority=priority))

    def cancelled(self, request: str) -> None:
        """A client goes away."""
        record = self._world.judge.requests.get(request)
        if record is not None:
            record.cancelled = True
        self._world.deliver(ev.ChatCancelled(at_ms=self._world.now_ms, request=request))

    def lost(self, process: Process) -> None:
        """A process is gone: what it served pauses; saved state goes with the front."""
        if process.model and process.level == "cold":
            self._failed_rises[process.model] = self._failed_rises.get(process.model, 0) + 1
        for name, record in self._world.judge.requests.items():
            if record.serving and (f"llm/{record.model}" == process.worker or process.worker == FRONT):
                self._pause(name, record)

    def _pause(self, name: str, record: RequestRecord) -> None:
        record.serving = False
        record.left_ms -= self._world.now_ms - self._began_ms[name]
        record.left_ms = max(1, record.left_ms)
        record.waits_since_ms = self._world.now_ms
        self._tokens[name] = self._tokens.get(name, 0) + 1

    # --- effects ---

    def perform(self, effect: ef.SetLevel | ef.ServeChat | ef.DropChat | ef.FinishChat) -> None:
        """Do what a language model's worker was told."""
        if isinstance(effect, ef.FinishChat):
            failed = self._failed_rises.get(self._world.judge.requests[effect.request].model, 0)
            tried = self._world.judge.requests[effect.request].failed_attempts
            may_fail = failed >= TRIES or tried >= TRIES or effect.code in ("prediction", "out_of_memory")
            self._world.judge.request_ended(effect, may_fail=may_fail)
            return
        process = self._world.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        self._world.judge.must(process.is_ready, f"{effect.worker} was told something before it was ready")
        match effect:
            case ef.SetLevel():
                self._set_level(process, effect)
            case ef.ServeChat():
                self._serve(process, effect)
            case ef.DropChat():
                self._drop(process, effect)

    def _set_level(self, process: Process, effect: ef.SetLevel) -> None:
        world = self._world
        if effect.level is Level.WARM:
            self._ebb(process, effect)
            return
        footprint = world.workload.llms[effect.model]
        weights, kv = footprint.on_card(effect.layers_count)
        context = self._context(process, effect.layers_count)
        wanted = {
            "context": Part(card_promised=context),
            "weights": Part(card_promised=weights, ram_promised=footprint.in_ram(effect.layers_count)),
            "kv": Part(card_promised=kv),
        }
        for name, part in wanted.items():
            old = process.parts.get(name)
            if old is None or name == "kv":
                if old is not None and old.card_actual:
                    process.parts["stranded"] = old
                process.parts[name] = part
        amounts = {process.card: effect.card_bytes, RAM: footprint.in_ram(effect.layers_count)}
        world.judge.bytes_granted(f"raising {effect.model} to {effect.level}", **amounts)
        need = sum(part.card_promised for part in process.parts.values())
        world.judge.must(effect.card_bytes >= need - 1, f"{effect.model} was granted less than it needs")
        card_more = sum(max(0, part.card_promised - part.card_actual) for part in process.parts.values())
        ram_more = sum(max(0, part.ram_promised - part.ram_actual) for part in process.parts.values())
        if not world.fits(process, card_bytes=card_more, ram_bytes=ram_more) or world.fault(
            "refuse", "level", world.faults.refuse
        ):
            self._level_failed(process, effect)
            return
        for part in process.parts.values():
            part.card_actual = max(part.card_actual, part.card_promised)
            part.ram_actual = max(part.ram_actual, part.ram_promised)
        if world.fault("die", "level", world.faults.die):
            world.later(world.chance.number("level dies", 1, 800), lambda: world.die(process, signal=6))
            return
        if world.fault("hang", "level", world.faults.hang):
            process.is_deaf = True
            return
        took_ms = world.chance.number("rise", 50, 1_500)

        def reached() -> ev.Event:
            process.level = str(effect.level)
            state = world.truth.processes.get(FRONT)
            if state is not None:
                world.free(state, (f"state/{effect.model}",), at_fault="state")
            return self._reached(process, effect, took_ms)

        world.say(process, took_ms, reached)

    def _context(self, process: Process, layers: int) -> int:
        cards = self._world.workload.house.cards
        found = next((card.context_bytes for card in cards if card.name == process.card), 0)
        return found if layers else 0

    def _reached(self, process: Process, effect: ef.SetLevel, took_ms: int) -> ev.LevelReached:
        return ev.LevelReached(
            at_ms=self._world.now_ms,
            worker=process.worker,
            incarnation=process.incarnation,
            model=effect.model,
            level=effect.level,
            took_ms=took_ms,
            state_bytes=self._world.workload.llms[effect.model].state_bytes,
        )

    def _level_failed(self, process: Process, effect: ef.SetLevel) -> None:
        self._world.say(
            process,
            self._world.chance.number("level fails", 1, 100),
            lambda: ev.LevelFailed(
                at_ms=self._world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                model=effect.model,
                failure=Failure.REFUSED,
            ),
        )

    def _ebb(self, process: Process, effect: ef.SetLevel) -> None:
        world = self._world
        if world.fault("deaf", "ebb", world.faults.deaf):
            process.is_deaf = True
            return
        front = world.truth.processes.get(FRONT)
        state_bytes = world.workload.llms[effect.model].state_bytes
        if effect.ram_bytes and front is not None:
            part = front.parts.setdefault(f"state/{effect.model}", Part())
            part.ram_promised = max(part.ram_actual, state_bytes)
            world.judge.bytes_granted(f"saving the state of {effect.model}", **{RAM: state_bytes})
            if world.fits(front, card_bytes=0, ram_bytes=state_bytes - part.ram_actual):
                part.ram_actual = state_bytes
        took_ms = world.chance.number("ebb", 5, 200)

        def reached() -> ev.Event:
            process.level = "warm"
            for name, record in world.judge.requests.items():
                if record.serving and record.model == effect.model:
                    self._pause(name, record)
            world.free(process, ("kv",), at_fault="kv")
            if process.is_unseen and (kept := process.parts.get("kv")) is not None:
                kept.card_promised = 0  # By its own word it is freed, and nobody can see otherwise.
            return self._reached(process, effect, took_ms)

        world.say(process, took_ms, reached)

    def _serve(self, process: Process, effect: ef.ServeChat) -> None:
        world, judge = self._world, self._world.judge
        judge.must(
            process.level in ("hot", "partial"), f"{effect.request} is served by a {process.level} model"
        )
        record = judge.requests[effect.request]
        judge.must(not record.serving and not record.ended, f"{effect.request} is served twice")
        record.serving = True
        judge.chat_begins(effect.request, at_ms=world.now_ms)
        slots = next(m.slots_count for m in world.workload.house.language_models if m.name == effect.model)
        served = sum(r.serving and r.model == effect.model for r in judge.requests.values())
        judge.must(served <= slots, f"{effect.model} serves {served} requests in {slots} slots")
        self._began_ms[effect.request] = world.now_ms
        token = self._tokens[effect.request] = self._tokens.get(effect.request, 0) + 1
        if world.fault("hang", "chat", world.faults.hang):
            process.is_deaf = True
            record.failed_attempts += 1
            return
        if world.fault("garbage", "chat", world.faults.garbage):
            record.failed_attempts += 1
            world.later(50, lambda: self._chat_failed(process, effect, token))
            return
        world.later(max(1, record.left_ms), lambda: self._chat_done(process, effect, token))

    def _chat_failed(self, process: Process, effect: ef.ServeChat, token: int) -> None:
        if process.is_dead or process.is_deaf or self._tokens[effect.request] != token:
            return
        self._pause(effect.request, self._world.judge.requests[effect.request])
        self._world.deliver(
            ev.ChatFailed(
                at_ms=self._world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                request=effect.request,
                failure=Failure.ENGINE,
            )
        )

    def _chat_done(self, process: Process, effect: ef.ServeChat | ef.DropChat, token: int) -> None:
        record = self._world.judge.requests[effect.request]
        if process.is_dead or process.is_deaf or self._tokens[effect.request] != token or not record.serving:
            return
        record.left_ms = 0
        record.serving = False
        self._world.deliver(
            ev.ChatFinished(
                at_ms=self._world.now_ms,
                worker=process.worker,
                incarnation=process.incarnation,
                request=effect.request,
            )
        )

    def _drop(self, process: Process, effect: ef.DropChat) -> None:
        token = self._tokens.get(effect.request, 0)
        self._world.later(20, lambda: self._chat_done(process, effect, token))
