"""Models: a configured language model with its tide, its requests and its habits.

Owns Model. Levels and their table: `level.py`; how it moves: `tide.py`; when it is wanted: `rhythm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.faults import InvalidTransition
from tidegate.core.llm.level import TRANSITIONS, Level, Tide
from tidegate.core.llm.request import Request
from tidegate.core.llm.rhythm import Rhythm

SERVICE_MS = 4_000  # Prior for an answer: some hundred tokens.


@dataclass(slots=True, kw_only=True)
class Model:
    """One language model."""

    name: str
    card: str
    slots_count: int
    tide: Tide = Tide.COLD
    layers_count: int = 0  # On the card, at its present level.
    aim: Level = Level.COLD  # Where the present movement leads; EBBING may go on to COLD.
    requests: dict[str, Request] = field(default_factory=dict)  # In the order of arrival.
    rhythm: Rhythm = field(default_factory=Rhythm)
    used_ms: int = 0  # When a request last came or ended.
    service_ms: int = SERVICE_MS  # How long an answer takes, as a moving average.
    serving_since_ms: int = 0  # Since when it rests at HOT or PARTIAL.
    was_contended: bool = False  # It came up while images waited, so it may keep the card for its quantum.
    was_pushed: bool = False  # It yielded to somebody and is to come back by itself.
    attempts_count: int = 0  # Failed rises in a row.
    refused_since_ms: int = -1
    wish: Level | None = None  # Where somebody wants it held; None: the planner decides.
    wish_layers_count: int = 0  # Of a wish for PARTIAL.
    prewarmed_ms: int = -1  # The expected use for which it was last brought back ahead of time.

    def to(self, finish: Tide, story: tuple[str, ...] = ()) -> None:
        """Go on to the next level or movement; anything but a transition of the table is a bug."""
        if finish not in TRANSITIONS[self.tide]:
            raise InvalidTransition(f"model {self.name}", self.tide, finish, story=story)
        self.tide = finish
