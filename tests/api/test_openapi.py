"""The OpenAPI document and the reference page: complete, in the dialect, and without anything from
elsewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any  # Any: an OpenAPI document is JSON of any shape

import httpx2
import pytest

from tidegate.api.app import routes

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reference.py"


def script() -> ModuleType:
    """The script that writes the reference, which is no package."""
    found = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


DOCUMENT: dict[str, Any] = routes().openapi()
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_every_promised_path_is_there() -> None:
    assert set(DOCUMENT["paths"]) == {
        "/v1/models", "/v1/models/{model}", "/v1/images/generations", "/v1/images/edits",
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize",
        "/api/models/{model}/level", "/api/intent", "/api/enhance", "/api/tag",
        "/api/jobs", "/api/jobs/{job}", "/api/jobs/{job}/cancel", "/api/jobs/{job}/result",
        "/api/jobs/{job}/story", "/api/jobs/{job}/events", "/api/plan",
        "/api/images", "/api/images/{image}", "/api/images/{image}/metadata",
        "/api/vram", "/api/models", "/api/models/{model}/load", "/api/models/{model}/unload",
        "/api/residency", "/api/events", "/api/reload",
        "/internal/negotiate_vram", "/internal/leases/{lease}", "/internal/health", "/metrics",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_operation_says_what_it_does_and_how_it_refuses(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    assert operation["description"].endswith((".", "?"))
    answers = operation["responses"]
    assert {"400", "401", "403", "405", "413"} <= set(answers)
    assert ("422" in answers) != path.startswith("/v1/")
    for status in {"429", "503"} & set(answers):
        assert "Retry-After" in answers[status]["headers"]
    assert not {status for status in answers if status.startswith("5")} - {"503"}
    if "{" in path:
        assert "404" in answers


def test_operation_ids_are_distinct() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))


def test_every_reference_leads_somewhere() -> None:
    named = set(re.findall(r"#/components/schemas/([^\"']+)", str(DOCUMENT)))
    assert named <= set(DOCUMENT["components"]["schemas"])


def test_the_reference_page_needs_nothing_from_elsewhere() -> None:
    async def read() -> httpx2.Response:
        transport = httpx2.ASGITransport(routes())
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/", follow_redirects=True)

    page = asyncio.run(read())
    assert page.status_code == 200
    assert "<script" not in page.text and "://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path, _, _ in OPERATIONS:
        assert path in page.text


def test_the_generated_reference_is_what_the_code_says() -> None:
    reference = script()
    for name, text in reference.pages().items():
        written = (reference.FOLDER / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is out of date: run `python scripts/reference.py`"
