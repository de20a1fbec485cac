"""`tidegate run` beside a real server: the lease lasts as long as the program, whichever way it ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # Any: JSON as the server sends it

import pytest

from server_process import MAIN, Running
from tidegate.cli.caller import Caller
from tidegate.cli.lease import Lease
from tidegate.cli.main import run
from tidegate.core.quantity import MIB
from vcard_process import probe_program

AMOUNT_BYTES = 512 * MIB
# Says that it runs, and goes on until its input ends.
TALKER = "import sys; print('up', flush=True); sys.stdin.read(); sys.exit(7)"
# Hears TERM and ends in a way of its own.
HEARER = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(5))
print('up', flush=True)
sys.stdin.read()
"""


def pool(server: Running) -> dict[str, Any]:  # Any: see the import
    """The card as the server sees it, by a sample that is young."""
    found: dict[str, Any] = server.client.get("/api/vram").json()["pools"][1]
    return found


def guests(server: Running) -> dict[str, int]:
    """What guests hold leases of."""
    tenants = [tenant for tenant in pool(server)["tenants"] if tenant["name"].startswith("guest/")]
    return {tenant["name"]: tenant["predicted_bytes"] for tenant in tenants}


def begun(server: Running, *command: str, vram: str = "512MiB", wait: str = "60") -> subprocess.Popen[str]:
    """`tidegate run` in a process of its own."""
    words = [sys.executable, "-c", MAIN, "run", "--vram", vram, "--wait", wait, "--server", server.url, "--"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*words, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def line_of(stream: object) -> str:
    return str(stream.readline())  # type: ignore[attr-defined]  # a pipe of the process


@contextlib.contextmanager
def blocked(server: Running) -> Iterator[None]:
    """Somebody else holds most of the card."""
    wish = {"bytes": free_bytes(server) - 64 * MIB, "purpose": "a game", "hold_ms": 300_000}
    asked = server.client.post("/internal/negotiate_vram", json=wish).json()
    assert asked["state"] == "granted", asked
    try:
        yield
    finally:
        server.client.delete(f"/internal/leases/{asked['lease']}")


def free_bytes(server: Running) -> int:
    """The largest lease that could be had now."""
    denied = server.client.post("/internal/negotiate_vram", json={"bytes": 2**45, "purpose": "a test"}).json()
    return int(denied["largest_now_bytes"])


def test_a_program_has_its_lease_as_long_as_it_runs(server: Running) -> None:
    with begun(server, sys.executable, "-c", TALKER) as process:
        assert line_of(process.stdout) == "up\n"
        assert list(guests(server).values()) == [AMOUNT_BYTES]
        _, said = process.communicate()
    assert (process.returncode, said) == (7, "")
    assert not guests(server)


def test_a_signal_is_handed_on_and_the_program_decides(server: Running) -> None:
    with begun(server, sys.executable, "-c", HEARER) as process:
        assert line_of(process.stdout) == "up\n"
        process.send_signal(signal.SIGTERM)
        process.wait()  # before its input ends, which would end the program too
    assert process.returncode == 5
    with begun(server, sys.executable, "-c", TALKER) as process:
        assert line_of(process.stdout) == "up\n"
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert not guests(server)


def test_who_is_told_to_stop_while_it_waits_leaves_nothing(server: Running) -> None:
    with blocked(server), begun(server, "true", vram="1GiB") as process:
        said = line_of(process.stderr)
        assert said == "tidegate: 1.00 GiB are in use; waiting for at most 1 min 0 s (--wait).\n", said
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
        assert len(guests(server)) == 1, "only who blocks it"


def test_what_it_holds_is_its_own_behind_a_shell_too(server: Running) -> None:
    """Bytes of a grandchild are not counted as somebody else's beside the lease."""
    ledger = server.state / "card-3GiB.vcard"
    command = f"echo up; {probe_program()} {ledger}; exit 9"
    with begun(server, "sh", "-c", command) as process:
        assert process.stdin is not None
        assert line_of(process.stdout) == "up\n"
        line_of(process.stdout)  # the probe's greeting
        (name,) = guests(server)
        seen: tuple[int, int] = (0, 0)
        process.stdin.write(f"alloc 0 {AMOUNT_BYTES}\n")
        process.stdin.flush()
        for _ in range(10_000):  # each look is a round trip, and the card is sampled twice a second
            card = pool(server)
            held = {tenant["name"]: tenant["observed_bytes"] for tenant in card["tenants"]}
            if (seen := (held[name], card["foreign_bytes"])) != (0, 0):
                break
        assert seen == (AMOUNT_BYTES, 0)
        process.communicate()
    assert process.returncode == 9


def test_what_cannot_be_had_is_one_line_with_what_can(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--server", server.url, "--", "true"]
    assert run(["run", "--vram", "4GiB", *options]) == 3
    said = capsys.readouterr().err
    assert said.startswith("tidegate: 4.00 GiB of card memory cannot be had. At most "), said
    assert ": --vram " in said and said.count("\n") == 1
    with blocked(server):
        assert run(["run", "--vram", "1GiB", "--wait", "0", *options]) == 3
    assert "At most 64 MiB can be had now: --vram 64MiB." in capsys.readouterr().err
    assert run(["run", "--vram", "64MiB", *options]) == 0
    assert run(["run", "--vram", "64MiB", "--server", server.url, "no-such-program"]) == 2
    assert "There is no program 'no-such-program'." in capsys.readouterr().err


def test_a_lease_that_the_server_has_forgotten_is_asked_for_anew(server: Running) -> None:
    said: list[str] = []
    with Caller(server.url, "") as caller:
        lease = Lease(caller, AMOUNT_BYTES, purpose="a test", card="", say=said.append)
        lease.take(wait_max_ms=60_000, look=lambda: None)
        for name in guests(server):
            server.client.delete(f"/internal/leases/{name.removeprefix('guest/')}")
        lease.renew()
        assert not guests(server)
        lease.renew()
        assert list(guests(server).values()) == [AMOUNT_BYTES]
        lease.release()
    assert not guests(server)
    assert said == [
        "The lease has ended. The command goes on; its memory is asked for again.",
        "512 MiB are granted again.",
    ]


def test_without_a_server_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers here
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert run(["run", "--vram", "1GiB", "--server", url, "--", "touch", str(mark)]) == 2
    assert "tidegate serve" in capsys.readouterr().err
    assert not mark.exists()
