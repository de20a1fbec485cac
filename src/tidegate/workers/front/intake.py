"""Intake: from an ask to a request that a child can begin.

Owns the checks that cost a client an error and nobody else anything: the template, the grammar, tokens that
do not exist, a prompt that does not fit. Everything here works while no weights are loaded.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tidegate_engines import llama

from tidegate.core.faults import ClientError
from tidegate.wire import asks, llm_link
from tidegate.wire.llm_link import Segment
from tidegate.workers.front import dialogue
from tidegate.workers.front.models import Model
from tidegate.workers.front.request import Request, Vectors
from tidegate.workers.front.schemas import grammar_of
from tidegate.workers.front.speech import Speech
from tidegate.workers.front.templates import Media, Piece, Words
from tidegate.workers.front.vocabulary import Vocabulary

# The vectors of one answer travel in one frame; nine bytes for each number.
VECTOR_NUMBERS_MAX: Final = 1_500_000


def taken_in(model: Model, name: str, body: asks.Body) -> Request | Vectors:
    """Make the request. Raises ClientError."""
    match body:
        case asks.Chat():
            return _chat(model, name, body)
        case asks.Completion():
            return _completion(model, name, body)
        case asks.Embedding():
            return _embedding(model, name, body)


def _chat(model: Model, name: str, chat: asks.Chat) -> Request:
    if model.template is None:
        raise model.template_fault or ClientError(
            f"{model.order.model} has no chat template.",
            remedy="Use /v1/completions, or a model that was made for chats.",
            code="bad_template",
        )
    if chat.pictures and not model.order.projector_path:
        raise ClientError(
            f"{model.order.model} cannot see pictures: it has no projector (mmproj).",
            remedy="Name its mmproj file in the configuration, or ask a model that has one.",
            code="no_vision",
        )
    vocabulary = model.vocabulary
    _check_length(model, dialogue.characters_of(chat))
    prepared = dialogue.prepare(
        model.template,
        chat,
        specials=vocabulary.specials,
        now=datetime.fromtimestamp(time.time()),
        convert=llama.json_schema_to_gbnf,
    )
    segments, order = _segments(vocabulary, prepared.pieces, chat.pictures)
    if prepared.grammar:
        vocabulary.check_grammar(prepared.grammar)
    speech = Speech(
        vocabulary,
        hidden=vocabulary.hidden(prepared.kept),
        stops=chat.sampling.stop,
        parser=prepared.parser(),
    )
    return _request(
        model,
        name,
        segments,
        sampling=chat.sampling,
        speech=speech,
        grammar=prepared.grammar,
        triggers=prepared.triggers,
        pictures=tuple(_memory_file(chat.pictures[number]) for number in order),
    )


def _segments(
    vocabulary: Vocabulary, pieces: Sequence[Piece], pictures: Sequence[asks.Picture]
) -> tuple[list[Segment], list[int]]:
    """The prompt as the child takes it, and which picture stands at each of its images."""
    segments: list[Segment] = []
    order: list[int] = []
    words: list[Words] = []
    is_first = True

    def close_text() -> None:
        nonlocal is_first
        tokens = _text_tokens(vocabulary, words, is_first=is_first)
        if tokens:
            segments.append(llm_link.Ids(llm_link.to_bytes(tokens)))
        words.clear()
        is_first = False

    for piece in pieces:
        if isinstance(piece, Media):
            close_text()
            picture = pictures[piece.picture]
            key = hashlib.blake2b(picture.rgb, digest_size=16, key=b"%d" % picture.width).hexdigest()
            segments.append(llm_link.Image(key, picture.width, picture.height))
            order.append(piece.picture)
        else:
            words.append(piece)
    close_text()
    return segments, order


def _text_tokens(vocabulary: Vocabulary, words: Sequence[Words], *, is_first: bool) -> list[int]:
    """One call for the whole text, as its model knows it; piece by piece only where somebody's words spell a
    control token, which must not become one.
    """
    if not any(word.is_plain for word in words):
        text = "".join(word.text for word in words)
        return vocabulary.tokens(text, adds_special=is_first, parses_special=True) if text or is_first else []
    found: list[int] = []
    for number, word in enumerate(words):
        begins = is_first and not number
        found += vocabulary.tokens(word.text, adds_special=begins, parses_special=not word.is_plain)
    return found


def _memory_file(picture: asks.Picture) -> int:
    descriptor = os.memfd_create("tidegate-picture", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(picture.rgb)
    return descriptor


def _completion(model: Model, name: str, body: asks.Completion) -> Request:
    vocabulary = model.vocabulary
    if isinstance(body.prompt, str):
        _check_length(model, len(body.prompt))
        tokens = vocabulary.tokens(body.prompt, adds_special=True, parses_special=True)
    else:
        tokens = list(body.prompt)
        vocabulary.check(tokens)
    grammar = grammar_of(body.format, convert=llama.json_schema_to_gbnf)
    if grammar:
        vocabulary.check_grammar(grammar)
    speech = Speech(vocabulary, hidden=vocabulary.hidden(()), stops=body.sampling.stop, parser=None)
    tokens = tokens or vocabulary.first_token()
    segments: list[Segment] = [llm_link.Ids(llm_link.to_bytes(tokens))] if tokens else []
    return _request(model, name, segments, sampling=body.sampling, speech=speech, grammar=grammar)


def _request(
    model: Model,
    name: str,
    segments: Sequence[Segment],
    *,
    sampling: asks.Sampling,
    speech: Speech,
    grammar: str = "",
    triggers: tuple[str, ...] = (),
    pictures: tuple[int, ...] = (),
) -> Request:
    prompt = [
        token
        for segment in segments
        if isinstance(segment, llm_link.Ids)
        for token in llm_link.to_tokens(segment.tokens)
    ]
    request = Request(
        name=name,
        model=model.order.model,
        segments=tuple(segments),
        prompt=prompt,
        sampling=sampling,
        speech=speech,
        grammar=grammar,
        triggers=triggers,
        pictures=pictures,
        prompt_count=len(prompt),
    )
    try:
        model.vocabulary.check(sampling.logit_bias)
        if not segments:
            raise ClientError("The prompt is empty.", code="bad_messages")
        if len(prompt) >= model.context_count:
            raise too_long(model, f"{len(prompt)} tokens")
    except ClientError:
        request.close()
        raise
    return request


def _embedding(model: Model, name: str, body: asks.Embedding) -> Vectors:
    texts: list[list[int]] = []
    if len(body.inputs) * model.vocabulary.embedding_count > VECTOR_NUMBERS_MAX:
        raise ClientError("Too many texts in one request.", remedy="Send fewer at once.", code="bad_messages")
    for given in body.inputs:
        if isinstance(given, str):
            _check_length(model, len(given))
            tokens = model.vocabulary.tokens(given, adds_special=True, parses_special=False)
        else:
            tokens = list(given)
            model.vocabulary.check(tokens)
        if not tokens:
            raise ClientError("A text for a vector is empty.", code="bad_messages")
        if len(tokens) > model.context_count:
            raise too_long(model, f"{len(tokens)} tokens")
        texts.append(tokens)
    return Vectors(name=name, model=model.order.model, texts=texts)


def _check_length(model: Model, letters_count: int) -> None:
    """Refuse what cannot fit before it is cut into tokens: that takes seconds for megabytes."""
    if letters_count > model.context_count * model.vocabulary.longest_bytes:
        raise too_long(model, f"{letters_count} letters")


def too_long(model: Model, length: str) -> ClientError:
    """The refusal of a prompt that does not fit."""
    return ClientError(
        f"The prompt has {length}; {model.order.model} can hold {model.context_count} tokens.",
        remedy="Shorten it, or configure a larger context.",
        code="context_length_exceeded",
    )
