"""HTTP round trips against a real server: negotiate without eviction, and the small questions.

One client on one connection, so that a time is one request through door, route, core and journal, and back.
Writes round_trips.md; ends with 1 if negotiation is above its bound.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from table import write_page

import server_process

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
ROUNDS, WARM_ROUNDS = 400, 50
NEGOTIATE_P50_MAX_MS = 1.0


class Line:
    """One kept connection, without a client library, whose own time would be measured too."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        assert where.hostname is not None and where.port is not None
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """The body of the answer, which has to be a success."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        self._socket.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
        status = self._file.readline()
        length = 0
        while (line := self._file.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        told = self._file.read(length)
        assert status.split()[1].startswith(b"2"), (status, told)
        return told

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


def times_ms(work: Callable[[], float]) -> list[float]:
    """Milliseconds of each round after the warm ones; `work` says how long its part took."""
    return sorted([work() * 1_000 for _ in range(WARM_ROUNDS + ROUNDS)][WARM_ROUNDS:])


def timed(line: Line, method: str, path: str, body: object = None) -> tuple[float, bytes]:
    """Seconds and the answer."""
    began = time.perf_counter()
    told = line.ask(method, path, body)
    return time.perf_counter() - began, told


def negotiated(line: Line) -> float:
    """A lease that is granted at once, and given back outside of the measured time."""
    wish = {"bytes": 1 << 20, "purpose": "a benchmark"}
    took_s, told = timed(line, "POST", "/internal/negotiate_vram", wish)
    lease = json.loads(told)
    assert lease["state"] == "granted", lease
    line.ask("DELETE", f"/internal/leases/{lease['lease']}")
    return took_s


def main() -> int:
    """Measure, write the page, and judge."""
    made = [sys.executable, str(TREE / "scripts" / "demo_models.py"), "sd1-tiny"]
    models = subprocess.run(made, cwd=TREE, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    rows, medians = [], {}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        model = Path(models) / "sd1-tiny.safetensors"
        with server_process.running(Path(folder), model) as server:
            line = Line(server.url)
            measured: dict[str, Callable[[], float]] = {
                "negotiate, granted at once": lambda: negotiated(line),
                "GET /api/residency": lambda: timed(line, "GET", "/api/residency")[0],
                "GET /api/vram": lambda: timed(line, "GET", "/api/vram")[0],
                "GET /internal/health": lambda: timed(line, "GET", "/internal/health")[0],
            }
            for name, work in measured.items():
                found = times_ms(work)
                medians[name] = statistics.median(found)
                rows.append([name, f"{medians[name]:.2f}", f"{found[int(len(found) * 0.99)]:.2f}"])
            line.close()
    write_page(
        HERE / "round_trips.md",
        "HTTP round trips",
        text=f"{ROUNDS} rounds on one connection. Bound: negotiation p50 at most {NEGOTIATE_P50_MAX_MS} ms.",
        head=["what", "p50 ms", "p99 ms"],
        rows=rows,
    )
    return 0 if medians["negotiate, granted at once"] <= NEGOTIATE_P50_MAX_MS else 1


if __name__ == "__main__":
    sys.exit(main())
