"""`tidegate doctor`: what helps or hinders tidegate on this machine, and what to do about it.

Owns how findings are printed and the exit code. The findings are `tidegate.runtime.checkup`'s; with
`--prove` a worker is killed in mid-image by `tidegate.runtime.proof`, and the hashes are shown.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tidegate.cli.overrides import AsJson, ConfigFile, DeviceName, ModelsFolder, StateFolder
from tidegate.core.faults import CapacityError, WorkerError
from tidegate.runtime import proof, settings_file
from tidegate.runtime.checkup import Finding, Level, checkup
from tidegate.runtime.settings import Settings

_MARKS = {Level.OK: ("ok  ", "green"), Level.NOTE: ("note", "yellow"), Level.BAD: ("bad ", "red")}


def doctor(
    *,
    prove: Annotated[
        bool, typer.Option("--prove", help="Kill our own worker in mid-image, and compare.")
    ] = False,
    config: ConfigFile = "",
    models: ModelsFolder = "",
    device: DeviceName = "",
    state: StateFolder = "",
    as_json: AsJson = False,
) -> None:
    """Look at driver, card, engines, memory, disk, limits and models, and say what to do."""
    overrides = settings_file.Overrides(models=models, device=device, state=state)
    settings = settings_file.load(config, overrides)
    console = Console(stderr=as_json)
    if prove:
        _prove(console, settings, as_json=as_json)
        return
    found = []
    for finding in checkup(settings):
        found.append(finding)
        _show(console, finding)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    bad_count = sum(1 for finding in found if finding.level is Level.BAD)
    if bad_count:
        what = "1 thing stands" if bad_count == 1 else f"{bad_count} things stand"
        raise CapacityError(f"{what} in the way.", remedy="What to do stands beside it.", code="unfit")


def _show(console: Console, finding: Finding) -> None:
    mark, style = _MARKS[finding.level]
    console.print(Text.assemble((mark, style), f"  {finding.topic:8} {finding.text}"), soft_wrap=True)
    if finding.remedy:
        console.print(Text(f"                → {finding.remedy}"), soft_wrap=True)


def _prove(console: Console, settings: Settings, *, as_json: bool) -> None:
    shown = proof.prove(settings, lambda line: console.print(Text(line), soft_wrap=True))
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(shown), "holds": shown.holds}, indent=2))
    console.print(f"undisturbed  {shown.undisturbed_sha256}", highlight=False)
    console.print(f"disturbed    {shown.disturbed_sha256}", highlight=False)
    if not shown.killed_pid:
        raise WorkerError("No worker could be killed, so nothing is proven.", code="not_proven")
    if not shown.was_calm:
        raise WorkerError("The undisturbed image was disturbed too.", remedy="Try again.", code="not_proven")
    if not shown.holds:
        raise WorkerError("The two images differ.", remedy="Please report this.", code="not_proven")
    console.print("Identical: the worker was killed and nothing was lost.")
