"""The one-shot: from an order to finished PNG files and a report, alone on the machine.

Owns the beginning and the end of a run: the job folder, the workbench, the files, and what is left behind
when the run is interrupted. What happens between is the `relay`'s.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

import msgspec

from tidegate.core.faults import Fault
from tidegate.core.stage import Stage
from tidegate.runtime import png
from tidegate.runtime.cards.device import Device, parse_device
from tidegate.runtime.checkpoints import JobFolder
from tidegate.runtime.children import OnLine, unheard
from tidegate.runtime.order import ImageOrder
from tidegate.runtime.relay import Listener, Relay
from tidegate.runtime.report import ImageRecord, Report, execution_data
from tidegate.runtime.site import Site
from tidegate.runtime.workbench import Workbench
from tidegate.runtime.worker import Patience

RESUME: Final = "--resume"
KEPT: Final = f"What was finished is saved: the same command with {RESUME} goes on from there."


class Interrupted(Exception):
    """The user stopped the run; the message says what is saved and how to go on."""


def make(
    order: ImageOrder,
    listener: Listener,
    *,
    on_line: OnLine = unheard,
    site: Site | None = None,
    patience: Patience | None = None,
) -> Report:
    """Make the images of an order. `site` is a device prepared by the caller; else the order's is made.

    Raises Fault when no image can be made, and Interrupted on Ctrl-C; finished stages are saved either way.
    """
    device: Device = parse_device(order.device)
    bench = Workbench(order, device=device, site=site, on_line=on_line, patience=patience)
    try:
        bench.settle()
        report = _kept_safe(order, bench, listener)
    except BaseException:
        bench.abandon()
        raise
    bench.close()
    return report


def _kept_safe(order: ImageOrder, bench: Workbench, listener: Listener) -> Report:
    """Make the images with a job folder under them, which goes when it is not needed any more."""
    folder, told = _folder(order)
    relay = Relay(order, bench=bench, folder=folder, listener=listener)
    try:
        relay.tell(order.notice)
        relay.tell(told)
        report = _made(order, relay, bench)
    except KeyboardInterrupt:
        raise Interrupted(_saved_text(relay, folder)) from None
    except Fault as fault:
        if not folder.has_work:
            folder.remove()
        elif folder.is_lasting and RESUME not in fault.remedy:
            fault.remedy = f"{fault.remedy} {KEPT}".strip()
        raise
    else:
        folder.remove()
    finally:
        folder.release()
    return report


def _made(order: ImageOrder, relay: Relay, bench: Workbench) -> Report:
    began = time.monotonic()
    relay.begin()
    # Stage by stage over the whole batch, so that each component is loaded once.
    for stage in order.stages[:-1]:
        for image in range(order.count):
            relay.make(stage, image)
    report = Report(width=order.request.width, height=order.request.height)
    for image, path in enumerate(order.outputs):
        pixels = relay.pixels(image)
        request = order.request_of(image)
        named = msgspec.structs.replace(request, sampler=request.sampler or bench.opened.default_sampler)
        text = png.parameters(named, model=order.model_name, is_from_image=order.init is not None)
        png.write(path, png.encode(pixels, width=request.width, height=request.height, text=text))
        stages = {str(stage): execution_data(how) for stage, how in relay.executions(image).items()}
        report.images.append(
            ImageRecord(
                path=path,
                seed=request.seed,
                pixels_sha256=hashlib.sha256(pixels).hexdigest(),
                stages=stages,
            )
        )
    report.stages = relay.records
    report.notices = relay.notices
    report.card = bench.site.card.data() if bench.site.card else None
    report.recipe = _recipe(order, bench)
    report.ms = round((time.monotonic() - began) * 1000)
    return report


def _recipe(order: ImageOrder, bench: Workbench) -> dict[str, object]:
    return {
        "model": order.fingerprints,
        "engine_build": bench.engine_build,
        "device": bench.site.engine_name,
        "flash_attention": order.flash_attention,
        "direct_convolution": order.direct_convolution,
        "threads": order.threads,
    }


def _folder(order: ImageOrder) -> tuple[JobFolder, str]:
    try:
        return JobFolder.take(order.key, resumes=order.resumes), ""
    except OSError as error:
        # No image shall fail because its safety net cannot be hung up.
        why = error.strerror or str(error)
        told = f"Finished work cannot be saved: {why[:1].lower()}{why[1:]}. A crash would cost it."
        return JobFolder.passing(order.key), told


def _saved_text(relay: Relay, folder: JobFolder) -> str:
    if not folder.is_lasting:
        return "Stopped. Nothing could be saved."
    finished = [str(stage) for stage in (Stage.ENCODE, Stage.DENOISE) if relay.has(stage)]
    steps = (
        f" and {relay.last_step} steps of denoise" if relay.last_step and not relay.has(Stage.DENOISE) else ""
    )
    done = f"Saved so far: {' and '.join(finished) or 'nothing finished'}{steps}."
    return f"Stopped. {done} Go on with: tidegate image --resume"
