"""The desk: requests taken in, begun in children, and said on as they are answered.

Owns the requests, the links, and which stream in which child is an attempt at which request. A stream's
number is never used twice, so what a child says of an attempt that was given up is told by its number. When a
child vanishes nothing is said: the runtime sees it too, and says Serve again when there is another one.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from typing import assert_never

import numpy as np

from tidegate.core.faults import ClientError
from tidegate.wire import asks, frames, llm_front, llm_link, messages
from tidegate.wire.llm_link import Ending
from tidegate.wire.messages import FaultKind, Message
from tidegate.workers.front.chances import chances_of, with_chances
from tidegate.workers.front.intake import taken_in
from tidegate.workers.front.link import Link
from tidegate.workers.front.memories import Memories, Memory
from tidegate.workers.front.models import Models
from tidegate.workers.front.request import Request, Saved, Vectors

_LENGTH = asks.Finish.LENGTH
_FINISHES = {Ending.STOP: asks.Finish.STOP, Ending.LENGTH: _LENGTH, Ending.CONTEXT: _LENGTH}


class Desk:
    """Everything the front does, one word at a time. `say` speaks to the runtime."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self._say = say
        self._models = Models()
        self._requests: dict[str, Request | Vectors] = {}
        self._attempts: dict[int, Request | Vectors] = {}
        self.links: dict[int, Link] = {}
        self._memories = Memories()
        self._numbers = itertools.count(1)
        self._words: list[llm_front.Word] = []
        self._told: dict[str, tuple[int, int, int]] = {}

    # ------------------------------------------------------------ the runtime's words

    def obey(self, command: llm_front.ToFront, descriptors: list[int]) -> None:
        """Carry out one command; descriptors that came with it are ours."""
        match command:
            case llm_front.Furnish():
                self._memories.close()
                self._memories = Memories(
                    ram_bytes=command.ram_bytes, disk_bytes=command.disk_bytes, folder=command.folder
                )
                self._say(llm_front.Furnished(serial=command.serial, kept_count=len(self._memories)))
            case llm_front.OpenModel():
                self._close_model(command.model)
                self._say(self._models.open(command))
            case llm_front.CloseModel():
                self._close_model(command.model)
                self._say(llm_front.ModelClosed(serial=command.serial, model=command.model))
            case llm_front.Attach():
                self._attach(command, descriptors[0])
            case llm_front.Ask():
                self._ask(command, descriptors)
            case llm_front.Serve():
                self._serve(command)
            case llm_front.Drop():
                self._drop(command.request)
                self._say(llm_front.Dropped(serial=command.serial, request=command.request))
            case llm_front.FreeStates():
                self._say(self._memories.released(command, self._requests.values()))
            case llm_front.Tokenize() | llm_front.Detokenize():
                self._say(self._models.translated(command))
            case messages.Ping():
                self._say(messages.Pong(serial=command.serial))
            case messages.Shutdown():
                self.close()
            case _:
                assert_never(command)

    def _close_model(self, name: str) -> None:
        for request in [request for request in self._requests.values() if request.model == name]:
            self._end(request, asks.Finish.FAILED, code="unknown_model", message=f"{name} was removed.")
        self.flush()
        self._memories.forget(name)
        self._models.close(name)

    def _attach(self, command: llm_front.Attach, descriptor: int) -> None:
        for link in [link for link in self.links.values() if link.worker == command.worker]:
            self.lost(link)
        link = Link(descriptor, model=command.model, worker=command.worker, incarnation=command.incarnation)
        self.links[link.descriptor] = link

    def _ask(self, command: llm_front.Ask, descriptors: list[int]) -> None:
        answer: asks.Accepted | asks.Refused
        try:
            body = llm_front.unpack(command.body, descriptors[0] if descriptors else None)
            request = taken_in(self._models.named(command.model), command.request, body)
            if isinstance(request, Request) and command.history:
                request.generated = list(command.history)
                request.speech.feed(command.history)
            self._requests[command.request] = request
            answer = asks.Accepted(prompt_count=request.prompt_count)
        except ClientError as error:
            answer = asks.Refused(code=error.code, message=error.message, remedy=error.remedy)
        except frames.ProtocolError as error:
            answer = asks.Refused(code="bad_messages", message=f"The request cannot be read: {error}.")
        except Exception as error:  # noqa: BLE001  ours to mend; but the same ask would end the next front too
            traceback.print_exc()
            answer = asks.Refused(code="bug", message=f"The request met an error of ours: {error!r}.")
        self._say(llm_front.Answered(serial=command.serial, request=command.request, answer=answer))

    def _drop(self, name: str) -> None:
        request = self._requests.get(name)
        if request is not None:
            self._leave(request)
            self._forget(request)

    # ------------------------------------------------------------ to the children

    def _serve(self, command: llm_front.Serve) -> None:
        request = self._requests.get(command.request)
        link = next(
            (
                link
                for link in self.links.values()
                if (link.worker, link.incarnation) == (command.worker, command.incarnation)
            ),
            None,
        )
        if request is None or link is None:
            return  # One of the two is gone; the runtime learns that by itself.
        self._leave(request)
        request.link = link
        if isinstance(request, Vectors):
            self._begin_vectors(request, link)
        else:
            self._begin(request, link)

    def _begin(self, request: Request, link: Link) -> None:
        request.stream = next(self._numbers)
        self._attempts[request.stream] = request
        saved, common = request.saved, 0
        if saved is not None:
            common = saved.note.tokens_count
        elif not request.pictures and not request.is_anew:
            remembered = self._memories.find(request.model, request.history)
            if remembered is not None:
                memory, common = remembered
                saved = Saved(note=memory.note, descriptor=memory.descriptor)
        begin = llm_link.Begin(
            stream=request.stream,
            prompt=request.segments,
            sampling=request.sampling,
            generated=llm_link.to_bytes(request.generated),
            grammar=request.grammar,
            triggers=request.triggers,
            state=saved.note if saved is not None else None,
            common_count=common,
            is_own=request.saved is not None,
            kept_count=request.kept_count,
            shifted_count=request.shifted_count,
        )
        link.say(begin, [*([saved.descriptor] if saved is not None else []), *request.pictures])

    def _begin_vectors(self, request: Vectors, link: Link) -> None:
        for index, tokens in enumerate(request.texts):
            if index not in request.found:
                number = next(self._numbers)
                request.streams[number] = index
                self._attempts[number] = request
                link.say(llm_link.Embed(stream=number, tokens=llm_link.to_bytes(tokens)))

    def _leave(self, request: Request | Vectors) -> None:
        """Give up the attempt that is under way, if there is one."""
        streams = list(request.streams) if isinstance(request, Vectors) else [request.stream]
        for stream in streams:
            if self._attempts.pop(stream, None) is not None and request.link is not None:
                request.link.say(llm_link.Leave(stream=stream))
        request.leave()

    def lost(self, link: Link) -> None:
        """A child is gone; its requests wait for another Serve."""
        self.links.pop(link.descriptor, None)
        for stream, request in [pair for pair in self._attempts.items() if pair[1].link is link]:
            del self._attempts[stream]
            request.leave()
        link.close()

    # ------------------------------------------------------------ from the children

    def hear(self, link: Link, message: llm_link.FromEngine) -> None:
        """What a child says. Words to the runtime are collected until `flush`."""
        if isinstance(message, llm_link.Tokens):
            for run in message.runs:
                self._run(run)
        elif isinstance(message, llm_link.Handover):
            self._handed_over(link, message)
        else:
            request = self._attempts.get(message.stream)
            if isinstance(message, llm_link.Snapshot):
                saved = Saved(note=message.state, descriptor=link.channel.take_descriptor())
                if isinstance(request, Request):
                    request.keep(saved)
                    self._tell_keeping(request.model)
                else:
                    saved.close()
            elif request is not None:
                self._said_of(request, message)

    def _said_of(
        self,
        request: Request | Vectors,
        message: llm_link.Evaluated
        | llm_link.Shifted
        | llm_link.Embedded
        | llm_link.Declined
        | llm_link.Failed,
    ) -> None:
        match message:
            case llm_link.Evaluated():
                assert isinstance(request, Request), "only answers have a prompt"
                if request.prompt_count < message.prompt_count:
                    request.prompt_count = message.prompt_count
                if request.cached_count < 0:
                    request.cached_count = message.reused_count
                if message.done_count < message.total_count:
                    self._say(
                        llm_front.Working(
                            request=request.name,
                            done_count=message.done_count,
                            total_count=message.total_count,
                        )
                    )
            case llm_link.Shifted():
                assert isinstance(request, Request), "only answers have a context"
                request.note_shift(message)
            case llm_link.Embedded():
                assert isinstance(request, Vectors), "only asks for vectors have one"
                self._embedded(request, message)
            case llm_link.Declined():
                self._leave_quietly(request, message.stream)
            case llm_link.Failed():
                self._failed(request, message)
            case _:
                assert_never(message)

    def _run(self, run: llm_link.Run) -> None:
        request = self._attempts.get(run.stream)
        if not isinstance(request, Request):
            return
        request.generated += run.ids
        deltas = request.speech.feed(run.ids)
        if run.likely:
            deltas = with_chances(deltas, chances_of(self._models.named(request.model).vocabulary, run))
        self._say_word(request, deltas, run.ids)
        if request.speech.is_stopped:
            self._leave(request)
            self._end(request, asks.Finish.STOP)
        elif run.ending is not None:
            self._attempts.pop(run.stream)
            request.leave()
            self._end(request, _FINISHES[run.ending])

    def _embedded(self, request: Vectors, message: llm_link.Embedded) -> None:
        index = request.streams.pop(message.stream)
        del self._attempts[message.stream]
        request.found[index] = tuple(np.frombuffer(message.vector, dtype="<f4").tolist())
        if len(request.found) == len(request.texts):
            self._end(request, asks.Finish.STOP)

    def _leave_quietly(self, request: Request | Vectors, stream: int) -> None:
        """The child has no context: it never began, or has put the stream aside."""
        self._attempts.pop(stream, None)
        if isinstance(request, Vectors):
            request.streams.pop(stream, None)
        elif request.stream == stream:
            request.leave()

    def _failed(self, request: Request | Vectors, message: llm_link.Failed) -> None:
        link = request.link
        self._leave(request)
        if message.fault is FaultKind.NOT_FINITE and not request.may_begin_anew():
            told = f"{request.model} computed NaN or infinity. Check its file: download it again."
            self._end(request, asks.Finish.FAILED, code="not_finite", message=told)
        elif message.is_final:
            self._end(request, asks.Finish.FAILED, code="bad_request", message=message.message)
        elif link is not None:
            self._say(
                llm_front.Failed(
                    request=request.name,
                    worker=link.worker,
                    incarnation=link.incarnation,
                    fault=message.fault,
                    message=message.message,
                )
            )

    def _handed_over(self, link: Link, message: llm_link.Handover) -> None:
        saved = None
        if message.state is not None:
            saved = Saved(note=message.state, descriptor=link.channel.take_descriptor())
        request = self._attempts.pop(message.stream, None)
        if isinstance(request, Request):
            request.leave()
            if saved is not None:
                request.keep(saved)
        elif saved is not None and not message.stream:
            history = llm_link.to_tokens(message.history)
            self._remember(link.model, history, saved)
        elif saved is not None:
            saved.close()
        if message.handover:
            link.say(llm_link.Kept(handover=message.handover))
        self._tell_keeping(link.model)

    # ------------------------------------------------------------ endings

    def _end(
        self, request: Request | Vectors, finish: asks.Finish, *, code: str = "", message: str = ""
    ) -> None:
        """The last word of a request."""
        if isinstance(request, Vectors):
            ended = asks.Ended(
                finish=finish,
                prompt_count=request.prompt_count,
                vectors=tuple(request.found[index] for index in range(len(request.found))),
                code=code,
                message=message,
            )
            self._words.append(llm_front.Word(request.name, (ended,)))
        else:
            rest = request.speech.end() if finish is not asks.Finish.FAILED else ()
            if finish is asks.Finish.STOP and request.speech.has_calls:
                finish = asks.Finish.CALLS
            ended = asks.Ended(
                finish=finish,
                prompt_count=request.prompt_count,
                cached_count=max(0, request.cached_count),
                completion_count=len(request.generated),
                code=code,
                message=message,
            )
            self._words.append(llm_front.Word(request.name, (*rest, ended)))
        self._forget(request)

    def _forget(self, request: Request | Vectors) -> None:
        self._requests.pop(request.name, None)
        if isinstance(request, Request) and request.saved is not None and not request.pictures:
            if not request.shifted_count:
                saved, request.saved = request.saved, None
                self._remember(request.model, request.history[: saved.note.tokens_count], saved)
            self._tell_keeping(request.model)
        request.close()

    def _remember(self, model: str, history: list[int], saved: Saved) -> None:
        self._memories.add(Memory(model=model, history=history, note=saved.note, descriptor=saved.descriptor))

    # ------------------------------------------------------------ to the runtime

    def _say_word(self, request: Request, deltas: tuple[asks.Delta, ...], ids: tuple[int, ...]) -> None:
        if ids:
            self._words.append(llm_front.Word(request.name, deltas, ids))

    def flush(self) -> None:
        """Say everything that was collected, in one frame."""
        if self._words:
            self._say(llm_front.Said(words=tuple(self._words)))
            self._words.clear()

    def _tell_keeping(self, model: str) -> None:
        active = sum(
            request.saved.note.state_bytes
            for request in self._requests.values()
            if isinstance(request, Request) and request.model == model and request.saved is not None
        )
        idle, disk = self._memories.bytes_of(model)
        if self._told.get(model) != (active, idle, disk):
            self._told[model] = (active, idle, disk)
            self._say(llm_front.Keeping(model=model, active_bytes=active, idle_bytes=idle, disk_bytes=disk))

    def close(self) -> None:
        """Keep on disk what may be kept, and give everything back."""
        for link in tuple(self.links.values()):
            self.lost(link)
        for request in self._requests.values():
            request.close()
        self._memories.close()
