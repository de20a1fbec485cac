"""Schemas: from the shape that an answer has to have to a grammar that lets nothing else through.

Owns the bounds on schemas, what is refused before the converter sees it, and the wording of refusals. The
conversion itself is llama.cpp's own and is given (`Convert`); whether a grammar in GBNF is one, the engine
says when it reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final  # Any: schemas are JSON of any shape

import msgspec

from tidegate.core.faults import ClientError
from tidegate.wire import asks

# Text of a JSON schema in, GBNF out; raises ValueError with a reason.
Convert = Callable[[str], str]

SCHEMA_CHARACTERS_MAX: Final = 256 * 1024
GRAMMAR_CHARACTERS_MAX: Final = 1 << 20
DEPTH_MAX: Final = 64
# `maxItems` and its like become that many rules, one within the other.
REPEATED_MAX: Final = 2_000
_REPEATING: Final = ("minItems", "maxItems", "minLength", "maxLength")
# The converter says in every way there is what it does not understand.
_CONVERTING: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip
_ANY_OBJECT: Final = '{"type": "object"}'


def grammar_of(format: asks.Format, *, convert: Convert) -> str:  # noqa: A002 - the field's own name
    """The grammar for this shape, "" for free text. Raises ClientError `bad_schema` or `bad_grammar`."""
    match format.shape:
        case asks.Shape.TEXT:
            return ""
        case asks.Shape.JSON:
            return converted(_ANY_OBJECT, convert=convert)
        case asks.Shape.SCHEMA:
            return converted(format.text, convert=convert)
        case asks.Shape.GRAMMAR:
            if len(format.text) > GRAMMAR_CHARACTERS_MAX:
                raise ClientError("The grammar is too long.", code="bad_grammar")
            return format.text


def converted(schema: str, *, convert: Convert) -> str:
    """A grammar from the text of a JSON schema. Raises ClientError `bad_schema`."""
    if len(schema) > SCHEMA_CHARACTERS_MAX:
        raise _refused(f"it has more than {SCHEMA_CHARACTERS_MAX} characters")
    try:
        found = msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _refused(f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _refused("it is no object")
    _check(found, depth=0)
    try:
        grammar = convert(schema)
    except _CONVERTING as error:
        raise _refused(" ".join(str(error).split())[:300] or "it is not understood") from error
    if len(grammar) > GRAMMAR_CHARACTERS_MAX:
        raise _refused("the grammar for it would be too long")
    return grammar


def _check(value: Any, *, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise _refused(f"it is nested more than {DEPTH_MAX} deep")
    if isinstance(value, list):
        for one in value:
            _check(one, depth=depth + 1)
    if not isinstance(value, dict):
        return
    for name in _REPEATING:
        count = value.get(name)
        if isinstance(count, int) and count > REPEATED_MAX:
            raise _refused(f"{name} is more than {REPEATED_MAX}")
    reference = value.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _refused(f"{reference[:100]!r} lies elsewhere, and nothing is fetched")
    for one in value.values():
        _check(one, depth=depth + 1)


def _refused(why: str) -> ClientError:
    return ClientError(
        f"The JSON schema cannot be used: {why}.",
        remedy="See https://json-schema.org for what a schema looks like.",
        code="bad_schema",
    )
