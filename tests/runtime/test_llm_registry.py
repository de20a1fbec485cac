"""Language models: found by what is in their files, paired with projectors, or refused with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate.core.faults import ClientError
from tidegate.core.llm.level import Level
from tidegate.runtime.llm_registry import LlmRegistry, gathered_llms
from tidegate.runtime.settings import Settings
from tidegate.runtime.settings_file import Overrides, checked, load
from tidegate.runtime.settings_llm import LlmSettings
from tidegate.wire.llm_child import Evaluation


@pytest.fixture
def shelf(tmp_path: Path, synthetic_models: Callable[[str], Path]) -> Path:
    """A models folder with the tiny language model and its projector, under names that say little."""
    folder = tmp_path / "models"
    folder.mkdir()
    for file in synthetic_models("llama-tiny").glob("*.gguf"):
        os.link(file, folder / file.name) if same_disk(file, folder) else shutil.copy(file, folder)
    return folder


def same_disk(file: Path, folder: Path) -> bool:
    return file.stat().st_dev == folder.stat().st_dev


def found_in(shelf: Path, **tables: object) -> LlmRegistry:
    settings = Settings.model_validate({"paths": {"models": str(shelf)}, **tables})
    return gathered_llms(settings)


def cut(file: Path, *, by_bytes: int) -> None:
    """Shorten a copy of a file."""
    whole = file.read_bytes()
    file.unlink()  # It may be a link to the one that all tests share.
    file.write_bytes(whole[:-by_bytes])


def test_a_folder_is_the_registry(shelf: Path) -> None:
    found = found_in(shelf)
    assert not found.refused
    entry = found.find("")
    assert entry.name == found.default == "llama-tiny"
    assert entry.path.parent == shelf
    assert entry.mmproj == shelf / "llama-tiny-mmproj.gguf"
    assert (entry.architecture, entry.layers_count, entry.has_template) == ("llama", 5, True)
    assert entry.context_count == min(8_192, entry.context_trained_count)
    known = entry.as_core("VCARD0")
    assert (known.name, known.card, known.slots_count, known.keep) == ("llama-tiny", "VCARD0", 2, None)


def test_names_and_options_are_those_of_the_settings(shelf: Path) -> None:
    own = {
        "name": "talker", "file": "llama-tiny.gguf", "aliases": ["gpt-4o-mini"], "mmproj": "none",
        "context": 512, "slots": 3, "keep": "hot", "kv_type": "q8_0",
    }  # fmt: skip
    found = found_in(shelf, llms=[own], llm={"evaluation": "reproducible", "slots": 7})
    entry = found.find("GPT-4o-mini")
    assert (entry.name, entry.mmproj, entry.context_count) == ("talker", None, 512)
    assert (entry.options.slots, entry.options.evaluation) == (3, Evaluation.REPRODUCIBLE)
    assert entry.as_core("").keep is Level.HOT
    with pytest.raises(ClientError, match="There is no language model 'talkr'") as refused:
        found.find("talkr")
    assert refused.value.remedy.startswith("Did you mean talker?")


def test_what_decides_the_needs_changes_the_fingerprint(shelf: Path) -> None:
    def print_of(**own: object) -> str:
        table = {"name": "talker", "file": "llama-tiny.gguf", **own}
        return found_in(shelf, llms=[table]).find("").fingerprint

    assert print_of() == print_of(threads=3, keep="hot")
    others = [print_of(context=512), print_of(slots=1), print_of(kv_type="q8_0"), print_of(mmproj="none")]
    assert len({print_of(), *others}) == 5


@pytest.mark.parametrize("by_bytes", [200, 5_000_000])
@pytest.mark.parametrize("name", ["llama-tiny.gguf", "llama-tiny-mmproj.gguf"])
def test_a_file_that_was_cut_is_refused_by_name(shelf: Path, name: str, by_bytes: int) -> None:
    cut(shelf / name, by_bytes=min(by_bytes, (shelf / name).stat().st_size - 20_000))
    if name == "llama-tiny.gguf":
        # A scan says it once, with everything else that cannot be read; nothing is left to be served.
        assert not found_in(shelf).entries
        found = found_in(shelf, llms=[{"name": "talker", "file": "llama-tiny.gguf"}])
    else:
        assert found_in(shelf).find("").mmproj is None, "it is served without eyes"
        own = {"name": "talker", "file": "llama-tiny.gguf", "mmproj": "llama-tiny-mmproj.gguf"}
        found = found_in(shelf, llms=[own])
    ((refused, reason),) = found.refused
    assert refused == "talker"
    assert "cut short" in reason


def test_a_projector_of_another_width_is_refused(
    shelf: Path, synthetic_models: Callable[[str], Path]
) -> None:
    other = synthetic_models("qwen2vl-tiny") / "qwen2vl-tiny-mmproj.gguf"
    own = {"name": "talker", "file": "llama-tiny.gguf", "mmproj": str(other)}
    found = found_in(shelf, llms=[own])
    if found.refused:
        assert "makes embeddings of" in found.refused[0][1]
    else:
        # Both tiny models are of one width; then only the name could tell, and a named one is believed.
        assert found.find("").mmproj == other


def test_what_is_no_language_model_is_refused(shelf: Path) -> None:
    own = [
        {"name": "eye", "file": "llama-tiny-mmproj.gguf"},
        {"name": "none", "file": "nothing.gguf"},
        {"name": "swapped", "file": "llama-tiny.gguf", "mmproj": "llama-tiny.gguf"},
    ]
    refused = dict(found_in(shelf, llms=own).refused)
    assert "not a language model" in refused["eye"]
    assert "no model named" in refused["none"]
    assert "was given as mmproj" in refused["swapped"]


def test_a_template_is_read_from_its_file(shelf: Path) -> None:
    (shelf / "plain.jinja").write_text("{{ messages }}", encoding="utf-8")
    (shelf / "bad.jinja").write_bytes(b"\xff\xfe")
    own = [
        {"name": name, "file": "llama-tiny.gguf", "template": f"{name}.jinja"}
        for name in ("plain", "bad", "missing")
    ]
    found = found_in(shelf, llms=own)
    assert [entry.template for entry in found.entries.values()] == ["{{ messages }}"]
    refused = dict(found.refused)
    assert "is not UTF-8" in refused["bad"]
    assert "No such file" in refused["missing"]


def test_an_evaluation_on_the_command_line_holds_for_all(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[[llms]]\nname = "a"\nfile = "a.gguf"\nevaluation = "throughput"\n', encoding="utf-8")
    settings = load(str(path), Overrides(evaluation="reproducible"))
    assert settings.llm.evaluation is settings.llms[0].evaluation is Evaluation.REPRODUCIBLE


def test_two_models_of_one_name_are_a_mistake_even_of_two_kinds() -> None:
    tables = {"models": [{"name": "a", "model": "a"}], "llms": [{"name": "A", "file": "b"}]}
    with pytest.raises(ClientError, match="two models are called"):
        checked(tables, source="a test")


def test_another_backend_is_refused_by_name() -> None:
    assert LlmSettings(name="m", file="m.gguf").backend == "tidegate"
    with pytest.raises(ValueError, match="llama-server cannot compute for tidegate yet"):
        LlmSettings(name="m", file="m.gguf", backend="llama-server")
    with pytest.raises(ValueError, match="only the backend"):
        LlmSettings(name="m", file="m.gguf", backend="ollama")
