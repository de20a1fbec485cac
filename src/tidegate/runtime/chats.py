"""Chats: what clients asked of language models and has not ended yet, with the words on their way to them.

    asking -> waiting <-> served -> ended

Owns the requests in flight by id, the tokens that each was given so far, and the one listener of each. A
listener that is slow finds what it missed joined together: nothing is lost, nobody else waits for it, and
its memory is bounded by its answer. Who serves a request is the core's decision, carried out by `parlour`.
"""

from __future__ import annotations

import array
import asyncio
import enum
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tidegate.core.faults import CapacityError, ClientError
from tidegate.wire import asks
from tidegate.wire.asks import Delta, Ended, Finish, Paused, Resumed

# Deltas that wait for a listener one by one; after that they are joined.
PENDING_MAX: Final = 64
# Requests in flight, in the front and here; the core has a bound of its own for those that wait.
CHATS_MAX: Final = 2_048
# Answers that ended and were not listened to.
UNHEARD_MAX: Final = 256


class ChatPhase(enum.StrEnum):
    """Where a request stands, as far as words can flow."""

    ASKING = "asking"  # The front has not said yet whether it is understood.
    WAITING = "waiting"  # For its first serving, or for the next one.
    SERVED = "served"
    ENDED = "ended"


class Ear:
    """What waits for the one listener."""

    def __init__(self) -> None:
        self._items: deque[asks.Item] = deque()
        self._arrived = asyncio.Event()
        self.is_taken = False

    def put(self, item: asks.Item) -> None:
        """Hand over an item."""
        last = self._items[-1] if len(self._items) >= PENDING_MAX else None
        if isinstance(last, Delta) and isinstance(item, Delta):
            self._items[-1] = _joined(last, item)
        elif isinstance(item, Resumed) and self._items and isinstance(self._items[-1], Paused):
            self._items.pop()  # The listener was not told of the pause yet, and need not be.
        else:
            self._items.append(item)
        self._arrived.set()

    async def items(self) -> AsyncIterator[asks.Item]:
        """Items in order; the last is Ended."""
        while True:
            while not self._items:
                self._arrived.clear()
                await self._arrived.wait()
            item = self._items.popleft()
            yield item
            if isinstance(item, Ended):
                return


def _joined(first: Delta, second: Delta) -> Delta:
    return Delta(
        text=first.text + second.text,
        reasoning=first.reasoning + second.reasoning,
        calls=first.calls + second.calls,
        chances=first.chances + second.chances,
    )


@dataclass(slots=True, kw_only=True)
class Chat:
    """One request. `worker` and `incarnation` are of the child that serves it, or served it last."""

    id: str
    model: str
    body: asks.Body
    priority: int
    asked_at_ms: int
    phase: ChatPhase = ChatPhase.ASKING
    prompt_count: int = 0
    history: array.array[int] = field(default_factory=lambda: array.array("i"))
    worker: str = ""
    incarnation: int = 0
    progressed_ms: int = 0  # When the core was last told that it lives.
    first_ms: int = -1  # How long the first token took.
    is_paused: bool = False
    ear: Ear = field(default_factory=Ear)

    @property
    def is_open(self) -> bool:
        """Whether more is to come."""
        return self.phase is not ChatPhase.ENDED

    def pause(self, reason: str) -> None:
        """Say why nothing comes for the moment."""
        if self.is_open:
            self.is_paused = True
            self.ear.put(Paused(reason=reason))

    def resume(self) -> None:
        """It goes on."""
        if self.is_paused:
            self.is_paused = False
            self.ear.put(Resumed())


class Chats:
    """All requests of one server."""

    def __init__(self, on_change: Callable[[Chat], None]) -> None:
        """`on_change` hears of each request that was understood, and of its end."""
        self._on_change = on_change
        self._known: dict[str, Chat] = {}
        self._unheard: deque[str] = deque()
        self.ended_counts: Counter[tuple[str, str]] = Counter()  # By model and how it ended.
        self.token_counts: Counter[str] = Counter()
        self.first_token_ms: Counter[str] = Counter()
        self.first_token_counts: Counter[str] = Counter()

    def open(self, model: str, body: asks.Body, *, priority: int, at_ms: int) -> Chat:
        """Enter a new request. Raises CapacityError when there are too many."""
        if len(self._known) - len(self._unheard) >= CHATS_MAX:
            raise CapacityError(
                "Too many requests are waiting.", remedy="Try again later.", code="busy", retry_after_ms=5_000
            )
        name = f"chat-{secrets.token_hex(8)}"
        chat = Chat(id=name, model=model, body=body, priority=priority, asked_at_ms=at_ms)
        self._known[name] = chat
        return chat

    def find(self, name: str) -> Chat | None:
        """A request by its id."""
        return self._known.get(name)

    def listened(self, name: str) -> Chat:
        """A request that is going to be listened to. Raises ClientError `unknown_ask`."""
        chat = self._known.get(name)
        if chat is None or chat.ear.is_taken:
            raise ClientError(f"There is no ask {name} to listen to.", code="unknown_ask")
        chat.ear.is_taken = True
        return chat

    def understood(self, chat: Chat, *, prompt_count: int) -> None:
        """The front knows what is asked; from now on it waits for its turn."""
        chat.prompt_count = prompt_count
        chat.phase = ChatPhase.WAITING
        self._on_change(chat)

    def forget(self, chat: Chat) -> None:
        """Nobody will ask for it any more."""
        self._known.pop(chat.id, None)
        if chat.id in self._unheard:
            self._unheard.remove(chat.id)

    def in_flight(self, model: str = "") -> Iterator[Chat]:
        """Requests that were understood and have not ended, of one model or of all."""
        for chat in tuple(self._known.values()):
            if chat.phase in (ChatPhase.WAITING, ChatPhase.SERVED) and model in ("", chat.model):
                yield chat

    def served_by(self, worker: str, incarnation: int) -> Iterator[Chat]:
        """Requests that this child is serving."""
        for chat in self.in_flight():
            if chat.phase is ChatPhase.SERVED and (chat.worker, chat.incarnation) == (worker, incarnation):
                yield chat

    def said(self, chat: Chat, items: tuple[asks.Item, ...], ids: tuple[int, ...], *, at_ms: int) -> None:
        """Take in what came of a request."""
        if ids:
            if chat.first_ms < 0:
                chat.first_ms = at_ms - chat.asked_at_ms
                self.first_token_ms[chat.model] += chat.first_ms
                self.first_token_counts[chat.model] += 1
            chat.history.extend(ids)
            self.token_counts[chat.model] += len(ids)
        for item in items:
            if isinstance(item, Ended):
                self.end(chat, item)
            else:
                chat.ear.put(item)

    def end(self, chat: Chat, ended: Ended) -> None:
        """The last word of a request."""
        if not chat.is_open:
            return
        chat.phase = ChatPhase.ENDED
        self.ended_counts[chat.model, ended.finish.value] += 1
        chat.ear.put(ended)
        # Its body may hold pictures, and nobody will ask the front again.
        chat.body = asks.Embedding(inputs=())
        self._unheard.append(chat.id)
        while len(self._unheard) > UNHEARD_MAX:
            self._known.pop(self._unheard.popleft(), None)
        self._on_change(chat)

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        message = "The server is ending."
        for chat in tuple(self._known.values()):
            self.end(chat, failed(code="server_ending", message=message))


def failed(*, code: str, message: str, retry_after_ms: int = 0) -> Ended:
    """The last word of a request that could not be answered."""
    return Ended(finish=Finish.FAILED, code=code, message=message, retry_after_ms=retry_after_ms)


def pause(chats: Iterable[Chat], reason: str) -> None:
    """These wait from now on; who waited already knows why."""
    for chat in chats:
        chat.phase = ChatPhase.WAITING
        if not chat.is_paused:
            chat.pause(reason)


def size_of(body: asks.Body) -> int:
    """Bytes of pictures and texts in a body, roughly: enough to tell a large one."""
    match body:
        case asks.Chat():
            shown = sum(len(picture.rgb) for picture in body.pictures)
            return shown + sum(len(msgspec.json.encode(turn)) for turn in body.turns)
        case asks.Completion():
            return len(body.prompt)
        case asks.Embedding():
            return sum(len(text) for text in body.inputs)
