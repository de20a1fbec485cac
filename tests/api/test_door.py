"""The door: hosts, origins, keys and lengths, in front of a plain application that says what it got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tidegate.api.door import Door, Rules, name_of
from tidegate.runtime.settings import ListenSettings

KEY = "correct-horse-battery"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def door(**listen: object) -> Door:
    methods = ["GET", "POST", "PUT", "DELETE"]
    inner = Starlette(routes=[Route("/{rest:path}", echo, methods=methods)])
    return Door(inner, Rules.of(ListenSettings.model_validate(listen)))


def ask(inside: Door, method: str = "GET", path: str = "/api/x", **how: object) -> httpx2.Response:
    async def asked() -> httpx2.Response:
        transport = httpx2.ASGITransport(inside)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            return await client.request(method, path, **how)  # type: ignore[arg-type]  # passed through as given

    return asyncio.run(asked())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7860", "127.0.0.1", "[::1]:7860", "192.168.0.7"])
def test_addresses_and_localhost_may_be_called(host: str) -> None:
    assert ask(door(), headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_is_refused(host: str) -> None:
    answer = ask(door(), headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_refused"


def test_a_configured_name_may_be_called() -> None:
    assert ask(door(allowed_hosts=["Studio.lan"]), headers={"Host": "studio.lan:7860"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [("a:1", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", "::1"), ("a", "a"), ("A:", "a"), ("[", "")],
)
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert name_of(host) == name


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_elsewhere_may_not_ask(origin: str, method: str) -> None:
    answer = ask(door(), method, headers={"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_our_own_pages_may_ask_and_nobody_is_named_in_the_answer() -> None:
    answer = ask(door(), "POST", headers={"Origin": "http://127.0.0.1:7860"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_configured_page_may_ask_also_before_it_has_a_key() -> None:
    inside = door(allowed_origins=["https://studio.lan"], keys=[KEY])
    headers = {"Origin": "https://studio.lan", "Access-Control-Request-Method": "POST"}
    preflight = ask(inside, "OPTIONS", headers=headers)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == "https://studio.lan"
    asked = ask(inside, "POST", headers={"Origin": "https://studio.lan", "Authorization": f"Bearer {KEY}"})
    assert (asked.status_code, asked.headers["vary"]) == (200, "Origin")


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"X-Api-Key": KEY}]
)
def test_a_key_opens(headers: dict[str, str]) -> None:
    assert ask(door(host="0.0.0.0", keys=["another-key-of-16", KEY]), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "key_missing"),
        ({"Authorization": "Bearer "}, "key_missing"),
        ({"Authorization": f"Basic {KEY}"}, "key_missing"),
        ({"Authorization": f"Bearer {KEY}x"}, "key_wrong"),
        ({"X-Api-Key": KEY[:-1]}, "key_wrong"),
    ],
)
@pytest.mark.parametrize("path", ["/api/jobs", "/internal/health", "/metrics", "/docs", "/openapi.json"])
def test_without_the_key_nothing_opens(path: str, headers: dict[str, str], code: str) -> None:
    answer = ask(door(keys=[KEY]), path=path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


def test_each_dialect_refuses_in_its_own_words() -> None:
    ours = ask(door(keys=[KEY]), path="/api/jobs").json()["error"]
    theirs = ask(door(keys=[KEY]), path="/v1/models").json()["error"]
    assert set(ours) == {"code", "message", "remedy", "param", "retry_after_ms"}
    assert theirs == {
        "message": f"{ours['message']} {ours['remedy']}",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


def test_a_body_that_is_said_to_be_too_large_is_not_read() -> None:
    inside = door(body_bytes_max=1024)
    assert ask(inside, "POST", content=b"x" * 1024).text == "1024"
    answer = ask(inside, "POST", content=b"x" * 1025)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_say_its_length_is_counted() -> None:
    sent = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 512

    answer = ask(door(body_bytes_max=1024), "POST", content=chunks())
    assert answer.status_code == 413


def test_every_answer_tells_browsers_not_to_guess() -> None:
    for answer in (ask(door()), ask(door(), headers={"Host": "evil.example"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_new_rules_hold_at_once() -> None:
    inside = door()
    assert ask(inside).status_code == 200
    inside.rules = Rules.of(ListenSettings.model_validate({"keys": [KEY]}))
    assert ask(inside).status_code == 401
