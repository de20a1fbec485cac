"""Names and texts that no program likes: each is one line with a remedy, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.cli.main import EXIT_CLIENT, run

TABLE = {
    "half a character in the prompt": (["\ud800"], "The prompt is not valid text in UTF-8: \\ud800."),
    "and in the negative one": (["x", "--negative", "a\udce9"], "The negative prompt is not valid text"),
    "a path in another encoding": (["x", "-o", "caf\udce9.png"], "The path is not valid text"),
    "a model in another encoding": (["x", "--model", "caf\udce9"], "The path is not valid text"),
    "NUL in a path": (["x", "--init", "a\0b"], "The path has a NUL character in it."),
    "NUL in a model": (["x", "--model", "a\0b"], "The path has a NUL character in it."),
    "a long name": (["x", "-o", f"{'n' * 300}.png"], "The image cannot be written to "),
    "a long name of another kind": (
        ["x", "-o", f"{'n' * 300}.jpg"],
        f"{'n' * 300}.jpg is not the name of a PNG",
    ),
    "a long name for a picture": (["x", "--init", "n" * 300], "The picture "),
    "a long name for a model": (["x", "--model", "./" + "n" * 300], ""),
    "a long name for a component": (["x", "--vae", "n" * 5000, "--model", "no.safetensors"], ""),
    "nobody's home": (["x", "-o", "~nobody-of-that-name/x.png"], "The image cannot be written to "),
    "nobody's model": (["x", "--model", "~nobody-of-that-name/m.gguf"], ""),
    "a batch into the root": (
        ["x", "-o", "/", "--batch", "2"],
        "The image cannot be written to /: it is a folder.",
    ),
    "no strength": (["x", "--strength", "nan"], "--strength nan is out of range."),
}


@pytest.mark.parametrize(("typed", "begin"), TABLE.values(), ids=TABLE)
def test_odd_input_is_one_line(
    typed: list[str],
    begin: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_MODELS", str(tmp_path / "models"))
    assert run(["image", *typed]) == EXIT_CLIENT
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"tidegate: {begin}")


def test_a_folder_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["image", "x"]) == EXIT_CLIENT
    assert capfd.readouterr().err.startswith(
        "tidegate: The current folder is gone, so image.png leads nowhere."
    )
    monkeypatch.chdir(tmp_path)
