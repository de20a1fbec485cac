"""What a server costs beside its engines: over HTTP, from outside, and in its parts (`inside`).

From outside: one client on one connection, so that a time is one request through door, route, core and
journal, and back; beside it the CPU time that the server's process took. Every figure is a median of five
runs. Writes round_trips.md; ends with 1 if a figure is above its bound.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import inside
from inside import RUNS, Figure
from table import write_page

import server_process

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
ROUNDS, WARM_ROUNDS = 100, 50
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


def cpu_s(pid: int) -> float:
    """CPU time that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def asked(name: str, work: Callable[[], float], *, pid: int, bound_ms: float = 0.0) -> Figure:
    """The median of five runs of many rounds; `work` says how many seconds its part took."""
    medians, began_s = [], cpu_s(pid)
    for _ in range(WARM_ROUNDS):
        work()
    for _ in range(RUNS):
        medians.append(statistics.median(work() * 1_000 for _ in range(ROUNDS)))
    spent_ms = (cpu_s(pid) - began_s) * 1_000 / (WARM_ROUNDS + RUNS * ROUNDS)
    beside = f"{spent_ms:.2f} ms of CPU in the server for each round, its own telemetry included"
    return Figure(name, statistics.median(medians), "ms", bound_ms, beside)


def timed(line: Line, method: str, path: str, body: object = None) -> tuple[float, bytes]:
    """Seconds and the answer."""
    began = time.perf_counter()
    told = line.ask(method, path, body)
    return time.perf_counter() - began, told


def got(line: Line, path: str) -> float:
    """Seconds of a question."""
    return timed(line, "GET", path)[0]


def negotiated(line: Line) -> float:
    """A lease that is granted at once, and given back outside of the measured time."""
    wish = {"bytes": 1 << 20, "purpose": "a benchmark"}
    took_s, told = timed(line, "POST", "/internal/negotiate_vram", wish)
    lease = json.loads(told)
    assert lease["state"] == "granted", lease
    line.ask("DELETE", f"/internal/leases/{lease['lease']}")
    return took_s


def over_http(model: Path) -> list[Figure]:
    """Requests as a client sees them."""
    with (
        tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder,
        server_process.running(Path(folder), model) as server,
    ):
        line = Line(server.url)
        found = [
            asked(
                "negotiate, granted at once (and given back)",
                lambda: negotiated(line),
                pid=server.pid,
                bound_ms=NEGOTIATE_P50_MAX_MS,
            )
        ]
        for path in ("/api/residency", "/api/vram", "/internal/health"):
            found.append(asked(f"GET {path}", partial(got, line, path), pid=server.pid))
        line.close()
    return found


def main() -> int:
    """Measure, write the page, and judge."""
    # Workers without an engine are modules of this folder.
    os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    made = [sys.executable, str(TREE / "scripts" / "demo_models.py"), "sd1-tiny"]
    models = subprocess.run(made, cwd=TREE, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    model = Path(models) / "sd1-tiny.safetensors"
    found = [*over_http(model), *inside.figures(model)]
    rows = [
        [
            one.name,
            f"{one.value:.2f} {one.unit}",
            f"{one.bound:g} {one.unit}" if one.bound else "",
            "" if one.holds else "no",
            one.beside,
        ]
        for one in found
    ]
    write_page(
        HERE / "round_trips.md",
        "What a server costs beside its engines",
        text=f"Medians of {RUNS} runs; over HTTP each of {ROUNDS} rounds on one connection.",
        head=["what", "p50", "at most", "holds", "beside it"],
        rows=rows,
    )
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
