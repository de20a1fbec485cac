"""Faults: every error the house raises on purpose, sorted by whose fault it was.

Owns the error classes. Each has a stable `code` for machines, one `message` line for the user and a `remedy`
that says what to do next. API envelopes and exit codes are made from these at the edge, never here.
"""

from __future__ import annotations

from collections.abc import Sequence


class Fault(Exception):
    """Base of all errors raised on purpose; `code` is stable across versions."""

    code = "fault"

    def __init__(self, message: str, *, remedy: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ClientError(Fault):
    """The request is wrong; sending it again unchanged fails again."""

    code = "client_error"


class CapacityError(Fault):
    """The machine cannot do this now, or at all; `retry_after_ms` is zero when waiting does not help."""

    code = "capacity"

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        code: str = "",
        needed_bytes: int = 0,
        available_bytes: int = 0,
        retry_after_ms: int = 0,
    ) -> None:
        super().__init__(message, remedy=remedy, code=code)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.retry_after_ms = retry_after_ms


class WorkerError(Fault):
    """A worker failed and every rung of the recovery ladder was used up."""

    code = "worker"


class Bug(Fault):
    """Something that cannot happen did; it is reported with its story and never handled."""

    code = "bug"


class InvalidTransition(Bug):
    """A lifecycle was asked for a step that its TRANSITIONS table does not hold."""

    code = "invalid_transition"

    def __init__(self, subject: str, start: str, finish: str, *, story: Sequence[str] = ()) -> None:
        told = "; ".join(story) or "no story"
        super().__init__(f"{subject}: {start} -> {finish} is not a transition. Story: {told}")


# Why a job ended that names the machine's memory, in the words of the planner.
_CAPACITY_CODES = frozenset({"out_of_memory", "no_candidate", "capacity", "busy"})


def fault_by_code(code: str, message: str, *, remedy: str = "", retry_after_ms: int = 0) -> Fault:
    """The fault by which a job ended, sorted by whose fault it was from the code that it ended with."""
    if code in _CAPACITY_CODES:
        return CapacityError(message, code=code, retry_after_ms=retry_after_ms)
    if code.startswith(("bad_", "unknown_", "invalid_")):
        return ClientError(message, code=code)
    return WorkerError(message, remedy=remedy, code=code)
