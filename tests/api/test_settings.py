"""Settings: the example is valid and says the defaults, mistakes are named, options win over the file."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from tidegate.core.faults import ClientError
from tidegate.core.planner.question import YIELD_ORDER
from tidegate.core.policy import Policy
from tidegate.core.quantity import MIB
from tidegate.runtime import settings_file
from tidegate.runtime.settings import Settings
from tidegate.runtime.settings_file import Overrides

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
EXAMPLE = REFERENCE / "tidegate.example.toml"


def test_the_example_is_valid() -> None:
    found = settings_file.load(str(EXAMPLE))
    assert [model.name for model in found.models] == ["photo", "large"]
    assert [model.name for model in found.llms] == ["assistant", "other"]


def test_the_example_says_the_defaults() -> None:
    """But for the models and folders, which it calls examples."""
    assert (
        settings_file.load(str(EXAMPLE)).model_copy(
            update={"models": (), "llms": (), "paths": Settings().paths}
        )
        == Settings()
    )


def test_the_example_shows_every_setting_but_those_of_the_policy() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    schema = Settings.model_json_schema()
    tables = [table for name, table in schema["$defs"].items() if name not in ("Policy", "ModelSettings")]
    shown = set(re.findall(r"^(?:# )?(\w+) =", text, flags=re.MULTILINE))
    missing = {name for table in tables for name in table.get("properties", {})} - shown
    assert not missing


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("TIDEGATE_CONFIG", raising=False)
    assert settings_file.load() == Settings()


def test_the_policy_is_the_one_of_the_core() -> None:
    found = settings_file.checked({"policy": {"jobs_max": 3}}, source="a test")
    assert found.policy == dataclasses.replace(Policy(), jobs_max=3)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        '[listen]\nport = 1\nallowed_hosts = ["a"]\n[[cards]]\ndevice = "cpu"\nheadroom_bytes = "1MiB"\n'
        '[[models]]\nname = "a"\nmodel = "a.gguf"\n',
        encoding="utf-8",
    )
    options = Overrides(models="/m", state="/s", device="virtual:3GiB", host="127.0.0.2", port=0)
    found = settings_file.load(str(path), options)
    assert (found.listen.host, found.listen.port, found.listen.allowed_hosts) == ("127.0.0.2", 0, ("a",))
    assert (found.cards[0].device, found.cards[0].headroom_bytes) == ("virtual:3GiB", MIB)
    assert (found.paths.models, found.paths.state, found.models) == (Path("/m"), Path("/s"), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[listen\n", "line 1"),
        ("x = " + "[" * 5000, "nested"),
        ("[listen]\nprot = 1\n", "listen.prot: there is no such setting"),
        ("[policy]\njobs = 1\n", "policy: there is no 'jobs'"),
        ("[policy]\njobs_max = -1\n", "jobs_max is -1"),
        ('[policy]\nyield_order = ["tiles"]\n', "yield_order names each of"),
        ('[listen]\nhost = "0.0.0.0"\n', "needs keys"),
        ('[listen]\nhost = "studio"\n', "needs keys"),
        ('[listen]\nallowed_origins = ["*"]\n', "no origin"),
        ('[[cards]]\ndevice = "cuda:x"\n', "cards.0.device"),
        ('[ram]\nlimit_bytes = "3 lumps"\n', "ram.limit_bytes"),
        ('[[models]]\nname = "../a"\nmodel = "a"\n', "models.0.name"),
        ('[[models]]\nname = "a"\n', "either model or diffusion_model"),
        ('[[models]]\nname = "a"\nmodel = "a"\n[[models]]\nname = "A"\nmodel = "a"\n', "two models"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ClientError, match="cannot be used") as caught:
        settings_file.load(str(path))
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_a_refused_key_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        settings_file.checked({"listen": {"keys": ["hunter2"]}}, source="a test")
    assert "hunter2" not in str(caught.value)
    kept = settings_file.checked({"listen": {"keys": ["hunter2hunter2hunter2"]}}, source="a test")
    assert "hunter2" not in repr(kept)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    with pytest.raises(ClientError, match="no such file"):
        settings_file.load(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClientError, match="UTF-8"):
        settings_file.load(str(path))
    path.write_bytes(b" " * (settings_file.FILE_BYTES_MAX + 1))
    with pytest.raises(ClientError, match="larger"):
        settings_file.load(str(path))


def test_the_yield_order_may_be_another() -> None:
    turned = [str(name) for name in reversed(YIELD_ORDER)]
    found = settings_file.checked({"policy": {"yield_order": turned}}, source="a test")
    assert found.policy.yield_order == tuple(reversed(YIELD_ORDER))


def test_the_example_has_no_tables_of_its_own_invention() -> None:
    assert set(tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == set(Settings.model_fields)
