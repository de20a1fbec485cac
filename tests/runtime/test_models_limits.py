"""The worst headers that the limits allow: they take bounded time and memory."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def bomb_of_texts() -> bytes:
    """A GGUF header at the limit of list entries, each an empty text, and one tensor of 32 values."""
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2_000_000)
    tensor = struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 32, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + bytes(8 * 2_000_000) + tensor
    return header + bytes(-len(header) % 32 + 128)


def bomb_of_names() -> bytes:
    """A JSON header of nearly 8 MiB with as many names as fit."""
    return safetensors(b"{" + b",".join(b'"%05x":{}' % n for n in range(800_000)) + b"}")


def bomb_of_brackets() -> bytes:
    """A JSON header of 8 MiB that opens and never closes."""
    return safetensors(b'{"a":' + b"[" * (8 * 2**20 - 8))


def safetensors(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


CONFINED = """
import resource, sys
from pathlib import Path
from tidegate.core.faults import ClientError
from tidegate.runtime.models.opening import read_model
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
try:
    print(len(read_model(Path(sys.argv[1])).tensors))
except ClientError as fault:
    print(fault.code)
"""


@pytest.mark.parametrize(
    ("bomb", "answer"),
    [(bomb_of_texts, "1"), (bomb_of_names, "model_corrupt"), (bomb_of_brackets, "model_corrupt")],
)
def test_the_worst_headers_take_bounded_time_and_memory(
    tmp_path: Path, bomb: Callable[[], bytes], answer: str
) -> None:
    """In a process of its own, which the kernel ends at 1 GiB or 20 s of processor time."""
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(bomb())
    command = [sys.executable, "-c", CONFINED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, answer), done.stderr
