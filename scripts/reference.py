"""Writes the generated pages of docs/reference: settings with their JSON schema, and the HTTP routes.

Owns how they look. What they say comes from the code: `tidegate.runtime.settings` and `tidegate.api.app`.

    python scripts/reference.py            writes them
    python scripts/reference.py --check    exit code 1 names those that are out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any  # JSON schemas and OpenAPI documents are JSON of any shape

from tidegate.api.app import routes
from tidegate.runtime.settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
SETTINGS_HEAD = """# Settings

`tidegate serve` needs none: without a file it serves all models of the models folder on 127.0.0.1, port
7860. [tidegate.example.toml](tidegate.example.toml) is a whole file with comments, and
[tidegate.schema.json](tidegate.schema.json) lets an editor check one (`tidegate serve --schema` prints it).

The file is the one named with `--config`, else `$TIDEGATE_CONFIG`, else `~/.config/tidegate/tidegate.toml`.
The options `--models`, `--device`, `--host`, `--port` and `--state` say something instead of it. A name
that is not known is refused, and every mistake is named with its place. `SIGHUP` and `POST /api/reload`
read the file again.

Sizes are bytes, or texts such as "512MiB". Times are in milliseconds. This page is generated from the code.
"""
HTTP_HEAD = """# HTTP

The same server speaks OpenAI's dialect under `/v1` and its own under `/api` and `/internal`. `/docs` on a
running server is the full reference with all schemas, `/openapi.json` the same for programs. This page is
generated.

- **Who may ask.** Only this machine, unless `host` under `[listen]` says otherwise, which needs `keys`.
  Where there are keys, every request needs one: `Authorization: Bearer KEY` or `X-API-Key: KEY`. A name in
  the Host header must be `localhost` or stand in `allowed_hosts`; a web page elsewhere must stand in
  `allowed_origins`.
- **Refusals.** `{"error": {"code", "message", "remedy", "param", "retry_after_ms"}}`, under `/v1` OpenAI's
  envelope. 429 is a full queue and 503 something that passes: both say `Retry-After`. 409 is what this
  machine cannot do at all.
- **The same request twice.** With `Idempotency-Key: ANYTHING` two requests are one job, also after a
  restart.
- **Hanging up** on `/v1/images/...` cancels the job, unless it had such a key.
- **Events** are server-sent events. `/api/events` replays what was missed after `Last-Event-ID`; an event
  `lost` tells how many were beyond the bounds. `/api/jobs/{job}/events` ends with the event `end`.
- **Streams of language models** end with `data: [DONE]`; while an answer waits they hold comments that say
  why. Hanging up ends the answer.
- **OpenAI's fields** for images: `prompt`, `model`, `n`, `size`, `output_format`, `output_compression`,
  `response_format`, `stream`, `partial_images`, and for edits `image`. Ours beside them: `negative_prompt`,
  `seed`, `steps`, `cfg`, `guidance`, `sampler`, `scheduler`, `clip_skip`, `strength`, `priority`,
  `enhance`. Answers carry `job` and `notices` as further fields. Masks are not supported and refused by name.
"""


def pages() -> dict[str, str]:
    """The text of every generated page by its file name."""
    schema = Settings.model_json_schema()
    return {
        "tidegate.schema.json": json.dumps(schema, indent=2) + "\n",
        "configuration.md": SETTINGS_HEAD + "\n" + "\n".join(settings_tables(schema)) + "\n",
        "http.md": HTTP_HEAD + "\n" + "\n".join(route_tables(routes().openapi())) + "\n",
    }


def settings_tables(schema: Mapping[str, Any]) -> Iterator[str]:
    """A table for each table of the file."""
    for name, field in schema["properties"].items():
        is_list = field.get("type") == "array"
        inner = (field["items"] if is_list else field)["$ref"].rpartition("/")[2]
        table = schema["$defs"][inner]
        yield f"## {'[[' if is_list else '['}{name}{']]' if is_list else ']'}\n"
        yield f"{' '.join(str(table.get('description', '')).split())}\n"
        yield "| setting | default | |\n|---|---|---|"
        for key, one in table["properties"].items():
            default = json.dumps(one["default"]) if "default" in one else "needed"
            yield f"| `{key}` | {default.replace('|', '/')} | {one.get('description', '')} |"
        yield ""


def route_tables(document: Mapping[str, Any]) -> Iterator[str]:
    """A table for each group of routes."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            about = " ".join(operation["description"].split())
            groups.setdefault(operation["tags"][0], []).append(f"| `{method.upper()} {path}` | {about} |")
    for group, rows in groups.items():
        yield f"## {group}\n\n| route | |\n|---|---|"
        yield from rows
        yield ""


def main() -> int:
    """Write the pages, or name those that are out of date."""
    parser = argparse.ArgumentParser(description="Writes the generated pages of docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing, name what is out of date")
    wanted = parser.parse_args()
    found = pages()
    stale = [
        name
        for name, text in found.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]
    for name in stale:
        if wanted.check:
            print(f"{FOLDER / name} is out of date: run `python scripts/reference.py`", file=sys.stderr)
        else:
            (FOLDER / name).write_text(found[name], encoding="utf-8")
            print(FOLDER / name)
    return 1 if wanted.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
