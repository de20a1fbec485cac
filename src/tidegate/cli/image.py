"""`tidegate image`: one image, or a batch, from a prompt.

Owns the command and what is printed at its end. Its options and their checks are `options`, the bar is
`show`, the work is `tidegate.runtime.oneshot`, or a running server's that has the card (`handover`).
"""

from __future__ import annotations

import json
import signal
import sys

from rich.console import Console

from tidegate.cli import options
from tidegate.cli.handover import made_by_server
from tidegate.cli.show import Show
from tidegate.core.faults import ClientError
from tidegate.core.quantity import time_text
from tidegate.runtime import children, oneshot
from tidegate.runtime.order import Wish
from tidegate.runtime.report import Report


def image(
    prompt: options.Prompt = "",
    output: options.Output = "",
    *,
    model: options.Model = "",
    diffusion_model: options.DiffusionModel = "",
    vae: options.Vae = "",
    taesd: options.Taesd = "",
    clip_l: options.ClipL = "",
    clip_g: options.ClipG = "",
    t5xxl: options.T5xxl = "",
    llm: options.Llm = "",
    size: options.Size = "512x512",
    steps: options.Steps = 20,
    seed: options.Seed = 42,
    cfg: options.Cfg = 7.0,
    guidance: options.Guidance = 3.5,
    sampler: options.Sampler = "",
    scheduler: options.Scheduler = "",
    negative: options.Negative = "",
    clip_skip: options.ClipSkip = -1,
    init: options.Init = "",
    strength: options.Strength = 0.75,
    batch: options.Batch = 1,
    device: options.DeviceName = options.AUTO,
    threads: options.Threads = 0,
    ram: options.Ram = "",
    resume: options.Resume = False,
    alone: options.Alone = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
) -> None:
    """Make an image from a prompt, within the memory there is.

    Finished work is saved on the way; after a crash or Ctrl-C the same command with --resume goes on from it.
    """
    typed = dict(locals())
    wish = options.wish_again(typed) if resume and not prompt else options.wish_of(typed)
    # Saved work is this command's own; a server goes on with its jobs by itself.
    report = _made(wish, resumes=resume, alone=alone or resume, verbose=verbose)
    _tell(json.dumps(report.data(), indent=2, ensure_ascii=False) if as_json else _told(report))


def _made(wish: Wish, *, resumes: bool, alone: bool, verbose: bool) -> Report:
    ready = options.checked(wish)
    # Told to go is told to stop, and so is a closed terminal: what is saved stays, and the virtual card goes.
    leaving = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in leaving}
    for number in leaving:
        if before[number] is not signal.SIG_IGN:  # `nohup` means it
            signal.signal(number, signal.default_int_handler)
    try:
        with Show(Console(stderr=True)) as shown:
            handed = None if alone else made_by_server(ready, shown)
            if handed is not None:
                return handed
            order = options.completed(ready, resumes=resumes)
            return oneshot.make(order, shown, on_line=_say if verbose else children.unheard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read it went away; `main` knows the exit code for that
        raise
    except OSError as error:
        raise ClientError(
            f"The image is made, but standard output does not take the report: {error.strerror}.",
            remedy="Send it to a place that can be written.",
            code="stdout_unwritable",
        ) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _told(report: Report) -> str:
    size = f"{report.width}x{report.height}"
    lines = [f"{shown.path}  {size}, seed {shown.seed}" for shown in report.images]
    return "\n".join(lines) + f", {time_text(report.ms)}"
