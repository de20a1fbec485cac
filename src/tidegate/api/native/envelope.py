"""How the native dialect refuses: `{"error": {"code", "message", "remedy", ...}}`.

Owns this one envelope. Which fault gets which status is decided in `tidegate.api.refusals`.
"""

from __future__ import annotations

from typing import Any, Final  # Any: FastAPI's own type for documented responses

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from tidegate.api.refusal import Refusal


class Problem(BaseModel):
    """What is wrong, for a program (`code`) and for a person (`message`, `remedy`)."""

    code: str = Field(description="Stable across versions.")
    message: str
    remedy: str = ""
    param: str = ""
    retry_after_ms: int = Field(default=0, description="0: coming back does not help.")


class Envelope(BaseModel):
    """Every refusal of this dialect."""

    error: Problem


def problem_of(refusal: Refusal) -> Problem:
    """The refusal as this dialect says it, also within a stream."""
    return Problem(
        code=refusal.code,
        message=refusal.message,
        remedy=refusal.remedy,
        param=refusal.param,
        retry_after_ms=refusal.retry_after_ms,
    )


def response(refusal: Refusal) -> JSONResponse:
    """Put a refusal into the envelope."""
    problem = problem_of(refusal)
    headers = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_ms else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(Envelope(error=problem).model_dump(), refusal.status, headers)


_WORDS: Final = {
    400: "The request is wrong.",
    401: "A key is needed.",
    403: "This host or origin may not ask.",
    404: "There is no such thing.",
    405: "There is no such method.",
    409: "It conflicts with how things stand.",
    413: "It is too large.",
    422: "A field is not understood.",
    429: "The queue is full; come back after Retry-After seconds.",
    503: "Not now; come back after Retry-After seconds.",
}
_RETRY: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These refusals, and those that every route has, for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({400, 401, 403, 405, 413, 422, *statuses}):
        found[status] = {"model": Envelope, "description": _WORDS[status]}
        if status in (429, 503):
            found[status]["headers"] = _RETRY
    return found
