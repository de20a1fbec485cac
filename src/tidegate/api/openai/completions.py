"""Completions and embeddings in this dialect: texts or tokens, continued as they are or turned into vectors.

Owns `/v1/completions` and `/v1/embeddings`. What is streamed is the neighbour `llm_streams`.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Sequence
from typing import Any, Final, Literal  # Any: FastAPI's own type for documented responses

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from tidegate.api import sse
from tidegate.api.lobby import LobbyHere
from tidegate.api.openai.chat_answers import (
    FINISHES,
    CompletionAnswer,
    CompletionChoice,
    completion_logprobs,
    usage_of,
)
from tidegate.api.openai.chat_schemas import Asked, CompletionRequest, LongText, TokenId
from tidegate.api.openai.conversation import completion_of
from tidegate.api.openai.envelope import documented
from tidegate.api.openai.llm_streams import TextChoices, streamed
from tidegate.api.presence import unless_gone
from tidegate.api.replies import Choir, Reply, asked, seeded, whole
from tidegate.api.wishes import Name
from tidegate.core.faults import ClientError
from tidegate.runtime.asks import DetokenWish
from tidegate.runtime.gate import Gate
from tidegate.wire import asks

router = APIRouter(tags=["openai"])
PROMPTS_MAX: Final = 64
INPUTS_MAX: Final = 2_048
_STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": CompletionAnswer,
        "content": {sse.MEDIA_TYPE: {}},
        "description": "The continuations; with `stream`, events with a few tokens each, then `[DONE]`.",
    }
}


class EmbeddingRequest(Asked):
    """Texts, or tokens, whose vectors are wanted."""

    model: Name = Field(default="", description="A model for embeddings; empty: the default.")
    input: LongText | list[LongText] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text, tokens, or a list of either."
    )
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(default=None, ge=1, le=1 << 20)
    priority: int = Field(default=0, ge=-100, le=100)


class EmbeddingData(BaseModel):
    """One vector: numbers, or little-endian 32-bit floats as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """The vectors, in the order of what was sent."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage


@router.post(
    "/v1/completions",
    response_model=CompletionAnswer,
    responses={**_STREAMED, **documented(404, 409, 429, 503)},
)
async def complete_text(
    wish: CompletionRequest, request: Request, lobby: LobbyHere
) -> CompletionAnswer | Response:
    """Continue texts, or tokens, as they are, without the model's chat template."""
    prompts, count = parts_of(wish.prompt, PROMPTS_MAX), _count(wish)
    echoed = await _echoed(wish, prompts, lobby.gate, count=count)
    bodies = [body for prompt in prompts for body in seeded(completion_of(wish, prompt), count)]
    handles = await asked(lobby.gate, bodies, model=wish.model, priority=wish.priority)
    head = {
        "id": f"cmpl-{handles[0].id.removeprefix('chat-')}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": handles[0].model,
    }
    if wish.stream:
        choices = TextChoices(len(handles), echoed)
        return streamed(Choir(lobby.gate, handles), choices, head, wish=wish, prompts_count=len(prompts))
    replies = await unless_gone(request, whole(lobby.gate, handles))
    return CompletionAnswer.model_validate(
        {
            **head,
            "choices": _choices(wish, replies, echoed),
            "usage": usage_of([reply.ended for reply in replies], count=count),
            "notices": wish.notices,
        }
    )


def _count(wish: CompletionRequest) -> int:
    """How many continuations of each prompt. Raises ClientError for what is not done here."""
    if wish.suffix:
        raise ClientError("Nothing is filled in before a `suffix` here.", code="bad_request")
    count = wish.n or 1
    if (wish.best_of or count) != count:
        raise ClientError("`best_of` has to be `n` here.", remedy="Leave it out.", code="bad_request")
    return count


def _choices(
    wish: CompletionRequest, replies: Sequence[Reply], echoed: Sequence[str]
) -> list[CompletionChoice]:
    found = []
    for index, reply in enumerate(replies):
        before = echoed[index] if echoed else ""
        logprobs = None
        if wish.logprobs is not None:
            logprobs = completion_logprobs(reply.chances, offset=len(before))
        found.append(
            CompletionChoice(
                index=index,
                text=before + reply.text,
                logprobs=logprobs,
                finish_reason=FINISHES[reply.ended.finish],
            )
        )
    return found


@router.post("/v1/embeddings", response_model=EmbeddingAnswer, responses=documented(404, 409, 429, 503))
async def embed(wish: EmbeddingRequest, request: Request, lobby: LobbyHere) -> EmbeddingAnswer:
    """Turn texts, or tokens, into vectors."""
    if wish.dimensions is not None:
        raise ClientError(
            "Vectors have as many dimensions as the model gives them.",
            remedy="Leave `dimensions` out.",
            code="bad_request",
        )
    inputs = parts_of(wish.input, INPUTS_MAX)
    body = asks.Embedding(inputs=tuple(one if isinstance(one, str) else tuple(one) for one in inputs))
    handles = await asked(lobby.gate, [body], model=wish.model, priority=wish.priority)
    (reply,) = await unless_gone(request, whole(lobby.gate, handles))
    as_text = wish.encoding_format == "base64"
    return EmbeddingAnswer(
        data=[
            EmbeddingData(index=index, embedding=_packed(vector) if as_text else list(vector))
            for index, vector in enumerate(reply.ended.vectors)
        ],
        model=handles[0].model,
        usage=EmbeddingUsage(prompt_tokens=reply.ended.prompt_count, total_tokens=reply.ended.prompt_count),
    )


def parts_of(given: str | list[str] | list[int] | list[list[int]], count_max: int) -> list[str | list[int]]:
    """One or several texts or lists of tokens, as a list. Raises ClientError."""
    parts: list[str | list[int]]
    if isinstance(given, str):
        parts = [given]
    elif all(isinstance(one, int) for one in given) and given:
        parts = [[one for one in given if isinstance(one, int)]]
    else:
        parts = [one for one in given if not isinstance(one, int)]
    if not 0 < len(parts) <= count_max:
        raise ClientError(f"1 to {count_max} of them can be sent at once.", code="bad_request")
    return parts


async def _echoed(
    wish: CompletionRequest, prompts: list[str | list[int]], gate: Gate, *, count: int
) -> list[str]:
    """What stands before each answer, where the prompts are wanted back."""
    if not wish.echo:
        return []
    texts = [
        prompt
        if isinstance(prompt, str)
        else await gate.detokenize(DetokenWish(ids=tuple(prompt), model=wish.model))
        for prompt in prompts
    ]
    return [text for text in texts for _ in range(count)]


def _packed(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
