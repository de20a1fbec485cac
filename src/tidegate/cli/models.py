"""`tidegate models`: the server's models, and what one of them shall do.

Owns the table. What is shown comes from `/api/models`; a level is asked for at `/api/models/{id}/level`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final  # Any: what a server answers is JSON of any shape
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.caller import Caller, ServerUrl
from tidegate.cli.overrides import AsJson, ConfigFile, StateFolder
from tidegate.core.faults import ClientError
from tidegate.core.quantity import size_text

# A language model reaches its level when the card has room; the server gives up by itself before.
LEVEL_MAX_S: Final = 600.0


def models(
    model: Annotated[str, typer.Argument(help="One model, by its name.", show_default=False)] = "",
    *,
    load: Annotated[bool, typer.Option("--load", help="Read an image model into the page cache.")] = False,
    unload: Annotated[bool, typer.Option("--unload", help="Give back what an image model holds.")] = False,
    level: Annotated[
        str,
        typer.Option(
            help="Where a language model rests: hot, warm, cold, partial; auto leaves it to the planner."
        ),
    ] = "",
    layers: Annotated[int, typer.Option(min=0, help="Layers on the card, for partial.")] = 0,
    server: ServerUrl = "",
    config: ConfigFile = "",
    state: StateFolder = "",
    as_json: AsJson = False,
) -> None:
    """List the server's models and what they hold, or load, unload or level one."""
    wishes = [wish for wish in ("load" if load else "", "unload" if unload else "", level) if wish]
    if len(wishes) > 1:
        raise ClientError("--load, --unload and --level exclude each other.", remedy="Give one of them.")
    if wishes and not model:
        raise ClientError("No model was named.", remedy="List them with: tidegate models", code="no_model")
    with Caller.of(server, config=config, state=state) as caller:
        if level:
            wish = {"level": level, **({"layers": layers} if layers else {})}
            caller.put(f"/api/models/{quote(model, safe='')}/level", wish, answer_max_s=LEVEL_MAX_S)
        elif wishes:
            caller.post(f"/api/models/{quote(model, safe='')}/{wishes[0]}")
        listed = _listed(caller, model)
    if as_json:
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
    else:
        Console().print(_table(listed) if listed else "There are no models.", highlight=False)


def _listed(caller: Caller, model: str) -> list[dict[str, Any]]:  # Any: see the import
    listed: list[dict[str, Any]] = caller.get("/api/models")["models"]
    if not model:
        return listed
    found = [one for one in listed if model in (one["name"], *one["aliases"])]
    if not found:
        names = ", ".join(one["name"] for one in listed) or "none"
        raise ClientError(
            f"There is no model {model!r}.", remedy=f"There are: {names}.", code="model_not_found"
        )
    return found


def _table(listed: list[dict[str, Any]]) -> Table:  # Any: see the import
    table = Table("model", "for", "family", "now", "files", box=None, pad_edge=False)
    for one in listed:
        name = Text(one["name"])
        if one["is_default"]:
            name.append("  default", style="dim")
        now = f"refused: {one['refused']}" if one["refused"] else now_text(one)
        use = {"llm": "chats"}.get(one["kind"], "images")
        table.add_row(name, use, one["family"], Text(now), Text(", ".join(one["files"].values())))
    return table


def now_text(model: dict[str, Any]) -> str:  # Any: see the import
    """What a model does with memory at this moment: 'partial, 6 of 32 layers on the card', '890 MiB held'."""
    told = model["language"]
    if told is None:
        held_bytes = sum(part["card_bytes"] + part["ram_bytes"] for part in model["loaded"])
        return f"{size_text(held_bytes)} held" if held_bytes else "not loaded"
    words = [str(told["tide"])]
    if told["tide"] == "partial":
        words.append(f"{told['layers_on_card_count']} of {told['layers_count']} layers on the card")
    if told["wish"]:
        words.append(f"held at {told['wish']}")
    busy_count = told["running_count"] + told["waiting_count"]
    if busy_count:
        words.append(f"{busy_count} in flight")
    return ", ".join(words)
