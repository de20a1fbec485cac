"""The options that say something instead of the settings file; several commands have them.

Owns their names and help texts. What they override is `tidegate.runtime.settings_file`'s.
"""

from __future__ import annotations

from typing import Annotated

import typer

ConfigFile = Annotated[str, typer.Option("--config", help="The settings file.", show_default=False)]
StateFolder = Annotated[str, typer.Option("--state", help="The server's state folder.", show_default=False)]
ModelsFolder = Annotated[
    str, typer.Option("--models", help="Serve all models of this folder.", show_default=False)
]
DeviceName = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda:0, vulkan:0, rocm:0 or virtual:3GiB.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
