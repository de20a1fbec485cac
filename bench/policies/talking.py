"""Talking: how the language models of the benchmark's world rise, sink, read prompts and answer.

Owns the physical side of SetLevel, ServeChat and DropChat. What was read and said of a conversation survives
a suspension with saved state; without it, all of it is read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.instances import Request

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.image.failure import Failure
from tidegate.core.llm.level import Level
from tidegate.core.worker import FRONT

if TYPE_CHECKING:
    from policies.shared import Shared
    from policies.world import Process, World


@dataclass(slots=True, kw_only=True)
class Chat:
    """A conversation as far as it has come."""

    request: Request
    unread: float
    said: float = 0.0
    first_ms: float = -1.0
    process: Process | None = None
    where: Shared | None = None
    task: int = 0
    rate_ms: float = 0.0  # Of one token, in what it does now.
    begun_ms: float = 0.0

    @property
    def is_reading(self) -> bool:
        """Whether the prompt, or the history again, is not yet read to its end."""
        return self.unread > 0

    @property
    def known(self) -> float:
        """Tokens in the KV cache."""
        return max(0.0, self.request.prompt_count + self.said - self.unread)


class Talking:
    """Language models of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chats: dict[str, Chat] = {}
        self._first_ms: dict[str, int] = {}

    def submitted(self, request: Request) -> ev.ChatSubmitted:
        """A user asks."""
        self._chats[request.name] = Chat(request=request, unread=float(request.prompt_count))
        return ev.ChatSubmitted(at_ms=self._world.at_ms, request=request.name, model=request.model)

    def first_token_ms(self, name: str) -> int:
        """How long the first token took."""
        return self._first_ms[name]

    def lost(self, process: Process) -> None:
        """A process is told to end: what it serves pauses."""
        for chat in self._chats.values():
            if chat.process is process:
                self._pause(chat)
                chat.unread = chat.request.prompt_count + chat.said

    def perform(self, effect: ef.SetLevel | ef.ServeChat | ef.DropChat) -> None:
        """Do what a language model's worker was told."""
        process = self._world.process_of(effect.worker, effect.incarnation)
        if process is None:
            return
        assert process.is_ready, f"{effect.worker} was told something before it was ready"
        match effect:
            case ef.SetLevel():
                if effect.level is Level.WARM:
                    self._ebb(process, effect)
                else:
                    self._rise(process, effect)
            case ef.ServeChat():
                self._serve(process, effect)
            case ef.DropChat():
                raise AssertionError("nobody goes away in this world")

    # --- levels ---

    def _state_bytes(self, model: str) -> int:
        token_bytes = self._world.costs.llms[model].token_bytes
        chats = [chat for chat in self._chats.values() if chat.request.model == model]
        return sum(int(chat.known) * token_bytes for chat in chats)

    def _ebb(self, process: Process, effect: ef.SetLevel) -> None:
        from policies.world import Part

        world = self._world
        for chat in self._chats.values():
            if chat.process is process:
                self._pause(chat)
                if not effect.ram_bytes:
                    chat.unread = chat.request.prompt_count + chat.said
        state_bytes = self._state_bytes(effect.model)
        front = world.processes.get(FRONT)
        if effect.ram_bytes and front is not None:
            front.parts[f"state/{effect.model}"] = Part(ram_bytes=min(state_bytes, effect.ram_bytes))
            world.outcome.moved_bytes += state_bytes
        took_ms = world.costs.state_ms(state_bytes) + world.costs.machine["context_free_ms"]

        def reached() -> ev.Event:
            process.level = "warm"
            process.parts.pop("kv", None)
            return self._reached(effect, took_ms=took_ms, state_bytes=state_bytes)

        world.say(process, took_ms, reached)

    def _rise(self, process: Process, effect: ef.SetLevel) -> None:
        from policies.world import Part

        world = self._world
        costs = world.costs.llms[effect.model]
        weights_bytes, kv_bytes = costs.footprint.on_card(effect.layers_count)
        new = {"kv": Part(card_bytes=kv_bytes)}
        work_ms = world.costs.machine["context_new_ms"]
        if process.level == "cold":
            new["weights"] = Part(
                card_bytes=weights_bytes, ram_bytes=costs.footprint.in_ram(effect.layers_count)
            )
            if effect.layers_count:
                new["context"] = Part(card_bytes=world.context_part(process))
            work_ms += world.costs.load_ms(weights_bytes) + world.costs.machine["file_open_ms"]
        card_bytes = sum(part.card_bytes for part in new.values())
        if not world.fits(card_bytes=card_bytes, ram_bytes=sum(part.ram_bytes for part in new.values())):
            world.say(process, world.costs.machine["refusal_ms"], lambda: self._refused(effect))
            return
        process.parts.update(new)
        state_bytes = self._state_bytes(effect.model)
        world.outcome.moved_bytes += state_bytes + (weights_bytes if process.level == "cold" else 0)
        work_ms += world.costs.state_ms(state_bytes)
        begun_ms = world.now_ms

        def reached() -> None:
            if process.is_dead:
                return
            process.level, process.layers = str(effect.level), effect.layers_count
            front = world.processes.get(FRONT)
            if front is not None:
                front.parts.pop(f"state/{effect.model}", None)
            world.deliver(self._reached(effect, took_ms=world.now_ms - begun_ms, state_bytes=state_bytes))

        world.card.add(process.worker, work_ms, reached)

    def _reached(self, effect: ef.SetLevel, *, took_ms: float, state_bytes: int) -> ev.LevelReached:
        return ev.LevelReached(
            at_ms=self._world.at_ms,
            worker=effect.worker,
            incarnation=effect.incarnation,
            model=effect.model,
            level=effect.level,
            took_ms=int(took_ms),
            state_bytes=state_bytes,
        )

    def _refused(self, effect: ef.SetLevel) -> ev.LevelFailed:
        return ev.LevelFailed(
            at_ms=self._world.at_ms,
            worker=effect.worker,
            incarnation=effect.incarnation,
            model=effect.model,
            failure=Failure.REFUSED,
        )

    # --- serving ---

    def _serve(self, process: Process, effect: ef.ServeChat) -> None:
        assert process.level in ("hot", "partial"), f"{effect.request} is served by a {process.level} model"
        chat = self._chats[effect.request]
        assert chat.process is None, f"{effect.request} is served twice"
        chat.process = process
        whole = process.layers == self._world.costs.llms[effect.model].footprint.layers_count
        chat.where = self._world.card if whole else self._world.cores
        self._go_on(chat, effect)

    def _go_on(self, chat: Chat, effect: ef.ServeChat) -> None:
        process, where = chat.process, chat.where
        assert process is not None and where is not None, "somebody serves it"
        costs = self._world.costs.llms[chat.request.model]
        chat.begun_ms = self._world.now_ms
        if chat.is_reading:
            chat.rate_ms = costs.read_with_ms(process.layers)
            read_ms = chat.unread * chat.rate_ms
            chat.task = where.add(process.worker, read_ms, lambda: self._read(chat, effect))
            return
        chat.rate_ms = costs.token_with_ms(process.layers)
        left = chat.request.answer_count - chat.said
        chat.task = where.add(process.worker, left * chat.rate_ms, lambda: self._answered(chat, effect))

    def _read(self, chat: Chat, effect: ef.ServeChat) -> None:
        self._count_partial(chat)
        chat.unread = 0.0
        if chat.first_ms < 0:
            chat.first_ms = self._world.now_ms
            self._first_ms[chat.request.name] = int(self._world.now_ms - chat.request.at_ms)
        self._go_on(chat, effect)

    def _answered(self, chat: Chat, effect: ef.ServeChat) -> None:
        self._count_partial(chat)
        del self._chats[chat.request.name]
        self._world.deliver(
            ev.ChatFinished(
                at_ms=self._world.at_ms,
                worker=effect.worker,
                incarnation=effect.incarnation,
                request=effect.request,
            )
        )

    def _pause(self, chat: Chat) -> None:
        """Stop at a token boundary; what was read and said stays read and said."""
        assert chat.where is not None, "somebody serves it"
        left = chat.where.remove(chat.task) / chat.rate_ms
        self._count_partial(chat)
        if chat.is_reading:
            chat.unread = left
        else:
            chat.said = chat.request.answer_count - left
        chat.process = chat.where = None

    def _count_partial(self, chat: Chat) -> None:
        if chat.where is self._world.cores:
            self._world.outcome.partial_ms += int(self._world.now_ms - chat.begun_ms)
