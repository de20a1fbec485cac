"""The door: who may ask, under which name, from which page, with which key, and how much they may send.

Owns the checks that come before any route: Host (a web page that rebinds its own name to 127.0.0.1 is
refused), Origin (a web page elsewhere may not ask unless configured), API keys, the size of the body, and
the headers that keep browsers from guessing. Which of these hold is told by `Rules`, made from the
settings; a reload puts new rules in place. Pictures are bounded in pixels by `tidegate.runtime.pictures`.

A request passes in this order, and the first refusal ends it:

    1 Host     2 Origin     3 preflight answered     4 key     5 declared length     6 counted length
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tidegate.api import refusals
from tidegate.core.faults import ClientError
from tidegate.core.quantity import size_text
from tidegate.runtime.settings import ListenSettings

_METHODS: Final = "GET, POST, PUT, DELETE"
_REQUEST_HEADERS: Final = "authorization, content-type, idempotency-key, last-event-id, x-api-key"
_PREFLIGHT_MAX_AGE_S: Final = "600"


@dataclass(frozen=True, slots=True)
class Rules:
    """What is checked. Keys are kept as SHA-256, so that none is compared or shown in the clear."""

    key_digests: frozenset[bytes]
    hosts: frozenset[str]
    origins: frozenset[str]
    body_bytes_max: int

    @classmethod
    def of(cls, listen: ListenSettings) -> Self:
        """The rules that the settings ask for."""
        return cls(
            key_digests=frozenset(_digest(key.get_secret_value()) for key in listen.keys),
            hosts=frozenset(name.lower() for name in ("localhost", listen.host, *listen.allowed_hosts)),
            origins=frozenset(origin.lower() for origin in listen.allowed_origins),
            body_bytes_max=listen.body_bytes_max,
        )


class Door:
    """The outermost layer of the application. `rules` may be replaced at any time."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.rules = rules
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        granted = self._granted_origin(headers)
        outwards = _Outwards(send, granted)
        try:
            self._check_caller(headers)
            if granted and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight()(scope, receive, outwards)
                return
            _check_key(headers, self.rules.key_digests)
            self._check_declared(headers)
        except ClientError as fault:
            await refusals.answer(scope, refusals.refusal_of(fault))(scope, receive, outwards)
            return
        await self._app(scope, _Counted(receive, self.rules.body_bytes_max), outwards)

    def _check_caller(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if not _is_address(name_of(host)) and name_of(host) not in self.rules.hosts:
            raise ClientError(
                f"This server is not called {name_of(host)[:200]!r}.",
                remedy="Add the name to allowed_hosts under [listen], or use the address.",
                code="host_refused",
            )
        origin = headers.get("origin", "").lower()
        if origin and origin.partition("://")[2] != host.lower() and origin not in self.rules.origins:
            raise ClientError(
                "Web pages of another origin may not ask here.",
                remedy="Add the origin to allowed_origins under [listen].",
                code="origin_refused",
            )

    def _granted_origin(self, headers: Headers) -> str:
        origin = headers.get("origin", "")
        return origin if origin.lower() in self.rules.origins else ""

    def _check_declared(self, headers: Headers) -> None:
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > self.rules.body_bytes_max:
            raise _too_large(self.rules.body_bytes_max)


class _Outwards:
    """Sends a response with the headers that every response has."""

    def __init__(self, send: Send, granted_origin: str) -> None:
        self._send = send
        self._granted_origin = granted_origin

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            headers.setdefault("Cache-Control", "no-store")
            if self._granted_origin:
                headers["Access-Control-Allow-Origin"] = self._granted_origin
                headers["Access-Control-Expose-Headers"] = "retry-after, location"
                headers.add_vary_header("Origin")
        await self._send(message)


class _Counted:
    """Receives a body and stops where it grows larger than it may."""

    def __init__(self, receive: Receive, bytes_max: int) -> None:
        self._receive = receive
        self._bytes_max = bytes_max
        self._seen_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen_bytes += len(message.get("body", b""))
            if self._seen_bytes > self._bytes_max:
                # The one kind of error that the framework lets through while it reads a body.
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(self._bytes_max).message.rstrip(".")
                )
        return message


def name_of(host: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def _is_address(name: str) -> bool:
    """An address cannot be rebound: whoever reaches us by it means this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:  # a name
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _check_key(headers: Headers, known: frozenset[bytes]) -> None:
    if not known:
        return
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    remedy = "Send `Authorization: Bearer KEY` with a key from [listen] of the settings."
    if not given:
        raise ClientError("A key is needed.", remedy=remedy, code="key_missing")
    digest = _digest(given)
    # Every key is compared, so that the time tells nothing about which of them was near.
    if sum(hmac.compare_digest(digest, one) for one in known) == 0:
        raise ClientError("This key is not known.", remedy=remedy, code="key_wrong")


def _preflight() -> Response:
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": _REQUEST_HEADERS,
        "Access-Control-Max-Age": _PREFLIGHT_MAX_AGE_S,
    }
    return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)


def _too_large(bytes_max: int) -> ClientError:
    return ClientError(
        f"The body is larger than {size_text(bytes_max)}.",
        remedy="Send a smaller picture, or raise body_bytes_max under [listen].",
        code="body_too_large",
    )
