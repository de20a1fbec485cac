"""The tape: whatever a crash left of it, sampling continues to the very same latent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine_process import SMALL, EngineProcess, tiny_files

SAMPLE = """
model = open_checkpoint()
wanted = request()
model.load("text_encoder", "cpu")
embeddings = model.encode(wanted)
model.load("diffusion", "cpu")

def sample(tape):
    try:
        return digest(model.denoise(wanted, embeddings, tape=tape))
    except sdstage.EngineError as refusal:
        return str(refusal)

say(latents=[sample(tape) for tape in arguments["tapes"]])
"""
RECORD_BYTES = 4 + 4 * 8 + 4 * 8 * 8 * 4 + 4
MAGIC_BYTES = 16


def torn(tape: bytes) -> bytes:
    return tape[: MAGIC_BYTES + 2 * RECORD_BYTES + 100]


def flipped(tape: bytes) -> bytes:
    at = MAGIC_BYTES + RECORD_BYTES + 500
    return tape[:at] + bytes([tape[at] ^ 1]) + tape[at + 1 :]


def endless(tape: bytes) -> bytes:
    """A record that claims more data than there is."""
    return tape[: MAGIC_BYTES + RECORD_BYTES] + b"\x01\0\0\0" + (1 << 20).to_bytes(8, "little") + b"x" * 64


@pytest.mark.parametrize("sampler", ["euler_a", "dpm++2s_a"])
def test_any_remainder_of_a_tape_continues_to_the_same_latent(
    tmp_path: Path, synthetic_models: Callable[[str], Path], sampler: str
) -> None:
    arguments = {
        "files": tiny_files(synthetic_models("sd1-tiny")),
        "request": {**SMALL, "sampler": sampler},
    }
    whole = tmp_path / "whole.tape"
    with EngineProcess(SAMPLE, **arguments, tapes=["", str(whole), str(whole)]) as engine:
        without, recorded, replayed = engine.only()["latents"]
    assert without == recorded == replayed

    tape = whole.read_bytes()
    assert (len(tape) - MAGIC_BYTES) % RECORD_BYTES == 0
    remainders = {
        "empty": b"",
        "only the magic": tape[:MAGIC_BYTES],
        "half the magic": tape[:7],
        "one record": tape[: MAGIC_BYTES + RECORD_BYTES],
        "torn": torn(tape),
        "flipped": flipped(tape),
        "endless": endless(tape),
    }
    paths = []
    for name, content in remainders.items():
        paths.append(tmp_path / f"{name}.tape")
        paths[-1].write_bytes(content)
    with EngineProcess(SAMPLE, **arguments, tapes=[str(path) for path in paths]) as engine:
        latents = engine.only()["latents"]
    assert dict(zip(remainders, latents, strict=True)) == dict.fromkeys(remainders, without)
    assert [path.read_bytes() == tape for path in paths] == [True] * len(paths)


def test_what_is_no_tape_is_left_alone(tmp_path: Path, synthetic_models: Callable[[str], Path]) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear friend, this is not a tape at all.")
    arguments = {"files": tiny_files(synthetic_models("sd1-tiny")), "request": SMALL}
    with EngineProcess(SAMPLE, **arguments, tapes=[str(letter)]) as engine:
        (refusal,) = engine.only()["latents"]
    assert refusal == f"{letter} is not a tape; delete it to sample from the start"
    assert letter.read_text() == "Dear friend, this is not a tape at all."
