"""Streams of language models: what is seen while an answer waits, when a client goes, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any  # Any: a view is JSON of any shape

from server_process import MAIN, Running

LONG: dict[str, Any] = {
    "model": "hermes",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 700,
    "seed": 7,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}
WAIT_S = 120


def set_level(server: Running, **wish: object) -> None:
    assert server.client.put("/api/models/hermes/level", json=wish).status_code == 200


def language(server: Running) -> dict[str, Any]:
    models = server.client.get("/api/models").json()["models"]
    found: dict[str, Any] = next(model["language"] for model in models if model["name"] == "hermes")
    return found


def chunks_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_a_stream_says_why_it_waits_and_goes_on(llm_server: Running) -> None:
    lines: list[str] = []
    held_at = 0
    with llm_server.client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
        try:
            for line in answer.iter_lines():
                lines.append(line)
                if not held_at and "".join(_said([line])):
                    held_at = len(lines)
                    set_level(llm_server, level="warm")
                if held_at and line.startswith(": paused: "):
                    set_level(llm_server, level="auto")
        finally:
            set_level(llm_server, level="auto")
    at = next(n for n in range(held_at, len(lines)) if lines[n].startswith(": paused: "))
    assert len(lines[at]) > len(": paused: ") and ": resumed" in lines[at:]
    assert "".join(_said(lines[:at])) and "".join(_said(lines[at:]))
    told = [chunk["usage"] for chunk in chunks_of(iter(lines)) if chunk.get("usage")]
    assert told[-1]["completion_tokens"] == 700
    assert "data: [DONE]" in lines[at:]


def _said(lines: list[str]) -> Iterator[str]:
    for chunk in chunks_of(iter(lines)):
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""


def test_hanging_up_ends_the_answer(llm_server: Running) -> None:
    ended = threading.Event()
    names: list[str] = []

    def watch() -> None:
        with llm_server.client.stream("GET", "/api/events?kinds=chat") as events:
            names.append("listening")
            started.set()
            for line in events.iter_lines():
                if line.startswith("data: ") and json.loads(line[6:]).get("phase") == "ended":
                    ended.set()
                    return

    started = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert started.wait(WAIT_S)
    with llm_server.client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
        for chunk in chunks_of(answer.iter_lines()):
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                break
    assert ended.wait(WAIT_S)
    watcher.join(WAIT_S)
    # The answer has ended for its listener; the model's own process hears of it a moment later.
    until = time.monotonic() + WAIT_S
    while language(llm_server)["running_count"] and time.monotonic() < until:
        pass
    assert language(llm_server)["running_count"] == 0


def test_a_conversation_in_a_terminal(llm_server: Running) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", MAIN, "chat", "--max-tokens", "5", "--seed", "1"]
    process = subprocess.Popen(
        [*command, "--server", llm_server.url],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout as out, process.stderr as errors:
        try:
            for line in (
                b"Hello\n",
                b"/system Be brief.\n",
                b"/image /nowhere.png\n",
                b"/what\n",
                b"And you?\n",
            ):
                os.write(ours, line)
            os.write(ours, b"/quit\n")
            said = _read_all(out.fileno())
            told = errors.read().decode()
        finally:
            os.close(ours)
            code = process.wait(WAIT_S)
    assert code == 0, told
    assert said.decode().count("\n") >= 2 and len(said) > 10
    assert "/nowhere.png cannot be read" in told and told.count("/quit ends") == 2


def _read_all(descriptor: int) -> bytes:
    found = b""
    while select.select([descriptor], [], [], WAIT_S)[0]:
        piece = os.read(descriptor, 4_096)
        if not piece:
            return found
        found += piece
    raise AssertionError(f"it does not end: {found!r}")
