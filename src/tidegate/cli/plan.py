"""`tidegate plan`: what the server would do with an image now, and what a smaller model would change.

Owns how the answer is printed. The words in it are the planner's.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tidegate.cli import options
from tidegate.cli.caller import Caller, ServerUrl
from tidegate.cli.overrides import AsJson, ConfigFile, StateFolder
from tidegate.core.quantity import size_text, time_text


def plan(
    prompt: Annotated[
        str, typer.Argument(help="What to see; may be left out.", show_default=False)
    ] = "an image",
    *,
    model: options.Model = "",
    size: options.Size = "512x512",
    steps: options.Steps = 20,
    batch: options.Batch = 1,
    server: ServerUrl = "",
    config: ConfigFile = "",
    state: StateFolder = "",
    as_json: AsJson = False,
) -> None:
    """Ask the server what it would do with an image now, without doing it."""
    width, height = options.size_of(size)
    wish: dict[str, object] = {"prompt": prompt, "model": model, "width": width, "height": height}
    with Caller.of(server, config=config, state=state) as caller:
        told = caller.post("/api/plan", {**wish, "steps": steps, "count": batch})
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    head = f"about {time_text(told['cost_ms'])}" if told["is_possible"] else "not possible now"
    typer.echo(f"{told['model']}, {width}x{height}, {steps} steps: {head}")
    for stage in told["stages"]:
        needs = [f"{size_text(stage['card_bytes'])} on the card"] if stage["card_bytes"] else []
        needs += [f"{size_text(stage['ram_bytes'])} of RAM"] if stage["ram_bytes"] else []
        typer.echo(f"  {stage['stage']}: {' and '.join(needs)}, {time_text(stage['cost_ms'])}")
    for line in (*told["explanation"], *told["advice"]):
        typer.echo(line)
