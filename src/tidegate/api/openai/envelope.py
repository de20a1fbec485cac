"""How the OpenAI dialect refuses: `{"error": {"message", "type", "param", "code"}}`.

Owns this one envelope. Which fault gets which status is decided in `tidegate.api.refusals`.
"""

from __future__ import annotations

from typing import Any, Final  # Any: FastAPI's own type for documented responses

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from tidegate.api.refusal import Refusal

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# The code that programs written for that API look for, where ours is another.
_CODES: Final = {
    "unknown_model": "model_not_found",
    "key_missing": "invalid_api_key",
    "key_wrong": "invalid_api_key",
    "busy": "rate_limit_exceeded",
}


class Problem(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Envelope(BaseModel):
    """Every refusal of this dialect."""

    error: Problem


def problem(refusal: Refusal) -> dict[str, object]:
    """The refusal as this dialect says it, also within a stream."""
    kind = _TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return Problem(
        message=f"{refusal.message} {refusal.remedy}".strip(),
        type=kind,
        param=refusal.param or None,
        code=_CODES.get(refusal.code, refusal.code),
    ).model_dump()


def response(refusal: Refusal) -> JSONResponse:
    """Put a refusal into the envelope."""
    # This API has no 422, and its clients repeat 409 and 5xx by themselves unless they are told not to.
    status = 400 if refusal.status == 422 else refusal.status
    headers = {"x-should-retry": "true" if refusal.retry_after_ms else "false"}
    if refusal.retry_after_ms:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": problem(refusal)}, status, headers)


_WORDS: Final = {
    400: "The request is wrong.",
    401: "A key is needed.",
    403: "This host or origin may not ask.",
    404: "There is no such model.",
    405: "There is no such method.",
    409: "This machine cannot do it at all.",
    413: "It is too large.",
    429: "The queue is full; come back after Retry-After seconds.",
    503: "Not now; come back after Retry-After seconds.",
}
_RETRY: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These refusals, and those that every route has, for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({400, 401, 403, 405, 413, *statuses}):
        found[status] = {"model": Envelope, "description": _WORDS[status]}
        if status in (429, 503):
            found[status]["headers"] = _RETRY
    return found
