"""`tidegate replay`: what a server's core was told, what it decided, and that it decides the same again.

Owns how the steps are printed. The replay is `tidegate.runtime.replay`'s; a running server is not disturbed.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Final

import msgspec
import typer

from tidegate.cli.overrides import AsJson, ConfigFile, StateFolder
from tidegate.core.faults import Bug
from tidegate.runtime import settings_file
from tidegate.runtime.replay import Step, replayed

# Times before this are no Unix times but those of a simulated world.
_UNIX_MS_MIN: Final = 10**12
# Bytes and long lists of a message say little on a line.
_VALUE_MAX: Final = 60


def replay(
    *,
    subject: Annotated[str, typer.Option("--about", help="Only events and effects that name this.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the last line.")] = False,
    config: ConfigFile = "",
    state: StateFolder = "",
    as_json: AsJson = False,
) -> None:
    """Feed a server's journal to a fresh core, and show what it decided and whether it agrees."""
    folder = settings_file.state_folder_of(settings_file.load(config, settings_file.Overrides(state=state)))
    events_count = effects_count = 0
    compared: list[bool] = []
    for step in replayed(folder):
        events_count += 1
        effects_count += len(step.effects)
        compared += [] if step.agrees is None else [step.agrees]
        text = _json(step) if as_json else _text(step)
        if not quiet and subject in text:
            typer.echo(text)
    agreed_count = sum(compared)
    typer.echo(
        f"replay: events={events_count} effects={effects_count} snapshots={agreed_count}/{len(compared)}",
        err=as_json,
    )
    if agreed_count < len(compared):
        raise Bug("The core did not decide the same again.", remedy="Please report this with the journal.")


def _text(step: Step) -> str:
    lines = [f"{step.number} {_time(step.at_ms)} {_words(step.event)}"]
    lines += [f"    -> {_words(effect)}" for effect in step.effects]
    if step.agrees is not None:
        lines.append("    = the snapshot agrees" if step.agrees else "    ! THE SNAPSHOT DIFFERS")
    return "\n".join(lines)


def _time(at_ms: int) -> str:
    if at_ms < _UNIX_MS_MIN:
        return f"{at_ms} ms"
    return datetime.fromtimestamp(at_ms / 1_000).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _words(told: object) -> str:
    assert dataclasses.is_dataclass(told)
    values = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
    shown = [
        f"{name}={str(value)[:_VALUE_MAX]}"
        for name, value in values.items()
        if name != "at_ms" and value not in ("", 0, None, ())
    ]
    return f"{type(told).__name__} {' '.join(shown)}".rstrip()


def _json(step: Step) -> str:
    told = {
        "number": step.number,
        "at_ms": step.at_ms,
        "event": {"kind": type(step.event).__name__, **_plain(step.event)},
        "effects": [{"kind": type(effect).__name__, **_plain(effect)} for effect in step.effects],
        "agrees": step.agrees,
    }
    return msgspec.json.encode(told).decode()


def _plain(told: object) -> dict[str, object]:
    found = msgspec.to_builtins(told, str_keys=True)
    assert isinstance(found, dict)
    return found
