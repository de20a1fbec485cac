"""`tidegate run --vram 4GiB -- COMMAND`: another program, with a lease of card memory for as long as it runs.

Owns the command. The lease is `lease`, the program `errand`; both end together, whichever way it comes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from tidegate.cli import errand
from tidegate.cli.caller import Caller, ServerUrl
from tidegate.cli.lease import RENEW_S, Lease
from tidegate.cli.overrides import ConfigFile, StateFolder
from tidegate.runtime.cards.sizes import parse_size

PURPOSE_MAX: Final = 200
WAIT_S: Final = 60
WAIT_MAX_S: Final = 86_400


def run(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.", show_default=False)],
    *,
    vram: Annotated[str, typer.Option("--vram", help="Card memory it needs, such as 4GiB.")],
    wait_s: Annotated[
        int, typer.Option("--wait", min=0, max=WAIT_MAX_S, help="Seconds to wait for it at most.")
    ] = WAIT_S,
    purpose: Annotated[str, typer.Option("--purpose", help="Shown to people; else the program's name.")] = "",
    card: Annotated[str, typer.Option("--card", help="Which card, by name; else the first.")] = "",
    server: ServerUrl = "",
    config: ConfigFile = "",
    state: StateFolder = "",
) -> None:
    """Run another program with card memory of its own.

    Idle models make room for it; it starts when the memory is there, and gives it back when it ends. Signals
    are handed on to it, and its exit code is this command's.
    """
    amount_bytes = parse_size(vram)
    errand.check_program(command)
    what = (purpose or Path(command[0]).name)[:PURPOSE_MAX]
    with errand.Ears() as ears, Caller.of(server, config=config, state=state) as caller:
        lease = Lease(caller, amount_bytes, purpose=what, card=card, say=_say)
        try:
            lease.take(wait_max_ms=wait_s * 1000, look=ears.leave_if_told)
            ears.leave_if_told()
            code = errand.done(command, ears, every_s=RENEW_S, do=lease.renew)
        finally:
            lease.release()
    raise typer.Exit(code)


def _say(text: str) -> None:
    print(f"tidegate: {text}", file=sys.stderr, flush=True)
