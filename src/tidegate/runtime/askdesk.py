"""The ask desk: what clients ask of language models, checked, passed on and listened to.

    ask: the front understands it -> the core hears of it -> handle       hear: words until the last one

Owns the half of the `gate` that is about language models. Who is served when is the core's decision, how
words come is the neighbours `parlour` and `chats`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from tidegate.core import events as ev
from tidegate.core.faults import CapacityError, ClientError
from tidegate.core.llm.level import SERVING, Level
from tidegate.runtime.asks import (
    AskHandle,
    AskOrder,
    DetokenWish,
    IntentKind,
    LevelWish,
    TokenView,
    TokenWish,
)
from tidegate.runtime.chats import Chat, ChatPhase, Chats, failed, size_of
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Gone
from tidegate.runtime.front import Front
from tidegate.runtime.llm_registry import LlmEntry
from tidegate.runtime.parlour import Parlour
from tidegate.runtime.prefetch import Prefetch
from tidegate.runtime.shell import Shell
from tidegate.runtime.threads import Threads, on
from tidegate.wire import asks, llm_front

# How long a client waits for the conversations' own process; it is started in well under a second.
FRONT_WAIT_S: Final = 30.0
# A body of this size is packed on a thread, so that the loop is not held up.
LARGE_BYTES: Final = 64 * 1024


@dataclass(slots=True, kw_only=True)
class AskDesk:
    """What is asked of the language models of one server."""

    parlour: Parlour
    shell: Shell
    clock: Clock
    threads: Threads
    prefetch: Prefetch

    @property
    def _chats(self) -> Chats:
        return self.parlour.chats

    async def ask(self, order: AskOrder) -> AskHandle:
        """Take an ask in; see `gate`."""
        entry = self._entry(order.model)
        chat = self._chats.open(entry.name, order.body, priority=order.priority, at_ms=self.clock.now_ms())
        try:
            self._chats.understood(chat, prompt_count=await self._understood(chat))
            submitted = ev.ChatSubmitted(
                at_ms=self.clock.now_ms(), request=chat.id, model=chat.model, priority=chat.priority
            )
            await self.shell.tell(submitted)
        except BaseException:  # whatever it is, the client's going included: nobody will listen to it
            self._leave(chat)
            raise
        self._say_why_it_waits(chat)
        return AskHandle(id=chat.id, model=chat.model, prompt_count=chat.prompt_count)

    async def _understood(self, chat: Chat) -> int:
        """Have the front read it; a front that ends over it is given one more."""
        body, descriptor = await self._packed(chat.body)
        try:
            for _ in range(2):
                front = await self._front()
                try:
                    return await front.ask(chat, body, descriptor)
                except Gone:
                    continue
        finally:
            if descriptor is not None:
                os.close(descriptor)
        raise CapacityError(
            "The request could not be read: the process that reads it ended twice.",
            remedy="Try again, and report what was asked if it happens again.",
            code="front_lost",
            retry_after_ms=1_000,
        )

    async def _packed(self, body: asks.Body) -> tuple[bytes, int | None]:
        if size_of(body) < LARGE_BYTES:
            return llm_front.pack(body)
        return await on(self.threads.pictures, llm_front.pack, body)

    async def _front(self) -> Front:
        try:
            async with asyncio.timeout(FRONT_WAIT_S):
                return await self.parlour.front_up()
        except TimeoutError:
            raise CapacityError(
                "The process that owns the conversations is not there.",
                remedy="Try again in a moment; `tidegate doctor` tells what is wrong.",
                code="front_unavailable",
                retry_after_ms=5_000,
            ) from None

    def _leave(self, chat: Chat) -> None:
        was_submitted = chat.phase is not ChatPhase.ASKING
        self._chats.forget(chat)
        if was_submitted:
            self.shell.post(ev.ChatCancelled(at_ms=self.clock.now_ms(), request=chat.id))
        self.parlour.forget(chat)

    def _say_why_it_waits(self, chat: Chat) -> None:
        if chat.phase is not ChatPhase.WAITING:
            return
        model = self.shell.arbiter.state.models[chat.model]
        if model.tide in SERVING:
            chat.pause(f"All {model.slots_count} places of {chat.model} are taken; it is next in turn.")
        else:
            chat.pause(self.parlour.reason(chat.model))

    async def hear(self, ask: str) -> AsyncIterator[asks.Item]:
        """What comes of an ask; see `gate`."""
        chat = self._chats.listened(ask)
        try:
            async for item in chat.ear.items():
                yield item
        finally:
            if chat.is_open:
                await self.cancel(ask)
                self._chats.end(chat, asks.Ended(finish=asks.Finish.CANCELLED))
            self._chats.forget(chat)

    async def cancel(self, ask: str) -> None:
        """Nobody wants it any more."""
        chat = self._chats.find(ask)
        if chat is not None and chat.is_open:
            self.shell.post(ev.ChatCancelled(at_ms=self.clock.now_ms(), request=chat.id))

    def submit_again(self) -> None:
        """Another core has taken over: it gets every request that has not ended, unless its model is gone."""
        now_ms = self.clock.now_ms()
        for chat in self._chats.in_flight():
            if chat.model not in self.parlour.models.entries:
                self._chats.end(
                    chat, failed(code="unknown_model", message=f"{chat.model} was taken from the settings.")
                )
                continue
            chat.phase = ChatPhase.WAITING
            chat.pause("The settings were read again; it goes on in a moment.")
            self.shell.post(
                ev.ChatSubmitted(at_ms=now_ms, request=chat.id, model=chat.model, priority=chat.priority)
            )

    async def tokenize(self, wish: TokenWish) -> TokenView:
        """Take a text apart."""
        entry = self._entry(wish.model)
        try:
            said = await (await self._front()).tokenize(
                entry.name, wish.text, adds_special=wish.adds_special, parses_special=wish.parses_special
            )
        except Gone as gone:
            raise _lost() from gone
        return TokenView(model=entry.name, ids=said.ids, pieces=said.pieces)

    async def detokenize(self, wish: DetokenWish) -> str:
        """Put tokens together."""
        entry = self._entry(wish.model)
        try:
            return await (await self._front()).detokenize(entry.name, wish.ids)
        except Gone as gone:
            raise _lost() from gone

    async def set_level(self, model: str, wish: LevelWish) -> LlmEntry:
        """Hold a language model at a level, or give it back to the planner."""
        entry = self._entry(model)
        if wish.level is Level.PARTIAL and not 0 <= wish.layers_count <= entry.layers_count:
            raise ClientError(
                f"{entry.name} has {entry.layers_count} layers, not {wish.layers_count}.",
                remedy=f"Ask for 0 to {entry.layers_count}.",
                code="bad_layers",
            )
        await self.shell.tell(
            ev.LevelWished(
                at_ms=self.clock.now_ms(),
                model=entry.name,
                level=wish.level,
                layers_count=wish.layers_count if wish.level is Level.PARTIAL else 0,
            )
        )
        return entry

    async def intent(self, kind: IntentKind, model: str) -> None:
        """Somebody will probably ask this language model something soon.

        A page that is opened has its file read; for who begins to type or to upload it is brought back.
        """
        entry = self._entry(model)
        self.prefetch.whole(entry.files.values())
        if kind is not IntentKind.OPEN:
            await self.shell.tell(ev.IntentHeard(at_ms=self.clock.now_ms(), model=entry.name))

    def named(self, model: str) -> LlmEntry | None:
        """The language model of this name, if it is one's."""
        return self.parlour.models.named(model)

    async def load(self, entry: LlmEntry) -> None:
        """Bring its file into the page cache, and the model to where there is room for it now."""
        await asyncio.wrap_future(self.prefetch.whole(entry.files.values()))
        await self.shell.tell(ev.IntentHeard(at_ms=self.clock.now_ms(), model=entry.name))

    async def unload(self, entry: LlmEntry) -> None:
        """Lower it now; whoever asks it something brings it back."""
        await self.shell.tell(ev.ModelUnwanted(at_ms=self.clock.now_ms(), model=entry.name))

    def _entry(self, model: str) -> LlmEntry:
        return self.parlour.models.find(model)


def _lost() -> CapacityError:
    return CapacityError(
        "The process that knows the tokens ended over this.",
        remedy="Try again.",
        code="front_lost",
        retry_after_ms=1_000,
    )
