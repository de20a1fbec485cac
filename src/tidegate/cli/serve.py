"""`tidegate serve`: the server, from its settings to its end.

Owns the options that override the settings, the socket, signals, and the order of start and end: the
address is bound before any worker is started, and connections end before the runtime does. The application
is `tidegate.api.app`, the runtime `tidegate.runtime.server`.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tidegate.cli.overrides import ConfigFile, DeviceName, ModelsFolder, StateFolder
from tidegate.cli.serving import served
from tidegate.runtime import settings_file
from tidegate.runtime.settings import Settings


def serve(
    *,
    config: ConfigFile = "",
    models: ModelsFolder = "",
    device: DeviceName = "",
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs keys.")] = "",
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    state: StateFolder = "",
    evaluation: Annotated[
        str,
        typer.Option(
            help="throughput, or reproducible: a text never depends on who else is being served. "
            "Holds for all language models."
        ),
    ] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the settings.")] = False,
) -> None:
    """Serve images and language models over HTTP, until Ctrl-C.

    Jobs that are not done then go on at the next start.
    """
    if schema:
        typer.echo(json.dumps(Settings.model_json_schema(), indent=2))
        return
    overrides = settings_file.Overrides(
        models=models, state=state, device=device, host=host, port=port, evaluation=evaluation
    )
    served(lambda: settings_file.load(config, overrides))
