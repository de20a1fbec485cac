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
    latent = model.denoise(wanted, embeddings, tape=tape, tape_owner=arguments.get("owner", "").encode())
    return [digest(latent), model.tape_error()]

if "limit" in arguments:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (arguments["limit"], arguments["limit"]))
say(samples=[sample(tape) for tape in arguments["tapes"]])
"""
RECORD_BYTES = 4 + 4 * 8 + 4 * 8 * 8 * 4 + 4
HEADER_BYTES = 16 + 32


def torn(tape: bytes) -> bytes:
    return tape[: HEADER_BYTES + 2 * RECORD_BYTES + 100]


def flipped(tape: bytes) -> bytes:
    at = HEADER_BYTES + RECORD_BYTES + 500
    return tape[:at] + bytes([tape[at] ^ 1]) + tape[at + 1 :]


def endless(tape: bytes) -> bytes:
    """A record that claims more data than there is."""
    return tape[: HEADER_BYTES + RECORD_BYTES] + b"\x01\0\0\0" + (1 << 20).to_bytes(8, "little") + b"x" * 64


REMAINDERS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "only the header": lambda tape: tape[:HEADER_BYTES],
    "half the header": lambda tape: tape[:20],
    "one record": lambda tape: tape[: HEADER_BYTES + RECORD_BYTES],
    "torn": torn,
    "flipped": flipped,
    "endless": endless,
}


@pytest.mark.parametrize(
    ("sampler", "names"),
    # Reading a tape is the same for every sampler; what is kept of two evaluations in a step is not.
    [("euler_a", tuple(REMAINDERS)), ("dpm++2s_a", ("one record", "torn"))],
)
def test_any_remainder_of_a_tape_continues_to_the_same_latent(
    tmp_path: Path, synthetic_models: Callable[[str], Path], sampler: str, names: tuple[str, ...]
) -> None:
    arguments = {
        "files": tiny_files(synthetic_models("sd1-tiny")),
        "request": {**SMALL, "sampler": sampler},
    }
    whole = tmp_path / "whole.tape"
    with EngineProcess(SAMPLE, **arguments, tapes=["", str(whole), str(whole)]) as engine:
        without, recorded, replayed = engine.only()["samples"]
    assert without == recorded == replayed == [without[0], ""]

    tape = whole.read_bytes()
    assert (len(tape) - HEADER_BYTES) % RECORD_BYTES == 0
    paths = [tmp_path / f"{name}.tape" for name in names]
    for name, path in zip(names, paths, strict=True):
        path.write_bytes(REMAINDERS[name](tape))
    with EngineProcess(SAMPLE, **arguments, tapes=[str(path) for path in paths]) as engine:
        samples = engine.only()["samples"]
    assert dict(zip(names, samples, strict=True)) == dict.fromkeys(names, without)
    assert [path.read_bytes() == tape for path in paths] == [True] * len(paths)


def test_a_tape_that_cannot_be_kept_costs_no_image(
    tmp_path: Path, synthetic_models: Callable[[str], Path]
) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear friend, this is not a tape at all, nor has it ever been one.")
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments = {"files": tiny_files(synthetic_models("sd1-tiny")), "request": SMALL}
    with EngineProcess(SAMPLE, **arguments, tapes=["", str(letter), str(folder)]) as engine:
        without, *others = engine.only()["samples"]
    assert others == [
        [without[0], "it is another file, which is left alone"],
        [without[0], "Is a directory"],
    ]
    assert letter.read_text() == "Dear friend, this is not a tape at all, nor has it ever been one."


def test_a_tape_that_meets_a_full_disk_keeps_its_whole_records(
    tmp_path: Path, synthetic_models: Callable[[str], Path]
) -> None:
    tape = tmp_path / "tape"
    arguments = {"files": tiny_files(synthetic_models("sd1-tiny")), "request": SMALL, "tapes": [str(tape)]}
    with EngineProcess(SAMPLE, **arguments, limit=HEADER_BYTES + 2 * RECORD_BYTES + 100) as engine:
        ((latent, error),) = engine.only()["samples"]
    assert error == "File too large"
    assert tape.stat().st_size == HEADER_BYTES + 2 * RECORD_BYTES
    with EngineProcess(SAMPLE, **arguments) as engine:
        assert engine.only()["samples"] == [[latent, ""]]


def test_no_image_goes_on_from_the_tape_of_another(
    tmp_path: Path, synthetic_models: Callable[[str], Path]
) -> None:
    tape = tmp_path / "tape"
    files = tiny_files(synthetic_models("sd1-tiny"))
    others = {**SMALL, "seed": 8}
    latents = []
    for request, owner in ((SMALL, "a"), (others, "b"), (others, "b")):
        with EngineProcess(SAMPLE, files=files, request=request, owner=owner, tapes=[str(tape)]) as engine:
            latents.append(engine.only()["samples"][0])
    with EngineProcess(SAMPLE, files=files, request=others, tapes=[""]) as engine:
        assert [*engine.only()["samples"]] == [latents[1]] == [latents[2]]
    assert latents[0] != latents[1]
