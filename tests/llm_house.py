"""A small runtime for tests of language models: one front, one GPU child at a time, real processes both.

Owns what the arbiter decides otherwise (which level, who is served), and the record of what was said. It
looks at nothing but the messages.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tidegate.core.llm.level import Level
from tidegate.runtime import children
from tidegate.wire import asks, channel, llm_child, llm_front, messages

# How long anything may take before a test fails: a slow machine is no error, a hang is.
WAIT_MAX_MS = 120_000
ENVIRONMENT = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(slots=True)
class Heard:
    """What came of one request."""

    ids: list[int] = field(default_factory=list)
    deltas: list[asks.Delta] = field(default_factory=list)
    ended: asks.Ended | None = None

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def chances(self) -> list[asks.Chance]:
        return [chance for delta in self.deltas for chance in delta.chances]


class LlmHouse:
    """One model. `order` is what its children are opened with; its serial is set here."""

    def __init__(
        self, order: llm_child.OpenLlm, *, ram_bytes: int = 1 << 30, disk_bytes: int = 0, folder: str = ""
    ) -> None:
        self.order = order
        self.heard: dict[str, Heard] = {}
        self.refusals: dict[str, asks.Refused] = {}
        self.failures: list[llm_front.Failed] = []
        self.working: dict[str, list[llm_front.Working]] = {}
        self.keeping: llm_front.Keeping | None = None
        self.said: list[messages.Message] = []
        self._serial = 0
        self._incarnation = 0
        self._served: set[str] = set()
        self._waiting: list[str] = []
        self.is_serving = False
        self.child: children.Child[llm_child.FromChild] | None = None
        self.front = children.spawned(
            "tidegate.workers.front", channel.front_parent_end, environment=ENVIRONMENT
        )
        self.until(lambda: any(isinstance(word, messages.Hello) for word in self.said))
        self.command_front(
            llm_front.Furnish(serial=0, ram_bytes=ram_bytes, disk_bytes=disk_bytes, folder=folder)
        )
        self.opened = self.command_front(
            llm_front.OpenModel(
                serial=0,
                model=order.model,
                path=order.path,
                context_tokens_count=order.context_tokens_count,
                slots_count=order.slots_count,
                projector_path=order.projector_path,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self.end_child()
            self.end_front()
            return
        for process in (self.child, self.front):
            if process is not None:
                process.end()

    def end_front(self) -> None:
        """Let the front keep what it may, and wait for its end."""
        self.front.channel.send(messages.Shutdown())
        ending = self.front.finish(WAIT_MAX_MS)
        assert not ending.exit_code and not ending.signal_number, ending

    # ------------------------------------------------------------ the child

    def start_child(self) -> None:
        """A new incarnation, attached to the front; no level yet."""
        self.wait_for_child()
        self.open_child()

    def wait_for_child(self) -> None:
        """A process that could become any model."""
        self._incarnation += 1
        self.child = children.spawned(
            "tidegate.workers.llm", channel.child_parent_end, environment=ENVIRONMENT
        )
        self.until(lambda: any(isinstance(word, messages.Hello) for word in self.said))
        self.said.clear()

    def open_child(self) -> None:
        """It becomes this one."""
        assert self.child is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            attach = llm_front.Attach(model=self.order.model, worker="llm", incarnation=self._incarnation)
            self.front.channel.send(attach, [ours.fileno()])
            self.child.channel.send(llm_child.AttachFront(), [theirs.fileno()])
        opened = self.command_child(self.order)
        assert isinstance(opened, llm_child.LlmOpened), opened

    def end_child(self) -> None:
        """End the child politely."""
        if self.child is not None:
            child, self.child = self.child, None
            child.channel.send(messages.Shutdown())
            ending = child.finish(WAIT_MAX_MS)
            assert not ending.exit_code and not ending.signal_number, ending
            self._put_aside()

    def kill_child(self) -> None:
        """As the kernel's memory killer would."""
        assert self.child is not None
        child, self.child = self.child, None
        child.signal(signal.SIGKILL)
        child.finish(WAIT_MAX_MS)
        self._put_aside()

    def _put_aside(self) -> None:
        self.is_serving = False
        self._waiting = sorted(self._served) + self._waiting
        self._served.clear()

    def set_level(self, level: Level, *, layers: int, ram_bytes: int = 1 << 30) -> llm_child.LevelReached:
        """Go to a level, which must be possible; what waits is served when there is a context."""
        answer = self.try_level(level, layers=layers, ram_bytes=ram_bytes)
        assert isinstance(answer, llm_child.LevelReached), answer
        return answer

    def try_level(self, level: Level, *, layers: int, ram_bytes: int = 1 << 30) -> llm_child.FromChild:
        """Go to a level, or not."""
        if level is Level.WARM:
            self._put_aside()
        wish = llm_child.SetLevel(serial=0, level=level, layers_count=layers, ram_bytes=ram_bytes)
        answer = self.command_child(wish)
        self.is_serving = isinstance(answer, llm_child.LevelReached) and level is not Level.WARM
        self._serve()
        return answer

    def _serve(self) -> None:
        while self.is_serving and self._waiting and len(self._served) < self.order.slots_count:
            name = self._waiting.pop(0)
            if self.heard[name].ended is None:
                self._served.add(name)
                serve = llm_front.Serve(
                    request=name, model=self.order.model, worker="llm", incarnation=self._incarnation
                )
                self.front.channel.send(serve)

    # ------------------------------------------------------------ requests

    def ask(self, name: str, body: asks.Body, *, history: Sequence[int] = ()) -> asks.Accepted | asks.Refused:
        """Ask the front; a request that it accepts is served as soon as there is room."""
        payload, descriptor = llm_front.pack(body)
        ask = llm_front.Ask(
            serial=0, request=name, model=self.order.model, body=payload, history=tuple(history)
        )
        answer = self.command_front(ask, [descriptor] if descriptor is not None else [])
        if descriptor is not None:
            os.close(descriptor)
        assert isinstance(answer, llm_front.Answered)
        if isinstance(answer.answer, asks.Accepted):
            self.heard[name] = Heard()
            self._waiting.append(name)
            self._serve()
        return answer.answer

    def drop(self, name: str) -> None:
        """The client goes away."""
        self.command_front(llm_front.Drop(serial=0, request=name))
        self._served.discard(name)
        self._waiting = [waiting for waiting in self._waiting if waiting != name]
        self._serve()

    def answered(self, *names: str) -> list[Heard]:
        """Wait until these requests have ended."""
        self.until(lambda: all(self.heard[name].ended is not None for name in names))
        return [self.heard[name] for name in names]

    def tokens_of(self, *names: str) -> int:
        """How many tokens of these requests have arrived."""
        return sum(len(self.heard[name].ids) for name in names)

    # ------------------------------------------------------------ talking

    def command_front(self, command: llm_front.ToFront, descriptors: Sequence[int] = ()) -> messages.Message:
        """Say something to the front and wait for the answer with its serial."""
        return self._answer(self.front, command, descriptors)

    def command_child(self, command: llm_child.ToChild) -> llm_child.FromChild:
        """Say something to the child and wait for the answer with its serial."""
        assert self.child is not None
        answer: llm_child.FromChild = self._answer(self.child, command, ())
        return answer

    def _answer(self, to, command, descriptors):
        self._serial += 1
        serial = self._serial
        to.channel.send(type(command)(**{**_fields(command), "serial": serial}), descriptors)
        found: list[messages.Message] = []

        def is_there() -> bool:
            found.extend(word for word in self.said if getattr(word, "serial", 0) == serial)
            return bool(found)

        self.until(is_there)
        self.said.clear()
        return found[0]

    def until(self, holds: Callable[[], bool]) -> None:
        """Hear what is said until this holds."""
        while not holds():
            talkers = {who.channel.fileno(): who for who in (self.front, self.child) if who is not None}
            poller = select.poll()
            for descriptor in talkers:
                poller.register(descriptor, select.POLLIN)
            ready = poller.poll(WAIT_MAX_MS)
            assert ready, "nothing was said for too long"
            for descriptor, _ in ready:
                try:
                    words = talkers[descriptor].channel.receive_ready()
                except channel.Closed as error:
                    lines = "\n".join(talkers[descriptor].finish(WAIT_MAX_MS).last_lines)
                    raise AssertionError(f"a process ended:\n{lines}") from error
                for word in words:
                    self._hear(word)

    def _hear(self, word: messages.Message) -> None:
        match word:
            case llm_front.Said():
                for said in word.words:
                    self._hear_word(said)
            case llm_front.Keeping():
                self.keeping = word
            case llm_front.Working():
                self.working.setdefault(word.request, []).append(word)
            case llm_front.Failed():
                self.failures.append(word)
                self._served.discard(word.request)
                self._waiting.append(word.request)
                self._serve()
            case _:
                self.said.append(word)

    def _hear_word(self, word: llm_front.Word) -> None:
        heard = self.heard[word.request]
        assert heard.ended is None, f"{word.request} was told more after its end"
        heard.ids += word.ids
        for item in word.items:
            if isinstance(item, asks.Ended):
                heard.ended = item
                self._served.discard(word.request)
                self._serve()
            else:
                heard.deltas.append(item)


def _fields(command: messages.Message) -> dict[str, object]:
    return {name: getattr(command, name) for name in command.__struct_fields__}


def order_for(
    model: Path, *, ledger: Path | None = None, device: str = "", **changes: object
) -> llm_child.OpenLlm:
    """A child's order with small figures for tests."""
    given: dict[str, object] = {
        "model": "tiny",
        "path": str(model),
        "ledger_path": str(ledger) if ledger is not None else "",
        "device": device,
        "context_tokens_count": 1024,
        "slots_count": 4,
        "batch_tokens_count": 64,
        "threads_count": 1,
        "proves_restores": True,
    }
    return llm_child.OpenLlm(serial=0, **{**given, **changes})
