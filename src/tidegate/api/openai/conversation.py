"""From a chat of this dialect to an ask: messages to turns, pictures decoded, sampling filled in.

Owns the way there. Which fields there are is `chat_schemas`; what an ask looks like is `tidegate.wire.asks`.
"""

from __future__ import annotations

import json
import secrets
from typing import Final

import msgspec

from tidegate.api.eyes import pictures_of
from tidegate.api.lobby import Lobby
from tidegate.api.openai.chat_schemas import (
    ChatRequest,
    CompletionRequest,
    ImagePart,
    Json,
    LlmSampling,
    Message,
    NamedTool,
    SchemaFormat,
    TextPart,
)
from tidegate.core.faults import ClientError
from tidegate.runtime.order import SEED_MAX
from tidegate.wire import asks

# Fields of the same name and meaning on both sides.
_SAME: Final = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "dry_multiplier", "dry_base", "dry_allowed_length",
)  # fmt: skip
_RENAMED: Final = {"repeat_last_n": "repeat_last_count", "dry_penalty_last_n": "dry_penalty_last_count"}


async def chat_of(wish: ChatRequest, lobby: Lobby) -> asks.Chat:
    """The ask. Raises ClientError."""
    urls: list[str] = []
    turns = tuple(_turn(message, urls) for message in wish.messages)
    pictures = await pictures_of(urls, lobby)
    choice, choice_name = _choice(wish)
    logprobs_count = asks.NONE
    if wish.logprobs:
        logprobs_count = wish.top_logprobs or 0
    return asks.Chat(
        turns=turns,
        tools=tuple(
            asks.Tool(
                name=tool.function.name,
                description=tool.function.description or "",
                parameters=_sound("tools", tool.function.parameters or {}),
            )
            for tool in wish.tools or ()
        ),
        choice=choice,
        choice_name=choice_name,
        has_parallel_calls=wish.parallel_tool_calls is not False,
        format=_format(wish),
        sampling=sampling_of(
            wish, tokens_max=wish.max_completion_tokens or wish.max_tokens, logprobs_count=logprobs_count
        ),
        pictures=pictures,
        values=_sound("chat_template_kwargs", wish.chat_template_kwargs or {}),
    )


def completion_of(wish: CompletionRequest, prompt: str | list[int]) -> asks.Completion:
    """The ask for one of the prompts."""
    return asks.Completion(
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        format=_grammar(wish),
        sampling=sampling_of(
            wish,
            tokens_max=wish.max_tokens,
            logprobs_count=asks.NONE if wish.logprobs is None else wish.logprobs,
        ),
    )


def sampling_of(wish: LlmSampling, *, tokens_max: int | None, logprobs_count: int) -> asks.Sampling:
    """How to sample, complete."""
    given = {name: getattr(wish, name) for name in _SAME}
    given |= {there: getattr(wish, here) for here, there in _RENAMED.items()}
    if wish.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = tuple(wish.dry_sequence_breakers)
    return asks.Sampling(
        **{name: value for name, value in given.items() if value is not None},
        seed=wish.seed if wish.seed is not None and wish.seed >= 0 else secrets.randbelow(SEED_MAX + 1),
        logit_bias={int(name): value for name, value in (wish.logit_bias or {}).items()},
        ignore_eos=wish.ignore_eos,
        tokens_max=asks.NONE if tokens_max is None else tokens_max,
        stop=wish.stops,
        logprobs_count=logprobs_count,
    )


def _sound(field: str, value: Json) -> Json:
    """JSON that can be passed on: Python reads halves of characters and numbers of any length in it."""
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise ClientError(f"`{field}` holds what is no JSON: {error}.", code="bad_request") from error
    return value


def _turn(message: Message, urls: list[str]) -> asks.Turn:
    parts: list[asks.Text | asks.Seen] = []
    content = message.content
    for part in [content] if isinstance(content, str) else content or ():
        match part:
            case str():
                parts.append(asks.Text(text=part))
            case TextPart():
                parts.append(asks.Text(text=part.text))
            case ImagePart():
                parts.append(asks.Seen(picture=len(urls)))
                urls.append(part.image_url.url)
    return asks.Turn(
        role="system" if message.role == "developer" else message.role,
        parts=tuple(parts),
        name=message.name or "",
        calls=tuple(
            asks.Call(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        call_id=message.tool_call_id or "",
        reasoning=message.reasoning_content or "",
    )


def _choice(wish: ChatRequest) -> tuple[asks.Choice, str]:
    match wish.tool_choice:
        case NamedTool(function=function):
            return asks.Choice.NAMED, function.name
        case None:
            return asks.Choice.AUTO, ""
        case str() as mode:
            return asks.Choice(mode), ""


def _format(wish: ChatRequest) -> asks.Format:
    asked = wish.response_format
    if wish.grammar:
        if asked is not None and asked.type != "text":
            raise ClientError("`grammar` and `response_format` were both given.", code="bad_grammar")
        return _grammar(wish)
    if isinstance(asked, SchemaFormat):
        schema = asked.json_schema.schema_
        if schema is None:
            return asks.Format(shape=asks.Shape.JSON)
        return asks.Format(shape=asks.Shape.SCHEMA, text=json.dumps(schema))
    if asked is not None and asked.type == "json_object":
        return asks.Format(shape=asks.Shape.JSON)
    return asks.Format()


def _grammar(wish: LlmSampling) -> asks.Format:
    return asks.Format(shape=asks.Shape.GRAMMAR, text=wish.grammar) if wish.grammar else asks.Format()
