"""Answers of language models in this dialect: whole ones and chunks of streams.

Owns the field names. Chunks are made for every few tokens, so they are plain dictionaries; the models here
are for whole answers and for the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal  # Any: chunks are JSON of any shape

from pydantic import BaseModel

from tidegate.wire import asks

FINISHES: Final = {
    asks.Finish.STOP: "stop",
    asks.Finish.LENGTH: "length",
    asks.Finish.CALLS: "tool_calls",
    asks.Finish.CANCELLED: "stop",
}


class PromptDetails(BaseModel):
    """What of a prompt was known already."""

    cached_tokens: int = 0


class LlmUsage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()


class FunctionOut(BaseModel):
    """What is called; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCallOut(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionOut


class MessageOut(BaseModel):
    """What the model said. `reasoning_content` is what it said to itself before, where it does that."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallOut] | None = None


class TopLogprob(BaseModel):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A chosen token, with the likely ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Logarithms of probabilities, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: MessageOut
    logprobs: ChatLogprobs | None = None
    finish_reason: str


class ChatAnswer(BaseModel):
    """The answers. `notices` is ours: what was left alone, in words."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: LlmUsage
    system_fingerprint: str = "tidegate"
    notices: list[str] = []


class CompletionLogprobs(BaseModel):
    """The same in the words of the older route."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str


class CompletionAnswer(BaseModel):
    """The continuations."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: LlmUsage
    system_fingerprint: str = "tidegate"
    notices: list[str] = []


def usage_of(ended: Sequence[asks.Ended], *, count: int = 1) -> LlmUsage:
    """What answers cost together; each prompt has `count` of them in a row, and is read once."""
    prompt_count = sum(one.prompt_count for one in ended[::count])
    completion_count = sum(one.completion_count for one in ended)
    return LlmUsage(
        prompt_tokens=prompt_count,
        completion_tokens=completion_count,
        total_tokens=prompt_count + completion_count,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(one.cached_count for one in ended[::count])),
    )


def chat_logprobs(chances: Sequence[asks.Chance]) -> ChatLogprobs:
    """As a chat has them."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=one.text,
                logprob=one.logprob,
                bytes=list(one.raw),
                top_logprobs=[
                    TopLogprob(token=top.text, logprob=top.logprob, bytes=list(top.raw)) for top in one.top
                ],
            )
            for one in chances
        ]
    )


def completion_logprobs(chances: Sequence[asks.Chance], *, offset: int) -> CompletionLogprobs:
    """As a completion has them; `offset` is where in the text the first token begins."""
    offsets = []
    for one in chances:
        offsets.append(offset)
        offset += len(one.text)
    return CompletionLogprobs(
        tokens=[one.text for one in chances],
        token_logprobs=[one.logprob for one in chances],
        top_logprobs=[{top.text: top.logprob for top in one.top} for one in chances],
        text_offset=offsets,
    )


def chat_delta(delta: asks.Delta) -> dict[str, Any]:  # Any: see the import
    """The `delta` of a chunk."""
    said: dict[str, Any] = {}
    if delta.text:
        said["content"] = delta.text
    if delta.reasoning:
        said["reasoning_content"] = delta.reasoning
    if delta.calls:
        said["tool_calls"] = [_call_delta(call) for call in delta.calls]
    return said


def _call_delta(call: asks.CallDelta) -> dict[str, Any]:  # Any: see the import
    function = {"arguments": call.arguments}
    if not call.id:
        return {"index": call.index, "function": function}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, **function},
    }
