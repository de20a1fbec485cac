"""Refusals: from a fault to a status, the same for every dialect.

Owns which code gets which status and when a client is told to come back. How a refusal looks on the wire is
told in one file for each dialect: `openai.envelope` and `native.envelope`; which of them answers is decided
here, by the path.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from tidegate.api.native import envelope as native
from tidegate.api.openai import envelope as openai
from tidegate.api.presence import Gone
from tidegate.api.refusal import Refusal
from tidegate.core.faults import Bug, CapacityError, ClientError, Fault, WorkerError

_log = logging.getLogger(__name__)

# Codes of ClientError that are not plainly 400. Everything else that begins with `unknown_` is 404.
STATUSES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "key_missing": 401,
        "key_wrong": 401,
        "host_refused": 403,
        "origin_refused": 403,
        "no_model": 404,
        "no_such_path": 404,
        "method_refused": 405,
        "denied": 409,
        "conflict": 409,
        "body_too_large": 413,
        "picture_too_large": 413,
    }
)
# Names that are refused within a request, not things that a path names.
_IN_REQUEST: Final = frozenset({"unknown_sampler", "unknown_scheduler"})
MISTAKES_SHOWN_MAX: Final = 3
# What web servers log when a client closed its request.
CLIENT_CLOSED: Final = 499


def refusal_of(fault: Fault) -> Refusal:
    """What to answer to a fault."""
    match fault:
        case ClientError():
            status, retry_after_ms = _client_status(fault.code), 0
        case CapacityError() if fault.code == "busy":
            status, retry_after_ms = HTTPStatus.TOO_MANY_REQUESTS, max(1_000, fault.retry_after_ms)
        case CapacityError() if fault.retry_after_ms:
            status, retry_after_ms = HTTPStatus.SERVICE_UNAVAILABLE, fault.retry_after_ms
        case CapacityError():
            # Waiting does not help, so it is no 503: this machine as it is conflicts with the wish.
            status, retry_after_ms = HTTPStatus.CONFLICT, 0
        case WorkerError() | Bug() | Fault():
            status, retry_after_ms = HTTPStatus.INTERNAL_SERVER_ERROR, 0
    return Refusal(
        status=int(status),
        code=fault.code,
        message=fault.message,
        remedy=fault.remedy,
        retry_after_ms=retry_after_ms,
    )


def answer(scope: Scope, refusal: Refusal) -> JSONResponse:
    """The refusal in the dialect of the path."""
    if str(scope["path"]).startswith("/v1/"):
        return openai.response(refusal)
    return native.response(refusal)


def install(app: FastAPI) -> None:
    """Let every error of the application leave in its dialect."""
    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        (Fault, _on_fault),
        (Gone, _on_gone),
        (RequestValidationError, _on_invalid),
        (HTTPException, _on_http),
        (Exception, _on_bug),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


def _client_status(code: str) -> int:
    if code in STATUSES:
        return STATUSES[code]
    if code.startswith("unknown_") and code not in _IN_REQUEST:
        return HTTPStatus.NOT_FOUND
    return HTTPStatus.BAD_REQUEST


async def _on_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)  # Nobody reads it.


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Fault)
    if isinstance(error, Bug):
        _log.error("a bug answered %s %s", request.method, request.url.path, exc_info=error)
    return answer(request.scope, refusal_of(error))


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    told = []
    for mistake in error.errors()[:MISTAKES_SHOWN_MAX]:
        place = ".".join(str(part) for part in mistake["loc"] if part != "body")
        told.append(f"{place}: {mistake['msg']}" if place else str(mistake["msg"]))
    first = error.errors()[0]["loc"] if error.errors() else ()
    refusal = Refusal(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        code="bad_request",
        message=f"The request is not understood: {'; '.join(told)}.",
        remedy="The fields are described under /docs.",
        param=".".join(str(part) for part in first[1:]),
    )
    return answer(request.scope, refusal)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            told = ClientError(f"There is no {request.url.path}.", remedy="See /docs.", code="no_such_path")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            told = ClientError(
                f"{request.url.path} knows no {request.method}.", remedy="See /docs.", code="method_refused"
            )
        case _:
            told = ClientError(f"The request cannot be read: {error.detail}.", code="bad_request")
    response = answer(request.scope, refusal_of(told))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    _log.error("a bug answered %s %s", request.method, request.url.path, exc_info=error)
    told = Bug(
        "Something went wrong inside tidegate.", remedy="The server's log says more; please report it."
    )
    return answer(request.scope, refusal_of(told))
