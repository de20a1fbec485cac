"""`tidegate image` beside a running server: one authority per card, and the same picture from either."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from server_process import MAIN, Running
from tidegate.cli import address
from tidegate.cli.handover import authority_over
from tidegate.cli.main import run
from tidegate.core.faults import ClientError
from tidegate.runtime.cards.device import parse_device
from tidegate.runtime.lock import card_holders, card_lock
from tidegate.runtime.premises import state_lock
from tidegate.runtime.site import site_for
from tidegate.wire.messages import DeviceFacts, Surveyed

IMAGE = ["image", "a lighthouse", "--size", "64x64", "--steps", "2", "--seed", "7", "--json"]


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose settings name a state folder of their own."""
    for name in ("TIDEGATE_SERVER", "TIDEGATE_KEY", "TIDEGATE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TIDEGATE_STATE", str(tmp_path / "jobs"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TIDEGATE_CONFIG", str(tmp_path / "tidegate.toml"))
    return tmp_path / "tidegate.toml"


@pytest.fixture
def at_home(server: Running, user: Path) -> Running:
    """The running server is this user's."""
    user.write_text(f'[paths]\nstate = "{server.state}"\n', encoding="utf-8")
    return server


def made(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The report of a run that must succeed."""
    code = run(arguments)
    said = capsys.readouterr()
    assert code == 0, said.err
    report: dict[str, object] = json.loads(said.out)
    return report


@pytest.mark.slow
def test_the_server_makes_the_picture_that_a_run_alone_makes(
    at_home: Running, sd1_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handed = made([*IMAGE, "-o", str(tmp_path / "handed.png")], capsys)
    # The report is whatever JSON held.
    (job,) = handed["server"]["jobs"]  # type: ignore[index]
    assert handed["server"] == {"url": at_home.url, "pid": at_home.pid, "jobs": [job]}
    assert at_home.ended(job)["phase"] == "done"
    alone = ["--alone", "--model", str(sd1_tiny), "--device", "virtual:3GiB", "--threads", "2"]
    lonely = made([*IMAGE, *alone, "-o", str(tmp_path / "alone.png")], capsys)
    assert lonely["server"] is None
    assert lonely["pixels_sha256"] == handed["pixels_sha256"]
    with Image.open(tmp_path / "handed.png") as one, Image.open(tmp_path / "alone.png") as other:
        assert one.tobytes() == other.tobytes()


def test_a_batch_from_a_picture_is_handed_over(
    at_home: Running, sd1_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "init.png"
    Image.new("RGB", (80, 64), (10, 60, 200)).save(picture)
    options = [
        "--init",
        str(picture),
        "--batch",
        "2",
        "--model",
        str(sd1_tiny),
        "-o",
        str(tmp_path / "x.png"),
    ]
    report = made([*IMAGE, *options], capsys)
    # The report is whatever JSON held.
    assert [image["seed"] for image in report["images"]] == [7, 8]  # type: ignore[attr-defined,index]
    assert (tmp_path / "x-1.png").is_file() and (tmp_path / "x-2.png").is_file()
    # The report is whatever JSON held.
    assert report["server"]["pid"] == at_home.pid  # type: ignore[index]


@pytest.mark.slow
def test_a_model_that_the_server_does_not_have_is_made_beside_it(
    at_home: Running, sd1_tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other-taesd.safetensors"
    shutil.copyfile(sd1_tiny.with_name("taesd.safetensors"), other)
    with other.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    options = ["--model", str(sd1_tiny), "--taesd", str(other), "--device", "virtual:3GiB", "--threads", "1"]
    report = made([*IMAGE, *options, "-o", str(tmp_path / "x.png")], capsys)
    assert report["server"] is None


def test_a_refusal_of_the_server_is_one_line(
    at_home: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*IMAGE, "--sampler", "eulr", "-o", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert "There is no sampler 'eulr'. Did you mean euler?" in said


def test_ctrl_c_cancels_the_job_at_the_server(at_home: Running, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, *IMAGE, "--steps", "900", "-o", str(tmp_path / "x.png")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("sampling"):
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "not wanted any more" in said
    (job,) = [job["id"] for job in at_home.client.get("/api/jobs?count_max=1").json()["jobs"]]
    assert at_home.ended(job)["phase"] == "cancelled"


def test_a_server_that_is_gone_is_none(user: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    user.write_text(f'[paths]\nstate = "{state}"\n', encoding="utf-8")
    here = address.Address(url="http://127.0.0.1:1", pid=os.getpid(), device="cpu", engine_name="CPU")
    with address.left(state, here):
        assert authority_over(parse_device("auto")) is None, "an address alone is a dead server's"
        lock = state_lock(state)
        for device, is_its_own in (("auto", True), ("cpu", True), ("cuda:0", False), ("virtual:3GiB", False)):
            assert (authority_over(parse_device(device)) is not None) is is_its_own, device
        lock.release()
        assert authority_over(parse_device("auto")) is None


def test_a_card_has_one_authority_and_its_lock_leads_to_the_server(user: Path, tmp_path: Path) -> None:
    gpu = DeviceFacts(name="CUDA0", description="a card", type="gpu", total_bytes=1 << 34, free_bytes=1 << 34)
    state = tmp_path / "elsewhere"
    state.mkdir()
    here = address.Address(url="http://127.0.0.1:1", pid=os.getpid(), device="auto", engine_name="CUDA0")
    card, home = card_lock("CUDA0", state=state), state_lock(state)
    with address.left(state, here):
        for device in ("auto", "cuda:0"):
            with pytest.raises(ClientError, match=f"CUDA0 is in use by process {os.getpid()}"):
                site_for(parse_device(device), lambda _: Surveyed(serial=0, devices=(gpu,)))
            found = authority_over(parse_device(device))
            assert found is not None and found.is_real and found.state == state
        assert authority_over(parse_device("cuda:1")) is None
    card.release()
    home.release()
    site = site_for(parse_device("cuda:0"), lambda _: Surveyed(serial=0, devices=(gpu,)))
    assert [(name, holder.pid, holder.state) for name, holder in card_holders()] == [
        ("CUDA0", os.getpid(), None)
    ]
    site.close()
    assert not list(card_holders())
