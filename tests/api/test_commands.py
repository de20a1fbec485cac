"""The commands that ask a server, against a real one, and `doctor`, against this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from server_process import Running
from tidegate import __version__
from tidegate.cli import address
from tidegate.cli.main import run
from tidegate.cli.serving import bound, url_of
from tidegate.core.faults import ClientError
from tidegate.runtime import settings_file
from tidegate.runtime.checkup import Level, checkup
from tidegate.runtime.settings import ListenSettings, Settings


@pytest.fixture(autouse=True)
def no_settings_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("TIDEGATE_CONFIG", "TIDEGATE_SERVER", "TIDEGATE_KEY", "TIDEGATE_STATE", "TIDEGATE_MODELS"):
        monkeypatch.delenv(name, raising=False)


def test_no_command_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    said = capsys.readouterr()
    assert "\n  image " in said.out
    assert not said.err
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tidegate {__version__}\n"


def test_models_are_listed_and_loaded(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--server", server.url]) == 0
    assert "tiny  default" in capsys.readouterr().out
    assert run(["models", "tiny", "--load", "--json", "--server", server.url]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["files"]
    assert run(["models", "none", "--server", server.url]) == 2
    assert "There is no model 'none'. There are: tiny" in capsys.readouterr().err
    assert run(["models", "tiny", "--level", "hot", "--server", server.url]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["models", "--unload", "--server", server.url]) == 2
    assert "tidegate models" in capsys.readouterr().err


def test_a_missing_name_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["synth"]) == 2
    said = capsys.readouterr().err
    assert "sd1-tiny" in said
    assert said.count("\n") == 1


def test_a_job_is_listed_shown_and_cancelled(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    wish = {"prompt": "[bold]a lighthouse[/bold]", "steps": 900}
    job = server.client.post("/api/jobs", json=wish).json()["id"]
    assert run(["jobs", "--server", server.url]) == 0
    assert job in capsys.readouterr().out
    assert run(["jobs", job, "--server", server.url]) == 0
    assert "[bold]a lighthouse[/bold]" in capsys.readouterr().out
    assert run(["jobs", job, "--cancel", "--json", "--server", server.url]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == job
    assert server.ended(job)["phase"] == "cancelled"


def test_the_server_is_found_by_its_state_folder(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    found = address.found(server.state)
    assert found == address.Address(
        url=server.url, pid=server.pid, device="virtual:3GiB", engine_name="VCARD0"
    )
    assert run(["jobs", "--json", "--state", str(server.state)]) == 0
    assert "jobs" in json.loads(capsys.readouterr().out)


def test_a_refusal_of_the_server_is_one_line(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "none", "--server", server.url]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"tidegate: There is no job .*List them with: tidegate jobs\n", said), said


def test_a_plan_is_explained(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "a lighthouse", "--size", "64x64", "--steps", "2", "--server", server.url]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny, 64x64, 2 steps: about ")
    assert "decode runs on the card" in said


def test_top_shows_every_pool(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--once", "--server", server.url]) == 0
    said = capsys.readouterr().out
    assert "VCARD0" in said and "ram" in said and "3.00 GiB" in said


def test_a_replay_agrees_with_the_server(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "--state", str(server.state)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    told = re.fullmatch(r"replay: events=(\d+) effects=(\d+) snapshots=(\d+)/(\d+)", last)
    assert told and int(told[1]) > 0 and told[3] == told[4], last


def test_hangup_reads_the_settings_again(server: Running) -> None:
    """The server goes on, with what the file says now: the next plan has other steps."""
    text = server.config.read_text(encoding="utf-8")
    try:
        server.config.write_text(text.replace("steps = 2", "steps = 3"), encoding="utf-8")
        os.kill(server.pid, signal.SIGHUP)
        seen = 0
        for _ in range(100):  # each question is a round trip, and the signal is on its way
            job = server.client.post("/api/jobs", json={"prompt": "x"}).json()
            server.client.post(f"/api/jobs/{job['id']}/cancel")
            if (seen := job["request"]["steps"]) == 3:
                break
        assert seen == 3
    finally:
        server.config.write_text(text, encoding="utf-8")
        server.client.post("/api/reload")


def test_without_a_server_the_way_to_start_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers here
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert run(["jobs", "--server", url]) == 2
    assert "tidegate serve" in capsys.readouterr().err


def test_something_else_on_the_port_is_told_apart(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["jobs", "--server", f"{server.url}/v1"]) == 2
    assert "does not answer like tidegate" in capsys.readouterr().err


def test_a_taken_address_is_refused_before_anything_starts() -> None:
    with bound(ListenSettings(port=0)) as first:
        port = first.getsockname()[1]
        assert url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ClientError, match="address already in use"):
            bound(ListenSettings(port=port))


def test_an_address_that_others_reach_needs_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--host", "0.0.0.0"]) == 2
    assert "needs keys" in capsys.readouterr().err


def test_a_stale_or_torn_address_is_nobody(tmp_path: Path) -> None:
    assert address.found(tmp_path) is None
    (tmp_path / address.NAME).write_bytes(b'{"url": ')
    assert address.found(tmp_path) is None
    here = address.Address(url="http://127.0.0.1:1", pid=os.getpid())
    with address.left(tmp_path, here):
        assert address.found(tmp_path) == here
    assert address.found(tmp_path) is None


def test_doctor_looks_at_everything_and_says_what_to_do(sd1_tiny: Path, tmp_path: Path) -> None:
    options = settings_file.Overrides(models=str(sd1_tiny.parent), state=str(tmp_path / "state"))
    found = list(checkup(settings_file.load("", options)))
    assert {"system", "engines", "card", "RAM", "disk", "limits", "listen", "models"} <= {
        finding.topic for finding in found
    }
    assert all(finding.remedy for finding in found if finding.level is Level.BAD)
    (models,) = [finding for finding in found if finding.topic == "models"]
    assert "sd1-tiny" in models.text and models.level is Level.OK


def test_doctor_finds_what_stands_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.safetensors").write_bytes(b"<html>")
    (tmp_path / "state").mkdir(mode=0o755)
    options = ["--models", str(tmp_path / "models"), "--state", str(tmp_path / "state")]
    assert run(["doctor", *options]) == 3
    said = capsys.readouterr()
    assert "broken.safetensors cannot be used" in said.out
    assert "chmod 700" in said.out
    assert "in the way" in said.err


@pytest.mark.slow
def test_doctor_proves_that_a_killed_worker_loses_nothing(
    sd1_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEGATE_STATE", str(tmp_path / "jobs"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    options = ["--models", str(sd1_tiny.parent), "--device", "virtual:3GiB", "--json"]
    assert run(["doctor", "--prove", *options]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["holds"] and proof["was_calm"] and proof["killed_pid"]
    assert proof["undisturbed_sha256"] == proof["disturbed_sha256"]


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == Settings.model_json_schema()
