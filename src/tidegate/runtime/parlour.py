"""The parlour: where language models are served. Effects of the core about them, carried out.

    StartWorker -> the front or a child is made at home      SetLevel  -> its tidekeeper
    ServeChat, DropChat -> the front                         FinishChat -> the chat's listener

Owns which front and which children are there, and who of the clients is told to wait and why. The words
themselves go from the front to `chats` and on to clients; the core hears only that a request lives, ended or
failed. What clients may ask is the neighbour `askdesk`'s.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from tidegate.core import effects as ef
from tidegate.core import events as ev
from tidegate.core.faults import CapacityError, ClientError
from tidegate.core.image.failure import Failure
from tidegate.core.llm.level import Level
from tidegate.core.notice import Notice, NoticeKind
from tidegate.core.worker import WorkerKind
from tidegate.runtime.chats import Chat, ChatPhase, Chats, failed, pause
from tidegate.runtime.clock import Clock
from tidegate.runtime.conversation import Declined, Gone, Unasked
from tidegate.runtime.front import Front
from tidegate.runtime.journal.records import Record
from tidegate.runtime.llm_registry import LlmRegistry
from tidegate.runtime.settings import KeepSettings
from tidegate.runtime.supervisor import Process
from tidegate.runtime.threads import Threads, on
from tidegate.runtime.tidekeeper import Berth, LevelMissed, Tidekeeper
from tidegate.wire import llm_front
from tidegate.wire.asks import Ended, Finish
from tidegate.wire.messages import FaultKind

# The core is told that a request lives this often; it waits far longer before it loses patience.
PROGRESS_MS: Final = 10_000
FOLDER: Final = "conversations"
Post = Callable[[ev.Event, Sequence[Record]], None]
LlmEffect = ef.SetLevel | ef.ServeChat | ef.DropChat | ef.FinishChat


@dataclass(frozen=True, slots=True, kw_only=True)
class Furniture:
    """What the parlour is made with: where children compute, and what of conversations is kept where."""

    berth: Berth
    folder: Path
    keep: KeepSettings


class Parlour:
    """Language models of one server."""

    def __init__(
        self,
        furniture: Furniture,
        *,
        models: LlmRegistry,
        chats: Chats,
        clock: Clock,
        threads: Threads,
        post: Post,
    ) -> None:
        self._furniture = furniture
        self._clock = clock
        self._threads = threads
        self._post = post
        self._group: asyncio.TaskGroup | None = None
        self._front: Front | None = None
        self._watch: asyncio.Task[None] | None = None
        self._front_changed = asyncio.Event()
        self._is_closed = False
        self._keepers: dict[str, Tidekeeper] = {}
        self._reasons: dict[str, str] = {}  # Why a model's requests wait, by model.
        self.models = models
        self.chats = chats
        self.kept: dict[str, llm_front.Keeping] = {}
        self.troubles: dict[str, str] = {}  # Why a child did not get where it was sent, by worker.

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Work in this task group."""
        self._group = group

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        self._is_closed = True
        self.chats.close()
        self._front_changed.set()
        if self._watch is not None:
            self._watch.cancel()

    @property
    def front(self) -> Front | None:
        """The front that can be talked to."""
        return self._front if self._front is not None and self._front.is_open else None

    async def front_up(self) -> Front:
        """The front, as soon as there is one. Raises CapacityError when the server ends."""
        while self.front is None:
            await self._front_changed.wait()
            if self._is_closed:
                raise CapacityError("The server is ending.", code="server_ending", retry_after_ms=5_000)
        assert self.front is not None, "the loop has just seen it"
        return self.front

    def keeper(self, worker: str) -> Tidekeeper | None:
        """The live child of a worker."""
        return self._keepers.get(worker)

    # --- processes

    async def welcome(self, effect: ef.StartWorker, process: Process, *, asked_ns: int) -> bool:
        """Make a new front or child at home; False when it cannot be used and has to be ended."""
        try:
            match effect.kind:
                case WorkerKind.FRONT:
                    await self._welcome_front(effect, process)
                case WorkerKind.LLM:
                    await self._welcome_child(effect, process, asked_ns=asked_ns)
                case WorkerKind.IMAGE | WorkerKind.PREDICTOR:
                    raise AssertionError(f"{effect.worker} is none of the parlour's")
                case _:
                    assert_never(effect.kind)
        except Gone:
            return False
        except Declined as declined:
            self.troubles[effect.worker] = declined.message
            return False
        return True

    async def _welcome_front(self, effect: ef.StartWorker, process: Process) -> None:
        front = Front(process, effect.incarnation, on_word=self._heard)
        keep = self._furniture.keep
        await front.furnish(
            ram_bytes=keep.conversations_ram_bytes_max,
            disk_bytes=keep.conversations_disk_bytes_max,
            folder=self._furniture.folder,
        )
        await front.open_models(self.models.entries.values())
        for chat in self.chats.in_flight():
            await self._entrust(front, chat)
        for keeper in self._keepers.values():
            self._attach(front, keeper)
        self._front = front
        self._watch = self._spawn(front.watch())
        changed, self._front_changed = self._front_changed, asyncio.Event()
        changed.set()

    async def _entrust(self, front: Front, chat: Chat) -> None:
        """Give a request that another front had to this one, with what was answered so far."""
        chat.phase = ChatPhase.WAITING
        body, descriptor = await on(self._threads.pictures, llm_front.pack, chat.body)
        try:
            await front.ask(chat, body, descriptor)
        except ClientError as fault:
            self._give_up(chat, code=fault.code, message=fault.message)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _give_up(self, chat: Chat, *, code: str, message: str) -> None:
        self.chats.end(chat, failed(code=code, message=message))
        self._post(ev.ChatCancelled(at_ms=self._clock.now_ms(), request=chat.id), ())

    async def _welcome_child(self, effect: ef.StartWorker, process: Process, *, asked_ns: int) -> None:
        entry = self.models.entries.get(effect.model)
        if entry is None:
            raise Gone(f"{effect.model} is not in the registry any more")
        keeper = Tidekeeper(
            process, entry, worker=effect.worker, incarnation=effect.incarnation, asked_ns=asked_ns
        )
        await keeper.open(self._furniture.berth)
        self._keepers[effect.worker] = keeper
        if self.front is not None:
            self._attach(self.front, keeper)

    def _attach(self, front: Front, keeper: Tidekeeper) -> None:
        front.attach(keeper.entry.name, keeper.worker, incarnation=keeper.incarnation, child=keeper.process)

    def gone(self, effect: ef.StartWorker) -> None:
        """The process of a front or a child has ended."""
        if effect.kind is WorkerKind.FRONT:
            if self._front is not None and self._front.incarnation == effect.incarnation:
                self._front = None
                if self._watch is not None:
                    self._watch.cancel()
            pause(self.chats.in_flight(), "The conversations' own process ended and is started again.")
            return
        keeper = self._keepers.get(effect.worker)
        if keeper is not None and keeper.incarnation == effect.incarnation:
            del self._keepers[effect.worker]
        served = list(self.chats.served_by(effect.worker, effect.incarnation))
        otherwise = f"The process that computes {effect.model} ended and is started again."
        pause(served, self._reasons.get(effect.model, otherwise))

    # --- effects

    def perform(self, effect: LlmEffect) -> None:
        """Do it, or begin to."""
        match effect:
            case ef.SetLevel():
                self._spawn(self._set_level(effect))
            case ef.ServeChat():
                self._serve(effect)
            case ef.DropChat():
                self._spawn(self._drop(effect))
            case ef.FinishChat():
                self._finish(effect)
            case _:
                assert_never(effect)

    async def _set_level(self, effect: ef.SetLevel) -> None:
        keeper = self._keepers.get(effect.worker)
        if keeper is None or keeper.incarnation != effect.incarnation:
            return  # It is gone, and the WorkerExited on its way answers this too.
        was_new = keeper.level is None
        try:
            reached = await keeper.move(effect)
        except Gone:
            return
        except LevelMissed as missed:
            self.troubles[effect.worker] = missed.message
            self._post(
                ev.LevelFailed(
                    at_ms=self._clock.now_ms(),
                    worker=effect.worker,
                    incarnation=effect.incarnation,
                    model=effect.model,
                    failure=missed.failure,
                ),
                (),
            )
            return
        self.troubles.pop(effect.worker, None)
        if effect.level is Level.WARM:
            served = list(self.chats.served_by(effect.worker, effect.incarnation))
            pause(served, self._reasons.get(effect.model, f"{effect.model} makes room for others."))
        else:
            self._reasons.pop(effect.model, None)
        self._post(
            ev.LevelReached(
                at_ms=self._clock.now_ms(),
                worker=effect.worker,
                incarnation=effect.incarnation,
                model=effect.model,
                level=effect.level,
                took_ms=keeper.rising_ms() if was_new else reached.took_ms,
                state_bytes=reached.state_bytes,
            ),
            (),
        )

    def _serve(self, effect: ef.ServeChat) -> None:
        chat = self.chats.find(effect.request)
        if chat is None or not chat.is_open:
            # Its last word and this effect met on their ways.
            self._finished(effect.request, effect.worker, effect.incarnation)
            return
        chat.worker, chat.incarnation = effect.worker, effect.incarnation
        if self.front is None:
            return  # Its end is on the way to the core, which will have this served again.
        chat.phase = ChatPhase.SERVED
        chat.progressed_ms = self._clock.now_ms()
        chat.resume()
        self.front.serve(chat)

    async def _drop(self, effect: ef.DropChat) -> None:
        if self.front is not None:
            try:
                await self.front.drop(effect.request)
            except Gone:
                return
            except Declined:
                pass  # The front does not know it any more, which is what was wanted.
        self._finished(effect.request, effect.worker, effect.incarnation)

    def _finish(self, effect: ef.FinishChat) -> None:
        self._post(ev.Told(at_ms=self._clock.now_ms(), sequence=effect.sequence), ())
        chat = self.chats.find(effect.request)
        if chat is None or not chat.is_open:
            return
        cancelled = Ended(finish=Finish.CANCELLED, completion_count=len(chat.history))
        self.chats.end(
            chat,
            cancelled
            if effect.outcome is ef.Outcome.CANCELLED
            else failed(code=effect.code, message=effect.message, retry_after_ms=effect.retry_after_ms),
        )
        self.forget(chat)

    def forget(self, chat: Chat) -> None:
        """Have the front forget a request that ended without its doing."""
        self._spawn(self._forget(chat))

    async def _forget(self, chat: Chat) -> None:
        if self.front is not None:
            try:
                await self.front.drop(chat.id)
            except (Gone, Declined):
                return  # It does not know the request any more.

    def told(self, notice: Notice) -> None:
        """A notice was shown: whoever waits because of it is told the same."""
        model = notice.subject.removeprefix("kv:").removeprefix("weights:")
        if notice.kind is NoticeKind.WISHED:
            self._reasons.pop(model, None)  # It is not held down any more.
        if model not in self.models.entries or notice.kind not in (NoticeKind.OFFLOADED, NoticeKind.HELD):
            return
        self._reasons[model] = notice.text
        for chat in self.chats.in_flight(model):
            if chat.is_paused:
                chat.pause(notice.text)

    def reason(self, model: str) -> str:
        """Why requests of a model wait."""
        return self._reasons.get(model, f"{model} is being brought to where it computes.")

    # --- words

    def _heard(self, said: Unasked) -> None:
        now_ms = self._clock.now_ms()
        match said:
            case llm_front.Said():
                for word in said.words:
                    chat = self.chats.find(word.request)
                    if chat is not None and chat.is_open:
                        self.chats.said(chat, word.items, word.ids, at_ms=now_ms)
                        self._progressed(chat, now_ms)
            case llm_front.Working():
                chat = self.chats.find(said.request)
                if chat is not None:
                    self._progressed(chat, now_ms)
            case llm_front.Failed():
                self._failed(said)
            case llm_front.Keeping():
                self.kept[said.model] = said
            case _:
                assert_never(said)

    def _progressed(self, chat: Chat, now_ms: int) -> None:
        if not chat.is_open:
            self._finished(chat.id, chat.worker, chat.incarnation)
        elif now_ms - chat.progressed_ms >= PROGRESS_MS and chat.phase is ChatPhase.SERVED:
            chat.progressed_ms = now_ms
            self._post(
                ev.ChatProgressed(
                    at_ms=now_ms, worker=chat.worker, incarnation=chat.incarnation, request=chat.id
                ),
                (),
            )

    def _finished(self, request: str, worker: str, incarnation: int) -> None:
        """A request has had its last word.

        When its child went meanwhile, or suspended it, the first event is not heard; then nobody needs it
        any more, which is what the second one says.
        """
        now_ms = self._clock.now_ms()
        if worker:
            finished = ev.ChatFinished(at_ms=now_ms, worker=worker, incarnation=incarnation, request=request)
            self._post(finished, ())
        self._post(ev.ChatCancelled(at_ms=now_ms, request=request), ())

    def _failed(self, said: llm_front.Failed) -> None:
        chat = self.chats.find(said.request)
        if chat is None or not chat.is_open:
            return
        chat.phase = ChatPhase.WAITING
        chat.pause(f"{chat.model} failed ({said.message}) and goes on from where it was.")
        refused = said.fault is FaultKind.OUT_OF_MEMORY
        self._post(
            ev.ChatFailed(
                at_ms=self._clock.now_ms(),
                worker=said.worker,
                incarnation=said.incarnation,
                request=said.request,
                failure=Failure.REFUSED if refused else Failure.ENGINE,
            ),
            (),
        )

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        assert self._group is not None, "the parlour works in a task group"
        return self._group.create_task(work)
