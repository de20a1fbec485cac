"""Requests nobody thought of, made from our own OpenAPI document, against a real server.

Whatever is sent: no 5xx but a 503 that says when to come back, every status is documented, every answer is
what its schema says, and what the schema forbids is refused. A sample here; many more under `make chaos`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks as openapi_checks

from server_process import Running
from tidegate.api.app import routes

# Streams that never end by themselves are read in their own tests.
ENDLESS = ("watch_events", "watch_job")
# What language models are asked; without a bound they go on until their context is full.
ASKING = (
    "openai_complete_chat",
    "openai_complete_text",
    "openai_embed",
    "enhance",
    "tag",
    "tokenize",
    "detokenize",
)
# What would be allowed but takes hours on two cores: the most that is allowed, and what is sent instead.
SLOW_FIELDS = {"steps": (1_000, 2), "n": (10, 1), "count": (16, 1), "max_tokens": (4_096, 16)}
SIDE, SIDE_MAX = 64, 16_384
PROMPT, PROMPT_MAX = 200, 20_000


def document(*, coverage: bool) -> schemathesis.BaseSchema:
    """Our document; `coverage` adds the bounds of every single field, which is some hundred requests each."""
    found = schemathesis.openapi.from_dict(routes().openapi())
    found.config.phases.coverage.enabled = coverage
    return found.exclude(operation_id=list(ENDLESS))


ALL_HEALTH = list(HealthCheck)
SAMPLE = settings(max_examples=6, derandomize=True, suppress_health_check=ALL_HEALTH)
MANY = settings(max_examples=25, suppress_health_check=ALL_HEALTH)


@schemathesis.check
def refuses_well(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """No 5xx, but for a 503 that says when to come back."""
    assert response.status_code < 500 or (response.status_code == 503 and "retry-after" in response.headers)


CHECKS = [
    refuses_well,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
]


@pytest.fixture(autouse=True)
def nothing_left_to_do(server: Running) -> Iterator[None]:
    yield
    server.cancel_all()


def smaller(body: dict[str, object]) -> None:
    """Nobody waits for a large picture on two cores; what is no multiple of eight is refused as it is.

    A prompt of one endless word keeps the engine's tokenizer busy for minutes.
    """
    for name in ("prompt", "negative", "negative_prompt"):
        given = body.get(name)
        if isinstance(given, str) and PROMPT < len(given) <= PROMPT_MAX:
            body[name] = given[:PROMPT]
    for name in ("width", "height"):
        given = body.get(name)
        if isinstance(given, int) and not isinstance(given, bool) and SIDE < given <= SIDE_MAX:
            body[name] = SIDE + given % 8
    sides = re.fullmatch(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", str(body.get("size")))
    if sides:
        width, height = (min(int(side), SIDE + int(side) % 8) for side in sides.groups())
        body["size"] = f"{width}x{height}"


def ask(case: schemathesis.Case, server: Running) -> None:
    if isinstance(case.body, dict):
        smaller(case.body)
        for name, (allowed_max, cheap) in SLOW_FIELDS.items():
            given = case.body.get(name)
            # Only what is allowed is made smaller: what is forbidden shall be refused as it is.
            if isinstance(given, int) and not isinstance(given, bool) and cheap < given <= allowed_max:
                case.body[name] = cheap
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=300)


@document(coverage=False).parametrize()
@SAMPLE
def test_a_sample_of_requests(case: schemathesis.Case, server: Running) -> None:
    ask(case, server)


@pytest.mark.chaos
@document(coverage=True).parametrize()
@MANY
def test_many_requests(case: schemathesis.Case, server: Running) -> None:
    ask(case, server)


@pytest.mark.chaos
@document(coverage=True).include(operation_id=list(ASKING)).parametrize()
@MANY
def test_many_requests_to_language_models(case: schemathesis.Case, llm_server: Running) -> None:
    if isinstance(case.body, dict) and "/v1/" in case.path:
        case.body.setdefault("max_tokens", 4)
    ask(case, llm_server)
