"""Streams of language models in this dialect: chunks as events, comments while an answer waits, `[DONE]`.

Owns the order of what is sent and what is said when an ask fails in mid-stream. Clients that leave comments
alone, as all do, notice a pause and nothing else. The fields of chunks are made by `Chunks`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, assert_never  # Any: chunks are JSON of any shape

import msgspec
from fastapi import Response

from tidegate.api import sse
from tidegate.api.openai.chat_answers import (
    FINISHES,
    chat_delta,
    chat_logprobs,
    completion_logprobs,
    usage_of,
)
from tidegate.api.openai.chat_schemas import LlmSampling
from tidegate.api.openai.envelope import problem
from tidegate.api.refusals import refusal_of
from tidegate.api.replies import Choir, Stream, checked
from tidegate.core.faults import Fault
from tidegate.wire import asks

Json = dict[str, Any]  # Any: see the import


class Choices(Protocol):
    """How one kind of stream words its choices."""

    def first(self, index: int) -> Json | None:
        """The choice before anything was said, if there is one."""

    def said(self, index: int, delta: asks.Delta) -> Json:
        """A choice with what was said."""

    def ended(self, index: int, ended: asks.Ended) -> Json:
        """The last choice."""


class ChatChoices:
    """Of a chat."""

    def first(self, index: int) -> Json | None:
        """Who speaks."""
        return _choice(index, delta={"role": "assistant", "content": ""})

    def said(self, index: int, delta: asks.Delta) -> Json:
        """What is said, thought or called."""
        found = _choice(index, delta=chat_delta(delta))
        if delta.chances:
            found["logprobs"] = chat_logprobs(delta.chances).model_dump()
        return found

    def ended(self, index: int, ended: asks.Ended) -> Json:
        """Why it ended."""
        return _choice(index, delta={}, finish_reason=FINISHES[ended.finish])


class TextChoices:
    """Of a completion; `prompts` are said first where that is wanted."""

    def __init__(self, count: int, prompts: Sequence[str] = ()) -> None:
        self._prompts = prompts
        self._offsets = [len(prompt) for prompt in prompts] or [0] * count

    def first(self, index: int) -> Json | None:
        """The prompt, where it is wanted."""
        return _choice(index, text=self._prompts[index]) if self._prompts else None

    def said(self, index: int, delta: asks.Delta) -> Json:
        """The text."""
        found = _choice(index, text=delta.reasoning + delta.text)
        if delta.chances:
            made = completion_logprobs(delta.chances, offset=self._offsets[index])
            found["logprobs"] = made.model_dump()
        self._offsets[index] += len(delta.text)
        return found

    def ended(self, index: int, ended: asks.Ended) -> Json:
        """Why it ended."""
        return _choice(index, text="", finish_reason=FINISHES[ended.finish])


def _choice(index: int, *, finish_reason: str | None = None, **said: object) -> Json:
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}


def streamed(
    choir: Choir, choices: Choices, head: Json, *, wish: LlmSampling, prompts_count: int = 1
) -> Response:
    """The answers of a choir as one stream. `head` is what every chunk has."""
    made = _chunks(
        choir,
        choices,
        head,
        prompts_count=prompts_count,
        includes_usage=wish.includes_usage,
        notices=wish.notices,
    )
    return sse.stream_of(Stream(choir, made))


async def _chunks(
    choir: Choir,
    choices: Choices,
    head: Json,
    *,
    prompts_count: int,
    includes_usage: bool,
    notices: Sequence[str],
) -> AsyncIterator[bytes]:
    count = choir.count
    if includes_usage:
        head = {**head, "usage": None}

    def chunk(*made: Json, **further: object) -> bytes:
        return b"data: " + msgspec.json.encode({**head, "choices": made, **further}) + b"\n\n"

    ended: dict[int, asks.Ended] = {}
    try:
        yield b"".join(chunk(first) for n in range(count) if (first := choices.first(n)) is not None)
        while not choir.is_over:
            told = b""
            for index, item in await choir.heard(wait_s=sse.BEAT_S):
                match item:
                    case asks.Delta():
                        told += chunk(choices.said(index, item))
                    case asks.Paused():
                        told += sse.comment(f"paused: {item.reason}")
                    case asks.Resumed():
                        told += sse.comment("resumed")
                    case asks.Ended():
                        ended[index] = checked(item)
                        is_last = len(ended) == count and notices
                        last = {"notices": list(notices)} if is_last else {}
                        told += chunk(choices.ended(index, item), **last)
                    case _:
                        assert_never(item)
            yield told or sse.BEAT
    except Fault as fault:
        yield sse.event({"error": problem(refusal_of(fault))})
        return
    if includes_usage:
        in_order = [ended[index] for index in sorted(ended)]
        yield chunk(usage=usage_of(in_order, count=count // prompts_count).model_dump())
    yield sse.DONE
