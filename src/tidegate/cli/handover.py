"""Handing over: `tidegate image` gives its order to the running server that has the card.

    whose card is it? -> which of its models? -> submit, watch, fetch -> the same files and report as alone

One authority per card: two programs that both believe a card to be theirs would each be refused memory. Owns
finding that server and the way of one order there and back. Whether there is a server is told by its locks
(`tidegate.runtime.lock`), where it is by its `address`; speaking to it is the `caller`'s. A card that is only
counted (a virtual one, or the CPU) may also be computed on alone, beside a server that does not know the
model.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final  # Any: what a server answers is JSON of any shape

import msgspec

from tidegate.cli import address
from tidegate.cli.caller import Caller, key_of_settings
from tidegate.cli.options import Checked, files_of
from tidegate.core.faults import CapacityError, ClientError, Fault, fault_by_code
from tidegate.core.stage import Execution, Stage
from tidegate.runtime import lock, model_choice, png, premises, settings_file
from tidegate.runtime.cards.device import AutoDevice, CpuDevice, Device, VirtualDevice, parse_device
from tidegate.runtime.oneshot import Interrupted
from tidegate.runtime.order import SEED_MAX
from tidegate.runtime.relay import Listener
from tidegate.runtime.report import ImageRecord, Report

# So many images are one job of a server; a larger batch is several.
COUNT_MAX: Final = 16
WAIT_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The server that has the card. `is_real`: nobody else can compute on it meanwhile."""

    where: address.Address
    state: Path

    @property
    def is_real(self) -> bool:
        """Whether it computes on a card in the machine."""
        is_virtual = isinstance(parse_device(self.where.device), VirtualDevice)
        return self.where.engine_name != CpuDevice.engine_name and not is_virtual


def authority_over(device: Device) -> Authority | None:
    """The running server that computes on this device; for `auto` the user's own, whatever it computes on."""
    for state in _states(device):
        holder, where = premises.server_of(state), address.found(state)
        if holder is None or where is None or holder.pid != where.pid:
            continue  # It begins or ends; the lock of the card tells the rest.
        if isinstance(device, AutoDevice) or _is_same(device, where):
            return Authority(where=where, state=state)
    return None


def _states(device: Device) -> Iterator[Path]:
    with contextlib.suppress(Fault):  # settings with a mistake are no server's, and nobody needs them here
        yield settings_file.state_folder_of(settings_file.load())
    if not isinstance(device, CpuDevice | VirtualDevice):
        for _, holder in lock.card_holders():
            if holder.state is not None:
                yield holder.state


def _is_same(device: Device, where: address.Address) -> bool:
    if isinstance(device, VirtualDevice):
        return str(parse_device(where.device)) == str(device)
    return not isinstance(device, AutoDevice) and device.engine_name == where.engine_name


def made_by_server(ready: Checked, listener: Listener) -> Report | None:
    """Have the images made by the server that has the card; None when they are to be made alone.

    Raises Fault, and Interrupted on Ctrl-C.
    """
    authority = authority_over(parse_device(ready.wish.device))
    if authority is None:
        return None
    who = f"the server of process {authority.where.pid}"
    with Caller(authority.where.url, key_of_settings()) as caller:
        model = _model(caller, ready)
        if model is None and authority.is_real:
            raise ClientError(
                f"The card is in use by {who}, which does not know this model.",
                remedy="Put the model into its models folder and reload it, or use --device cpu.",
                code="unknown_model",
            )
        if model is None:
            listener.told(f"{who[:1].upper()}{who[1:]} does not know this model, so it is made beside it.")
            return None
        report = _Errand(ready, caller, listener, model=model).done(who)
    report.server = {"url": authority.where.url, "pid": authority.where.pid, **(report.server or {})}
    return report


def _model(caller: Caller, ready: Checked) -> str | None:
    """The server's name for the model that is meant, "" for its default, None when it has no such model."""
    wish = ready.wish
    known = [
        view
        for view in caller.get("/api/models")["models"]
        if view["kind"] == "image" and not view["refused"]
    ]
    if not (wish.model or wish.diffusion_model or wish.companions):
        return "" if known else None
    try:
        prints = model_choice.fingerprints(files_of(wish))
    except ClientError:
        # Not a file here, but it may be a name there.
        if not wish.companions and wish.model in {view["name"] for view in known}:
            return wish.model
        raise
    return next((str(view["name"]) for view in known if view["fingerprints"] == prints), None)


@dataclass(slots=True, kw_only=False)
class _Errand:
    """One order on its way to the server and back."""

    ready: Checked
    caller: Caller
    listener: Listener
    model: str
    jobs: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    shown: tuple[str, int] = ("", -1)

    def done(self, who: str) -> Report:
        began = time.monotonic()
        wish = self.ready.wish
        report = Report(width=wish.width, height=wish.height)
        self._tell(f"Made by {who}, which has the card.")
        if wish.threads or wish.ram_max_bytes:
            self._tell("How many threads and how much RAM are used is that server's business.")
        try:
            for first in range(0, wish.batch, COUNT_MAX):
                report.images += self._made(first, min(COUNT_MAX, wish.batch - first), report)
        except KeyboardInterrupt:
            raise Interrupted(self._given_up()) from None
        except ClientError as fault:
            if fault.code != "no_server" or not self.jobs:
                raise
            raise CapacityError(
                "The server went away. What it had finished is kept, and goes on when it is started again.",
                remedy=f"Then: tidegate jobs {self.jobs[-1]}",
                code="server_gone",
            ) from fault
        report.notices = self.notices
        report.server = {"jobs": self.jobs}
        report.ms = round((time.monotonic() - began) * 1000)
        return report

    def _made(self, first: int, count: int, report: Report) -> Iterator[ImageRecord]:
        job = str(self.caller.post("/api/jobs", self._wish(first, count))["id"])
        self.jobs.append(job)
        for name, data in self.caller.events(f"/api/jobs/{job}/events"):
            self._hear(name, data, first)
        view = self._ended(job)
        for notice in view["notices"]:
            self._tell(notice)
        if not self.model and first == 0:
            self._tell(f"No model was named, so the server's default is used: {view['model']}")
        for image in view["images"]:
            path = self.ready.outputs[first + image["index"]]
            png.write(path, self.caller.data(f"/api/images/{image['image']}"))
            facts = self.caller.get(f"/api/images/{image['image']}/metadata")
            report.recipe = report.recipe or {
                name: value for name, value in facts["recipe"].items() if name not in ("request", "stages")
            }
            yield ImageRecord(
                path=path,
                seed=image["seed"],
                pixels_sha256=facts["pixels_sha256"],
                stages=facts["recipe"]["stages"],
            )

    def _wish(self, first: int, count: int) -> dict[str, object]:
        wish = self.ready.wish
        same = ("prompt", "negative", "width", "height", "steps", "cfg", "guidance", "sampler", "scheduler")
        body: dict[str, object] = {name: getattr(wish, name) for name in (*same, "clip_skip", "strength")}
        body |= {"model": self.model, "count": count, "seed": (wish.seed + first) % (SEED_MAX + 1)}
        if self.ready.init is not None:
            size = {"width": wish.width, "height": wish.height}
            file = png.encode(self.ready.init.pixels, text="", **size)
            body["picture"] = base64.b64encode(file).decode()
        return body

    def _hear(self, name: str, data: dict[str, Any], first: int) -> None:  # Any: see the import
        match name:
            case "stage" | "progress":
                # The stage may have begun before anybody listened.
                if self.shown != (data["stage"], data["index"]):
                    self.shown = (data["stage"], data["index"])
                    self.listener.stage_began(
                        Stage(data["stage"]),
                        image=first + data["index"],
                        count=self.ready.wish.batch,
                        how=msgspec.convert(data["execution"], Execution),
                    )
                if name == "progress":
                    self.listener.step_done(data["step"], data["steps_count"], card_bytes=0)
            case "notice":
                self._tell(data["text"])
            case _:
                pass  # The end is seen by the end of the stream, and images are fetched then.

    def _tell(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)
            self.listener.told(text)

    def _ended(self, job: str) -> dict[str, Any]:  # Any: see the import
        while not (view := self.caller.get(f"/api/jobs/{job}", wait_ms=WAIT_MS))["is_ended"]:
            pass  # Each question waits at the server until the job has ended, or for a minute.
        if view["phase"] == "done":
            return dict(view)
        if view["phase"] == "cancelled":
            raise ClientError(f"The server's job {job} was cancelled.", code="cancelled")
        raise fault_by_code(view["code"], view["message"], remedy=f"Its story: tidegate jobs {job}")

    def _given_up(self) -> str:
        try:
            for job in self.jobs:
                self.caller.post(f"/api/jobs/{job}/cancel")
        except Fault as fault:
            return f"Stopped. The server could not be told: {fault.message}"
        return "Stopped. The server was told that the image is not wanted any more."
