"""What all messages have in common: their base, and the words for what went wrong.

Owns Message and FaultKind. The messages themselves are in `messages` and its neighbours, which is also where
both are taken from.
"""

from __future__ import annotations

import enum

import msgspec


class FaultKind(enum.StrEnum):
    """Why a command failed, as far as the worker that survived it can tell."""

    INVALID_MODEL = "invalid_model"
    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_FINITE = "not_finite"
    CANCELLED = "cancelled"
    STORAGE = "storage"
    ENGINE = "engine"


class Message(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Base of all messages; the class name in lower case is the tag on the wire."""
