"""The settings file: finding it, reading it, and what the command line says instead.

Owns the places where it is looked for, the defaults that depend on the user's folders, and the one line a
user gets for a mistake in it. What may stand in it is the neighbour `settings`. Without a file all defaults
hold, and the models folder is the registry.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tidegate.core.faults import ClientError
from tidegate.runtime.checkpoints import STATE_VARIABLE
from tidegate.runtime.model_choice import models_folder
from tidegate.runtime.settings import Settings

CONFIG_VARIABLE: Final = "TIDEGATE_CONFIG"
# A file of settings is written by hand; a larger one is a mistaken name.
FILE_BYTES_MAX: Final = 1 << 20
MISTAKES_SHOWN_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line says; empty means what the file says."""

    models: str = ""
    state: str = ""
    device: str = ""
    host: str = ""
    evaluation: str = ""
    port: int | None = None


def load(explicit: str = "", overrides: Overrides | None = None) -> Settings:
    """The settings from the file named, else from the user's file, else the defaults. Raises ClientError."""
    path = found(explicit)
    table = parsed(_text(path), source=str(path)) if path else {}
    return checked(_overridden(table, overrides or Overrides()), source=str(path) if path else "the options")


def found(explicit: str = "") -> Path | None:
    """The file to read: the one named, $TIDEGATE_CONFIG, or the user's own if there is one."""
    if named := explicit or os.environ.get(CONFIG_VARIABLE, ""):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or _in_home(".config")
    if base is None:
        return None
    usual = Path(base) / "tidegate" / "tidegate.toml"
    return usual if usual.is_file() else None


def parsed(text: str, *, source: str) -> dict[str, object]:
    """The tables of a TOML text. Raises ClientError with line and column."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad(source, str(error)) from error
    except RecursionError as error:  # thousands of nested brackets
        raise _bad(source, "it is nested too deeply") from error


def checked(table: Mapping[str, object], *, source: str) -> Settings:
    """Settings out of tables. Raises ClientError that names the place of each mistake, and no value."""
    try:
        return Settings.model_validate(table)
    except ValidationError as error:
        told = []
        # Values stay out of it: one of them may be a key.
        for mistake in error.errors(include_url=False, include_input=False, include_context=False):
            place = ".".join(str(part) for part in mistake["loc"])
            words = mistake["msg"].removeprefix("Value error, ")
            told.append(f"{place}: {'there is no such setting' if _is_unknown(mistake['type']) else words}")
        more = f", and {len(told) - MISTAKES_SHOWN_MAX} more" if len(told) > MISTAKES_SHOWN_MAX else ""
        raise _bad(source, "; ".join(told[:MISTAKES_SHOWN_MAX]) + more) from error


def models_folder_of(settings: Settings) -> Path:
    """Where model files lie."""
    return settings.paths.models or models_folder()


def state_folder_of(settings: Settings) -> Path:
    """Where the server keeps journal, checkpoints and images. Nothing is made here."""
    if settings.paths.state:
        return settings.paths.state
    if named := os.environ.get(STATE_VARIABLE):
        return Path(named).expanduser() / "server"
    base = os.environ.get("XDG_STATE_HOME") or _in_home(".local/state")
    if base is None:
        raise ClientError(
            "There is no home folder, so the server has no place for its state.",
            remedy="Name one with --state, or with `state` under [paths] of the settings.",
            code="no_home",
        )
    return Path(base) / "tidegate" / "server"


def _in_home(name: str) -> Path | None:
    try:
        return Path.home() / name
    except RuntimeError:  # no $HOME, and no entry among the users either
        return None


def _overridden(table: dict[str, object], overrides: Overrides) -> dict[str, object]:
    said: dict[str, dict[str, object]] = {
        "paths": {"models": overrides.models, "state": overrides.state},
        "listen": {"host": overrides.host, "port": overrides.port},
        "llm": {"evaluation": overrides.evaluation},
    }
    whole = dict(table)
    for name, values in said.items():
        given = {key: value for key, value in values.items() if value not in ("", None)}
        before = whole.get(name, {})
        if given and isinstance(before, dict):
            whole[name] = {**before, **given}
    if overrides.models:
        # Models of the file may name files of another folder; a folder on the command line means just that.
        whole["models"] = whole["llms"] = []
    llms = whole.get("llms")
    if overrides.evaluation and isinstance(llms, list):
        # Said on the command line, it holds for all, whatever single tables say.
        whole["llms"] = [
            {**llm, "evaluation": overrides.evaluation} if isinstance(llm, dict) else llm for llm in llms
        ]
    if overrides.device:
        cards = whole.get("cards")
        first = cards[0] if isinstance(cards, list) and cards and isinstance(cards[0], dict) else {}
        whole["cards"] = [{**first, "device": overrides.device}]
    return whole


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise _bad(str(path), f"{why[:1].lower()}{why[1:]}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise _bad(str(path), f"it is larger than {FILE_BYTES_MAX} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(str(path), "it is not UTF-8") from error


def _is_unknown(kind: str) -> bool:
    return kind in ("extra_forbidden", "unexpected_keyword_argument")


def _bad(source: str, why: str) -> ClientError:
    return ClientError(
        f"The settings in {source} cannot be used: {why.rstrip('.')}.",
        remedy="Compare with docs/reference/tidegate.example.toml.",
        code="bad_settings",
    )
