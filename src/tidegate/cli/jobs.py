"""`tidegate jobs`: the server's jobs, one job with its story, and cancelling one.

Owns the table and the page of one job. What is shown comes from `/api/jobs`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any  # Any: what a server answers is JSON of any shape

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.caller import Caller, ServerUrl
from tidegate.cli.overrides import AsJson, ConfigFile, StateFolder
from tidegate.core.faults import ClientError
from tidegate.core.quantity import time_text


def jobs(
    job: Annotated[str, typer.Argument(help="One job, by its id.", show_default=False)] = "",
    *,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel this job.")] = False,
    count_max: Annotated[int, typer.Option("--count", min=1, max=1_000, help="How many to list.")] = 20,
    server: ServerUrl = "",
    config: ConfigFile = "",
    state: StateFolder = "",
    as_json: AsJson = False,
) -> None:
    """List the server's jobs, show one with its story, or cancel it."""
    if cancel and not job:
        raise ClientError("No job was named.", remedy="Write: tidegate jobs ID --cancel", code="no_job")
    with Caller.of(server, config=config, state=state) as caller:
        if job:
            shown = _told(caller, job, does_cancel=cancel)
        else:
            shown = caller.get("/api/jobs", count_max=count_max)
    if as_json:
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    console = Console()
    if job:
        _page(console, shown)
    else:
        console.print(_table(shown["jobs"]) if shown["jobs"] else "There are no jobs.", highlight=False)


def _told(caller: Caller, job: str, *, does_cancel: bool) -> dict[str, Any]:  # Any: see the import
    """One job with its story, cancelled first where that is wanted."""
    try:
        shown = caller.post(f"/api/jobs/{job}/cancel") if does_cancel else caller.get(f"/api/jobs/{job}")
    except ClientError as fault:
        if fault.code != "unknown_job":
            raise
        # The server's remedy is a route; whoever types commands needs the command.
        raise ClientError(fault.message, remedy="List them with: tidegate jobs", code=fault.code) from fault
    story: dict[str, Any] = caller.get(f"/api/jobs/{job}/story")
    return {**shown, "story": story["lines"]}


def state_text(job: dict[str, Any]) -> str:  # Any: see the import
    """Where a job stands, in few words: 'denoise 3/20', '2 of 4 done', 'done'."""
    images = job["images"]
    done_count = sum(1 for image in images if image["phase"] == "done")
    if job["phase"] == "done" or not images:
        return str(job["phase"])
    if done_count:
        return f"{done_count} of {len(images)} done"
    first = images[0]
    return f"{job['phase']} {first['step']}/{first['steps_count']}" if first["step"] else str(job["phase"])


def _table(listed: list[dict[str, Any]]) -> Table:  # Any: see the import
    table = Table("job", "state", "model", "size", "prompt", box=None, pad_edge=False)
    for one in listed:
        request = one["request"]
        table.add_row(
            one["id"],
            state_text(one),
            # What users typed is shown as it is, never as markup.
            Text(one["model"]),
            f"{request['width']}x{request['height']}",
            Text(request["prompt"].replace("\n", " "), overflow="ellipsis", no_wrap=True),
        )
    return table


def _page(console: Console, job: dict[str, Any]) -> None:  # Any: see the import
    request = job["request"]
    lines = [f"{job['id']}  {state_text(job)}", f"{job['model']}, {request['width']}x{request['height']}, "]
    lines[-1] += f"{request['steps']} steps: {request['prompt']}"
    if job["ended_at_ms"]:
        lines[0] += f" after {time_text(job['ended_at_ms'] - job['submitted_at_ms'])}"
    lines += [
        f"  seed {image['seed']}: {image['phase']} {image['image']}".rstrip() for image in job["images"]
    ]
    lines += [job["message"]] if job["message"] else []
    lines += ["", *job["story"]] if job["story"] else []
    for line in lines:
        console.print(Text(line), soft_wrap=True)
