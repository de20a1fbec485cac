"""Pages for people: `/docs` is made from the OpenAPI document, without a script and without the network.

Owns the HTML of the reference. The usual pages for this load their scripts from elsewhere, which a server
that listens on loopback and is trusted by its user should not do. The dashboard is not here.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final  # Any: an OpenAPI document is JSON of any shape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
:root{color-scheme:light dark}
code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;padding:.6rem;border:1px solid #8886}
summary{cursor:pointer;padding:.2rem 0}b.m{display:inline-block;width:4.5rem}td{padding:.1rem .8rem .1rem 0}
td{vertical-align:top}h2{margin-top:2rem}
"""
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


@router.get("/", response_class=RedirectResponse)
async def root() -> RedirectResponse:
    """The first page."""
    return RedirectResponse("/docs")


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """The reference of this server."""
    return HTMLResponse("".join(_page(request.app.openapi())), headers=_HEADERS)


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title}</h1><p>{html.escape(document['info']['description'])}</p>"
    yield "<p>For programs: <a href=/openapi.json>openapi.json</a>, <a href=/metrics>metrics</a>.</p>"
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for tag in dict.fromkeys(operation["tags"][0] for _, _, operation in operations):
        yield f"<h2>{html.escape(tag)}</h2>"
        for path, method, operation in operations:
            if operation["tags"][0] == tag:
                yield from _operation(path, method, operation)
    yield "<h2>schemas</h2>"
    for name, schema in sorted(document["components"]["schemas"].items()):
        shown = html.escape(json.dumps(schema, indent=1, ensure_ascii=False))
        yield f"<details id={html.escape(name)}><summary><code>{html.escape(name)}</code></summary>"
        yield f"<pre>{shown}</pre></details>"


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    head = f"<b class=m>{method.upper()}</b> <code>{html.escape(path)}</code>"
    about = html.escape(operation.get("description", ""))
    yield f"<details><summary>{head} — {about.partition('.')[0]}.</summary><p>{about}</p><table>"
    for parameter in operation.get("parameters", ()):
        words = html.escape(parameter.get("description") or parameter["schema"].get("description", ""))
        name = f"{html.escape(parameter['name'])} ({parameter['in']})"
        yield f"<tr><td><code>{name}</code><td>{words}"
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<tr><td>body<td>{html.escape(kind)}: {_reference(body['schema'])}"
    for status, answer in operation["responses"].items():
        kinds = ", ".join(
            f"{html.escape(kind)} {_reference(content.get('schema', {}))}"
            for kind, content in answer.get("content", {}).items()
        )
        yield f"<tr><td>{status}<td>{html.escape(answer['description'])} {kinds}"
    yield "</table></details>"


def _reference(schema: Mapping[str, Any]) -> str:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f"<a href=#{html.escape(name)}>{html.escape(name)}</a>" if name else ""
