"""`tidegate top`: who holds which memory, what runs and what waits, as a live table.

Owns the picture. It is drawn again when the server says that something happened, at most twice a second; the
figures come from `/api/vram`, `/api/jobs` and `/internal/health`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final  # Any: what a server answers is JSON of any shape

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tidegate.cli.caller import Caller, ServerUrl
from tidegate.cli.jobs import state_text
from tidegate.cli.overrides import ConfigFile, StateFolder
from tidegate.core.quantity import size_text, time_text

REDRAW_MIN_S: Final = 0.5
JOBS_SHOWN_MAX: Final = 10
BAR_WIDTH: Final = 24


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    server: ServerUrl = "",
    config: ConfigFile = "",
    state: StateFolder = "",
) -> None:
    """Show who holds memory, what runs and what waits, until Ctrl-C."""
    console = Console()
    with Caller.of(server, config=config, state=state) as caller:
        if once or not console.is_terminal:
            console.print(picture(caller))
            return
        with Live(picture(caller), console=console, auto_refresh=False, screen=True) as live:
            drawn_s = time.monotonic()
            # Every sample of the memory is an event, so the picture also moves when nothing else happens.
            for _ in caller.events("/api/events?kinds=vram,job,notice"):
                if time.monotonic() - drawn_s >= REDRAW_MIN_S:
                    live.update(picture(caller), refresh=True)
                    drawn_s = time.monotonic()


def picture(caller: Caller) -> RenderableType:
    """The server as it stands."""
    health, jobs = caller.get("/internal/health"), caller.get("/api/jobs", count_max=100)["jobs"]
    uptime = time_text(health["uptime_ms"])
    head = Text(f"tidegate {health['version']}  {health['status']}  {health['device']}  up {uptime}")
    problems = [Text(problem, style="yellow") for problem in health["problems"]]
    parts = (_pools(caller.get("/api/vram")["pools"]), _workers(health["workers"]), _jobs(jobs))
    return Group(head, *problems, *(line for part in parts for line in (Text(), part)))


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def _bar(used_bytes: int, total_bytes: int) -> str:
    filled = min(BAR_WIDTH, BAR_WIDTH * used_bytes // max(1, total_bytes))
    return "█" * filled + "░" * (BAR_WIDTH - filled)


def _pools(pools: list[dict[str, Any]]) -> Table:  # Any: see the import
    table = _table("memory", "", "predicted", "observed", "")
    for pool in pools:
        table.add_row(
            Text(pool["name"], style="bold"),
            _bar(pool["used_bytes"], pool["total_bytes"]),
            "",
            f"{size_text(pool['used_bytes'])} of {size_text(pool['total_bytes'])}",
            f"{size_text(pool['reserved_bytes'])} reserved" if pool["reserved_bytes"] else "",
        )
        for tenant in pool["tenants"]:
            observed_bytes = tenant["observed_bytes"]
            table.add_row(
                Text(f"  {tenant['name']}"),
                Text(", ".join(part["part"] for part in tenant["parts"])),
                size_text(tenant["predicted_bytes"]),
                size_text(observed_bytes) if observed_bytes >= 0 else "not seen",
                tenant["level"],
            )
    return table


def _workers(workers: list[dict[str, Any]]) -> Table:  # Any: see the import
    table = _table("worker", "state", "pid", "", "last error")
    for worker in workers:
        table.add_row(
            Text(worker["name"]),
            worker["state"],
            str(worker["pid"]),
            worker["job"],
            Text(worker["last_error"]),
        )
    return table


def _jobs(jobs: list[dict[str, Any]]) -> Table:  # Any: see the import
    open_jobs = [job for job in jobs if not job["is_ended"]]
    table = _table("job", "state", "model", "prompt")
    for job in (open_jobs or jobs)[:JOBS_SHOWN_MAX]:
        prompt = Text(job["request"]["prompt"].replace("\n", " "), overflow="ellipsis", no_wrap=True)
        table.add_row(job["id"], state_text(job), Text(job["model"]), prompt)
    return table
