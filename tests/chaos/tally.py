"""The tally: what a storm has done so far, kept in a file, so that one that is broken off goes on.

Owns the counts, the hashes of undisturbed pictures and answers, the last line, and nothing of how things are
counted.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.wire.artifacts import write_atomically

TROUBLES_MAX = 20


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one workload in one round."""

    started: int = 0
    finished: int = 0
    compared: int = 0
    identical: int = 0
    troubles: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Tally:
    """Everything that a later run must know. `next_round` is the first that was not finished."""

    seed: int
    next_round: int = 0
    struck: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    works: dict[str, dict[str, int]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def faults(self) -> int:
        """Faults that met somebody."""
        return sum(self.struck.values())

    def add(self, name: str, outcome: Outcome) -> None:
        """Count what became of a workload."""
        sums = Counter(self.works.get(name, {}))
        for what in ("started", "finished", "compared", "identical"):
            sums[what] += getattr(outcome, what)
        self.works[name] = dict(sums)
        self.troubles += outcome.troubles
        del self.troubles[TROUBLES_MAX:]

    def line(self) -> str:
        """The last line of a run."""
        images, chats = Counter(self.works.get("images", {})), Counter(self.works.get("chats", {}))
        return (
            f"faults={self.faults} images={images['finished']}/{images['started']} "
            f"identical={images['identical']}/{images['compared']} "
            f"chats={chats['finished']}/{chats['started']}"
        )

    def texts(self) -> str:
        """How many answers were, to the letter, those that nobody disturbed."""
        chats = Counter(self.works.get("chats", {}))
        return f"answers that are the undisturbed ones: {chats['identical']}/{chats['compared']}"

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True).encode())


def read(path: Path, *, seed: int) -> Tally | None:
    """The tally that an earlier run of this seed left; None when there is none."""
    try:
        tally = Tally(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):  # none, or of another version
        return None
    return tally if tally.seed == seed else None
