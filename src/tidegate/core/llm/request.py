"""Requests: what clients asked of a language model, in flight or waiting.

    queued -> running -> suspended -> running -> done

Owns Request and its TRANSITIONS. Tokens never come here; the conversation is owned by the front.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tidegate.core.faults import InvalidTransition


class RequestPhase(enum.StrEnum):
    """Where a request stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"  # Its stream pauses; state is saved, or its history will be evaluated again.
    DONE = "done"


TRANSITIONS: Mapping[RequestPhase, tuple[RequestPhase, ...]] = MappingProxyType(
    {
        RequestPhase.QUEUED: (RequestPhase.RUNNING, RequestPhase.DONE),
        RequestPhase.RUNNING: (RequestPhase.SUSPENDED, RequestPhase.DONE),
        RequestPhase.SUSPENDED: (RequestPhase.RUNNING, RequestPhase.DONE),
        RequestPhase.DONE: (),
    }
)
WAITING = (RequestPhase.QUEUED, RequestPhase.SUSPENDED)


@dataclass(slots=True, kw_only=True)
class Request:
    """One request."""

    name: str
    model: str
    priority: int
    waiting_since_ms: int
    phase: RequestPhase = RequestPhase.QUEUED
    heard_ms: int = 0  # Last sign of life while running.
    served_since_ms: int = -1  # Since when it is served without a pause; -1 once there was one.
    attempts_count: int = 0
    is_cancelled: bool = False

    def to(self, finish: RequestPhase, story: tuple[str, ...] = ()) -> None:
        """Go on to the next phase; anything but a transition of the table is a bug."""
        if finish not in TRANSITIONS[self.phase]:
            raise InvalidTransition(f"request {self.name}", self.phase, finish, story=story)
        self.phase = finish
