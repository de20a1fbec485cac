"""The front: the runtime's half of the talk with the process that owns all conversations.

    furnish -> open every model -> attach every child -> asks, servings, words

Owns the commands to one incarnation of that process, what it said about each model, and noticing that it
hangs: it computes nothing that takes long. What comes of a
request goes to `chats`; when it is served is decided by the core and passed on by `parlour`.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tidegate.core.faults import ClientError
from tidegate.runtime.chats import Chat
from tidegate.runtime.conversation import Declined, Gone, OnWord
from tidegate.runtime.llm_registry import LlmEntry
from tidegate.runtime.supervisor import Process
from tidegate.wire import asks, llm_child, llm_front, messages
from tidegate.wire.frames import FRAME_BYTES_MAX

# Ten megabytes of prompt are laid out and counted in a few seconds; who is silent for longer hangs.
SILENCE_MAX_S: Final = 30.0
# A token and its bytes take ten bytes of an answer's frame at the worst, and each byte may be a token.
TEXT_BYTES_MAX: Final = 1_000_000
assert TEXT_BYTES_MAX * 10 <= FRAME_BYTES_MAX, "what is taken apart must fit one frame"
# Tokens of an answer that fit a frame beside the ask; an answer that long is not begun again.
HISTORY_COUNT_MAX: Final = 1_000_000
HEARTBEAT_S: Final = 5.0


class Front:
    """One incarnation of the front process."""

    def __init__(self, process: Process, incarnation: int, *, on_word: OnWord) -> None:
        self._process = process
        self._talk = process.talk
        self._talk.on_word = on_word
        self.incarnation = incarnation
        self.opened: dict[str, llm_front.ModelOpened] = {}
        self.refused: dict[str, str] = {}

    @property
    def is_open(self) -> bool:
        """Whether it can be talked to."""
        return self._talk.is_open

    async def furnish(self, *, ram_bytes: int, disk_bytes: int, folder: Path) -> None:
        """Tell it once what it may keep, and where. Raises `Gone`."""
        command = llm_front.Furnish(
            serial=0, ram_bytes=ram_bytes, disk_bytes=disk_bytes, folder=str(folder) if disk_bytes else ""
        )
        await self._talk.ask(command, llm_front.Furnished)

    async def open_models(self, entries: Iterable[LlmEntry]) -> None:
        """Have it read every model's vocabulary and template; what it refuses is noted. Raises `Gone`."""
        for entry in entries:
            command = llm_front.OpenModel(
                serial=0,
                model=entry.name,
                path=str(entry.path),
                context_tokens_count=entry.context_count,
                slots_count=entry.options.slots,
                fingerprint=entry.fingerprint,
                projector_path=str(entry.mmproj) if entry.mmproj else "",
                template=entry.template,
            )
            try:
                self.opened[entry.name] = await self._talk.ask(command, llm_front.ModelOpened)
            except Declined as declined:
                self.refused[entry.name] = declined.message

    async def watch(self) -> None:
        """Ask now and then whether it is alive, and end it when it does not say so."""
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                async with asyncio.timeout(SILENCE_MAX_S):
                    await self._process.talk.ask(messages.Ping(serial=0), messages.Pong)
        except TimeoutError:
            self._process.child.signal(signal.SIGKILL)
        except Gone:
            return  # It ended by itself, which the supervisor sees.

    def attach(self, model: str, worker: str, *, incarnation: int, child: Process) -> None:
        """Connect it with a child: one end of a socket for each."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child.talk.say(llm_child.AttachFront(), descriptors=(ours.fileno(),))
            attach = llm_front.Attach(model=model, worker=worker, incarnation=incarnation)
            self._talk.say(attach, descriptors=(theirs.fileno(),))

    async def ask(self, chat: Chat, body: bytes, descriptor: int | None) -> int:
        """Have an ask understood; its length in tokens. Raises `Gone`, and ClientError when it is wrong."""
        if chat.model in self.refused:
            message = f"{chat.model} cannot be used: {self.refused[chat.model]}."
            raise ClientError(message, code="bad_model")
        if len(chat.history) > HISTORY_COUNT_MAX:
            message = f"After {len(chat.history)} tokens the process that owned this conversation was lost."
            raise ClientError(message, remedy="Ask for the rest.", code="conversation_lost")
        command = llm_front.Ask(
            serial=0, request=chat.id, model=chat.model, body=body, history=tuple(chat.history)
        )
        descriptors = () if descriptor is None else (descriptor,)
        try:
            answered = await self._talk.ask(command, llm_front.Answered, descriptors=descriptors)
        except Declined as declined:
            raise _fault(declined) from declined
        match answered.answer:
            case asks.Accepted(prompt_count=prompt_count):
                return prompt_count
            case asks.Refused() as refused:
                raise ClientError(refused.message, remedy=refused.remedy, code=refused.code)

    def serve(self, chat: Chat) -> None:
        """Begin a request, or go on with it, in the child that it names."""
        self._talk.say(
            llm_front.Serve(
                request=chat.id, model=chat.model, worker=chat.worker, incarnation=chat.incarnation
            )
        )

    async def drop(self, request: str) -> None:
        """Have it forget a request. Raises `Gone`."""
        await self._talk.ask(llm_front.Drop(serial=0, request=request), llm_front.Dropped)

    async def release(self, model: str) -> None:
        """Have it give back the RAM of a model's saved states. Raises `Gone`."""
        await self._talk.ask(llm_front.FreeStates(serial=0, model=model), llm_front.StatesFreed)

    async def tokenize(
        self, model: str, text: str, *, adds_special: bool, parses_special: bool
    ) -> llm_front.Tokenized:
        """Take a text apart. Raises `Gone` and ClientError."""
        if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
            message = f"A text of more than {TEXT_BYTES_MAX} bytes is not taken apart at once."
            raise ClientError(message, remedy="Send it in parts.", code="text_too_long")
        command = llm_front.Tokenize(
            serial=0, model=model, text=text, adds_special=adds_special, parses_special=parses_special
        )
        try:
            return await self._talk.ask(command, llm_front.Tokenized)
        except Declined as declined:
            raise _fault(declined) from declined

    async def detokenize(self, model: str, ids: tuple[int, ...]) -> str:
        """Put tokens together. Raises `Gone` and ClientError."""
        if len(ids) > TEXT_BYTES_MAX:
            message = f"More than {TEXT_BYTES_MAX} tokens are not put together at once."
            raise ClientError(message, remedy="Send them in parts.", code="text_too_long")
        try:
            command = llm_front.Detokenize(serial=0, model=model, ids=ids)
            return (await self._talk.ask(command, llm_front.Detokenized)).text
        except Declined as declined:
            raise _fault(declined) from declined


def _fault(declined: Declined) -> ClientError:
    said = declined.answer
    if isinstance(said, llm_front.FrontRefused) and said.code:
        return ClientError(said.message, remedy=said.remedy, code=said.code)
    return ClientError(declined.message, code="bad_request")
