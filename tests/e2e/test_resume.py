"""Work survives the program that did it: the same order in a fresh process goes on from what was saved."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import relay_process
from relay_runs import Recorder, changed, order_for
from tidegate.cli.main import EXIT_INTERRUPTED
from tidegate.core.faults import ClientError
from tidegate.core.stage import Stage
from tidegate.runtime import oneshot
from tidegate.runtime.order import ImageOrder

STEPS = 4
PROGRAM = "import sys; from tidegate.cli.main import main; sys.exit(main())"
FROM_TAPE = "Sampling goes on from its tape: the steps on it are not computed again."


def start(model: Path, output: Path) -> subprocess.Popen[str]:
    """The talking program, with tests/ on its path."""
    tests = str(Path(relay_process.__file__).parent)
    path = os.pathsep.join([tests, *(entry for entry in sys.path if entry)])
    return subprocess.Popen(
        [sys.executable, relay_process.__file__, str(model), str(output), str(STEPS)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def killed_at(line: str, model: Path, output: Path) -> int:
    """Run the program until it says `line`, kill it, and return its worker's pid once that is gone too."""
    with start(model, output) as program:
        assert program.stdout is not None
        worker = 0
        for said in program.stdout:
            if said.startswith("worker "):
                worker = int(said.split()[1])
            if said.strip() == line:
                break
        gone = os.pidfd_open(worker)
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
    try:
        assert select.select([gone], [], [], 10)[0], "the worker outlived the program that started it"
    finally:
        os.close(gone)
    return worker


@pytest.fixture
def four(order: ImageOrder) -> ImageOrder:
    """The order of the talking program."""
    return changed(order, steps=STEPS)


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pixels of the same order in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEGATE_STATE", str(folder / "state"))
        order = changed(order_for(tiny, folder / "out.png"), steps=STEPS)
        return oneshot.make(order, Recorder()).images[0].pixels_sha256


def test_a_killed_program_is_resumed_in_the_middle_of_sampling(four: ImageOrder, undisturbed: str) -> None:
    killed_at("denoise 2", Path(four.files["model"]), four.outputs[0])
    listener = Recorder()
    report = oneshot.make(replace(four, resumes=True), listener)
    assert FROM_TAPE in listener.notices
    assert [(str(record.stage), record.attempts) for record in report.stages] == [
        ("encode", 0), ("denoise", 1), ("decode", 1)
    ]  # fmt: skip
    assert report.images[0].pixels_sha256 == undisturbed


def test_a_program_killed_at_decode_is_finished_from_its_latent(
    four: ImageOrder, undisturbed: str, state: Path
) -> None:
    killed_at(f"denoise {STEPS}", Path(four.files["model"]), four.outputs[0])
    # Killed after the last step, the latent may or may not have been written; both must lead to the image.
    report = oneshot.make(replace(four, resumes=True), Recorder())
    assert report.images[0].pixels_sha256 == undisturbed
    assert not list(state.glob("jobs/*")), "a finished job leaves nothing behind"


def stop_at_decode(stage: Stage) -> None:
    """Ctrl-C, just before the pixels."""
    if stage is Stage.DECODE:
        raise KeyboardInterrupt


@pytest.fixture
def stopped(four: ImageOrder, state: Path) -> Path:
    """The folder of a job that was stopped with everything but the pixels saved."""
    with pytest.raises(oneshot.Interrupted) as told:
        oneshot.make(four, Recorder(on_stage=stop_at_decode))
    assert str(told.value) == "Stopped. Saved so far: encode and denoise. Go on with: tidegate image --resume"
    return state / "jobs" / four.key


def stages_run(listener: Recorder) -> list[str]:
    return [str(stage) for stage, _, _ in listener.stages]


def test_only_the_decode_is_left(four: ImageOrder, undisturbed: str, stopped: Path) -> None:
    listener = Recorder()
    report = oneshot.make(replace(four, resumes=True), listener)
    assert stages_run(listener) == ["decode"]
    assert report.images[0].pixels_sha256 == undisturbed


def test_without_resume_everything_is_made_again(four: ImageOrder, undisturbed: str, stopped: Path) -> None:
    listener = Recorder()
    assert oneshot.make(four, listener).images[0].pixels_sha256 == undisturbed
    assert stages_run(listener) == ["encode", "denoise", "decode"]


def test_a_damaged_latent_is_said_and_made_again(four: ImageOrder, undisturbed: str, stopped: Path) -> None:
    latent = stopped / "latent-7.safetensors"
    data = bytearray(latent.read_bytes())
    data[-1] ^= 1
    latent.write_bytes(data)
    listener = Recorder()
    report = oneshot.make(replace(four, resumes=True), listener)
    assert "Saved work cannot be used and is made again: latent-7.safetensors is not what was written." in (
        listener.notices
    )
    assert stages_run(listener) == ["denoise", "decode"]
    assert report.images[0].pixels_sha256 == undisturbed


def test_work_of_another_engine_build_is_not_used(four: ImageOrder, undisturbed: str, stopped: Path) -> None:
    journal = stopped / "job.json"
    told = json.loads(journal.read_text(encoding="utf-8"))
    told["engine_build"] = "yesterday"
    journal.write_text(json.dumps(told), encoding="utf-8")
    listener = Recorder()
    report = oneshot.make(replace(four, resumes=True), listener)
    assert "The saved work is of another engine build and is made again." in listener.notices
    assert stages_run(listener) == ["encode", "denoise", "decode"]
    assert report.images[0].pixels_sha256 == undisturbed


def test_ctrl_c_says_how_to_go_on_and_that_works(tiny: Path, tmp_path: Path, undisturbed: str) -> None:
    typed = ["image", "a lighthouse at dusk", "--model", str(tiny), "--size", "64x64", "--seed", "7"]
    typed += ["--steps", str(STEPS), "--threads", "2", "--device", "virtual:2GiB", "-o", "first.png"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *typed], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stderr is not None
        for said in program.stderr:
            if said == "sampling, on the card\n":
                break
        program.send_signal(signal.SIGINT)
        rest = program.stderr.read()
        assert program.wait() == EXIT_INTERRUPTED, rest
    assert "Go on with: tidegate image --resume" in rest.splitlines()[-1]
    assert not (tmp_path / "first.png").exists()
    resumed = subprocess.run(
        [sys.executable, "-c", PROGRAM, "image", "--resume", "--json", "-o", "second.png"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(resumed.stdout)
    assert report["pixels_sha256"] == undisturbed
    assert [(stage["stage"], stage["resumed"]) for stage in report["stages"]] == [
        ("encode", True), ("denoise", False), ("decode", False)
    ]  # fmt: skip
    with Image.open(tmp_path / "second.png") as picture:
        assert picture.text["parameters"].startswith("a lighthouse at dusk\nSteps: 4, Sampler: Euler a")


def test_a_full_disk_costs_the_safety_net_but_not_the_image(
    tiny: Path, tmp_path: Path, undisturbed: str
) -> None:
    # Embeddings of 462 KiB are refused, the image and the virtual card's ledger are small enough.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    typed = [
        "image",
        "a lighthouse at dusk",
        "--model",
        str(tiny),
        "--size",
        "64x64",
        "--seed",
        "7",
        "--json",
    ]
    typed += ["--steps", str(STEPS), "--threads", "2", "--device", "cpu", "-o", "out.png"]
    ended = subprocess.run(
        [sys.executable, "-c", limit + PROGRAM, *typed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(ended.stdout)
    assert report["pixels_sha256"] == undisturbed
    assert any(
        text.startswith("Finished work cannot be saved in") and "file too large" in text
        for text in report["notices"]
    ), report["notices"]


def test_without_any_place_to_save_an_image_is_made(
    four: ImageOrder, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_STATE", "/proc/nowhere")
    listener = Recorder()
    assert oneshot.make(four, listener).images[0].pixels_sha256 == undisturbed
    assert listener.notices == [
        "Finished work cannot be saved: no such file or directory. A crash would cost it."
    ]


def test_a_place_that_vanishes_costs_no_work(four: ImageOrder, undisturbed: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def vanish(stage: Stage) -> None:
        if stage is Stage.DECODE:
            place.rmdir()

    with pytest.raises(ClientError) as told:
        oneshot.make(replace(four, outputs=(place / "out.png",)), Recorder(on_stage=vanish))
    assert str(told.value) == (
        f"The image cannot be written to {place}/out.png: no such file or directory. "
        "Choose another place with -o. What was finished is saved: the same command with --resume goes on "
        "from there."
    )
    listener = Recorder()
    report = oneshot.make(replace(four, resumes=True), listener)
    assert stages_run(listener) == ["decode"] and report.images[0].pixels_sha256 == undisturbed
