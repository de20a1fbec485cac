"""Stories: what happened to a job, a worker, a model or a lease, line by line, readable by a user.

Owns the bounded histories. What a line says is written where it happens; notices, which are shown unasked,
are worded in `notice.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.quantity import time_text

SUBJECTS_MAX = 4_096


@dataclass(slots=True)
class Stories:
    """One bounded list of lines for each subject; the subject told about longest ago is forgotten first."""

    lines_max: int
    lines: dict[str, list[str]] = field(default_factory=dict)
    begun_ms: dict[str, int] = field(default_factory=dict)

    def tell(self, subject: str, line: str, *, at_ms: int) -> None:
        """Add a line to a subject's story, with the time since the story began."""
        told = self.lines.pop(subject, None)
        if told is None:
            told = []
            if len(self.lines) >= SUBJECTS_MAX:
                forgotten = next(iter(self.lines))
                del self.lines[forgotten]
                del self.begun_ms[forgotten]
            self.begun_ms[subject] = at_ms
        self.lines[subject] = told  # Last told stands last, so that the first is the one to forget.
        told.append(f"{time_text(at_ms - self.begun_ms[subject])}: {line}")
        if len(told) > self.lines_max:
            del told[1]  # The beginning of a story is kept; its middle goes.

    def of(self, subject: str) -> tuple[str, ...]:
        """Read a subject's story."""
        return tuple(self.lines.get(subject, ()))
