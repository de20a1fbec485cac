"""`tidegate synth`: writes synthetic checkpoints with real shapes.

Owns the options and the progress bar; the work is `tidegate.synth.checkpoints`. Faults pass through to
`cli.main`, which words them and picks the exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from tidegate.core.faults import ClientError
from tidegate.core.quantity import size_text
from tidegate.synth.checkpoints import NAMES, PLAIN_TYPE, WEIGHT_TYPES, synthesise


def synth(
    name: Annotated[
        str, typer.Argument(help=f"Which checkpoint: {', '.join(NAMES)}.", show_default=False)
    ] = "",
    folder: Annotated[
        Path | None, typer.Argument(help="Where to write it; made if it does not exist.", show_default=False)
    ] = None,
    *,
    weight_type: Annotated[
        str, typer.Option("--type", help=f"Type of the weights: {', '.join(WEIGHT_TYPES)}.")
    ] = PLAIN_TYPE,
    sparse: Annotated[
        bool,
        typer.Option("--sparse", help="Header and length only; the weights are zeros that take no space."),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Write a checkpoint of random weights in the shapes of a real model.

    f16 is written as safetensors, quantised types and language models as GGUF. sd1-tiny holds no VAE; a TAESD
    is written beside it. Language models have a tokenizer and a chat template; llama-tiny and qwen2vl-tiny
    come with a projector for images.
    """
    if not name or folder is None:
        raise ClientError(
            "A name and a folder are needed.",
            remedy=f"Write: tidegate synth {name or 'NAME'} FOLDER, with one of {', '.join(NAMES)}.",
            code="no_name",
        )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(file_name: str, written_bytes: int, size_bytes: int) -> None:
            if file_name not in tasks:
                tasks[file_name] = bars.add_task(file_name, total=size_bytes)
            bars.update(tasks[file_name], completed=written_bytes)

        paths = synthesise(name, folder, weight_type=weight_type, sparse=sparse, seed=seed, progress=show)
    for path in paths:
        typer.echo(f"{path}  {size_text(path.stat().st_size)}{', sparse' if sparse else ''}")
