"""Chats in this dialect: whole, or streamed.

Owns `/v1/chat/completions`. A client that hangs up takes its ask with it. What is streamed is the neighbour
`llm_streams`, how a chat becomes an ask is `conversation`.
"""

from __future__ import annotations

import time
from typing import Any, Final  # Any: FastAPI's own type for documented responses

from fastapi import APIRouter, Request, Response

from tidegate.api import sse
from tidegate.api.lobby import LobbyHere
from tidegate.api.openai.chat_answers import (
    FINISHES,
    ChatAnswer,
    ChatChoice,
    FunctionOut,
    MessageOut,
    ToolCallOut,
    chat_logprobs,
    usage_of,
)
from tidegate.api.openai.chat_schemas import ChatRequest
from tidegate.api.openai.conversation import chat_of
from tidegate.api.openai.envelope import documented
from tidegate.api.openai.llm_streams import ChatChoices, streamed
from tidegate.api.presence import unless_gone
from tidegate.api.replies import Choir, Reply, asked, seeded, whole

router = APIRouter(tags=["openai"])
_STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": ChatAnswer,
        "content": {sse.MEDIA_TYPE: {}},
        "description": "The answers; with `stream`, events with a few tokens each, then `[DONE]`.",
    }
}


@router.post(
    "/v1/chat/completions",
    response_model=ChatAnswer,
    responses={**_STREAMED, **documented(404, 409, 429, 503)},
)
async def complete_chat(wish: ChatRequest, request: Request, lobby: LobbyHere) -> ChatAnswer | Response:
    """Continue a conversation: streamed or whole, with tools, pictures, and answers of a given shape.

    While the answer waits for the model, a stream says so in comments.
    """
    body = await chat_of(wish, lobby)
    count = wish.n or 1
    handles = await asked(lobby.gate, seeded(body, count), model=wish.model, priority=wish.priority)
    head = {
        "id": f"chatcmpl-{handles[0].id.removeprefix('chat-')}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": handles[0].model,
        "system_fingerprint": "tidegate",
    }
    if wish.stream:
        return streamed(Choir(lobby.gate, handles), ChatChoices(), head, wish=wish)
    replies = await unless_gone(request, whole(lobby.gate, handles))
    return ChatAnswer(
        id=str(head["id"]),
        created=int(time.time()),
        model=handles[0].model,
        choices=[
            _choice(index, reply, body.sampling.logprobs_count >= 0) for index, reply in enumerate(replies)
        ],
        usage=usage_of([reply.ended for reply in replies], count=count),
        notices=wish.notices,
    )


def _choice(index: int, reply: Reply, has_logprobs: bool) -> ChatChoice:  # noqa: FBT001 - told by its place
    calls = [
        ToolCallOut(id=call.id, function=FunctionOut(name=call.name, arguments=call.arguments))
        for _, call in sorted(reply.calls.items())
    ]
    return ChatChoice(
        index=index,
        message=MessageOut(
            content=reply.text or (None if calls else ""),
            reasoning_content="".join(reply.reasonings) or None,
            tool_calls=calls or None,
        ),
        logprobs=chat_logprobs(reply.chances) if has_logprobs else None,
        finish_reason=FINISHES[reply.ended.finish],
    )
