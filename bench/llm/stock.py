"""The stock server of the same sources beside us: started on one thread, asked over HTTP.

Owns its life and its answers. It is built with the engines; where it was left out the columns say so.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

START_MAX_S = 60.0


def program() -> Path | None:
    """The built llama-server, if there is one."""
    from tidegate_engines import llama

    try:
        return llama.program("llama-server")
    except FileNotFoundError:
        return None


class Stock:
    """One llama-server. Leaving the `with` ends it."""

    def __init__(self, found: Path, model: Path, *, slots: int, context_count: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        command = [str(found), "-m", str(model), "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["-t", "1", "-tb", "1", "-np", str(slots), "-c", str(slots * context_count)]
        command += ["-fa", "on", "-b", "256", "-ub", "256", "--no-webui"]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
        )
        self._wait_until_ready()
        self.start_ms = (time.perf_counter() - began) * 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + START_MAX_S
        while time.monotonic() < until:
            try:
                if self._ask("GET", "/health", None)[0] == http.client.OK:
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.005)
        raise TimeoutError("llama-server did not become ready")

    def _ask(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        line = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        try:
            line.request(method, path, None if body is None else json.dumps(body))
            answer = line.getresponse()
            return answer.status, answer.read()
        finally:
            line.close()

    def complete(self, prompt: list[int], tokens: int, seed: int = 7) -> None:
        """One completion of exactly this many tokens."""
        body = {
            "prompt": prompt,
            "n_predict": tokens,
            "seed": seed,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        status, told = self._ask("POST", "/completion", body)
        assert status == http.client.OK, told

    def rate(self, streams: int, tokens: int) -> float:
        """Tokens per second of this many streams side by side."""
        threads = [
            threading.Thread(target=self.complete, args=([300 + n, 301], tokens, n)) for n in range(streams)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return streams * tokens / (time.perf_counter() - began)
