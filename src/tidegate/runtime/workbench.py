"""The workbench: the worker that is alive now, its open model, and what it has loaded.

Owns starting a worker and starting the next one after it was lost, loading and releasing components, and the
two rooms (card and RAM) as they are at this moment. Which stage runs how is told by `relay`; the conversation
itself is `worker`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tidegate.core.faults import ClientError, WorkerError
from tidegate.core.image.failure import Failure
from tidegate.core.planner import Concession, Held, Room, StageOption, YieldClass
from tidegate.core.stage import Component, Execution, Placement
from tidegate.runtime import ram
from tidegate.runtime.cards.device import Device
from tidegate.runtime.children import OnLine
from tidegate.runtime.order import ImageOrder, check_request
from tidegate.runtime.site import Said, Site, site_for
from tidegate.runtime.worker import CommandFailed, ImageWorker, Patience, WorkerLost
from tidegate.wire import messages
from tidegate.wire.messages import FaultKind

# A worker that is lost again and again before it runs anything will not be cured by another one.
STARTS_MAX: Final = 16


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A component that holds bytes: how, with which half of the VAE, and what bringing it back would cost."""

    execution: Execution
    with_encoder: bool
    weights_bytes: int
    load_ms: int

    @property
    def card_bytes(self) -> int:
        """Bytes of the card that it holds between stages."""
        return self.weights_bytes if self.execution.placement is Placement.CARD else 0

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM that it holds between stages."""
        return 0 if self.execution.placement is Placement.CARD else self.weights_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What is free at one moment."""

    card: Room | None
    ram: Room
    measured: messages.Measured


class Workbench:
    """At most one live worker at a time."""

    def __init__(
        self,
        order: ImageOrder,
        *,
        device: Device,
        site: Site | None,
        on_line: OnLine,
        patience: Patience | None,
    ) -> None:
        self._order = order
        self._device = device
        self._site = site
        self._on_line = on_line
        self._patience = patience
        self._worker: ImageWorker | None = None
        self._opened: messages.Opened | None = None
        self._starts_count = 0
        self._engine_build = ""
        self.loaded: dict[Component, Loaded] = {}

    @property
    def incarnation(self) -> int:
        """Number of the worker that lives now; results it could not save die with it."""
        return self._starts_count

    @property
    def site(self) -> Site:
        """Where we compute; known once a worker was ready."""
        assert self._site is not None, "the site is settled by the first ready worker"
        return self._site

    @property
    def opened(self) -> messages.Opened:
        """What the headers said; known once a worker was ready."""
        assert self._opened is not None, "a model is opened by the first ready worker"
        return self._opened

    @property
    def engine_build(self) -> str:
        """The build of the engine in the worker."""
        return self._engine_build

    def settle(self) -> None:
        """Have a first worker ready, with as many attempts as that takes. Raises Fault."""
        while True:
            try:
                self.ready()
                return
            except WorkerLost:
                self.lose()

    def ready(self) -> ImageWorker:
        """A live worker with the model open.

        Raises WorkerLost, and ClientError for a model, a request or a device that cannot be used.
        """
        if self._worker is not None:
            return self._worker
        if self._starts_count >= STARTS_MAX:
            raise WorkerError(
                f"The worker was lost {STARTS_MAX} times.",
                remedy="Look at what it said last, with --verbose.",
                code="worker_lost",
            )
        self._starts_count += 1
        worker = self._worker = self._started()
        try:
            self._opened = self._open(worker)
        except CommandFailed as error:
            raise unusable(error) from error
        self._engine_build = worker.engine_build
        check_request(self._order.request, self._opened)
        return worker

    def _started(self) -> ImageWorker:
        try:
            return ImageWorker.start(patience=self._patience, on_line=self._on_line)
        except WorkerLost as lost:
            if lost.failure is Failure.KILLED:
                raise  # somebody else's doing, and the next one may live
            said = next((line for line in reversed(lost.ending.last_lines) if line.strip()), "nothing")
            raise WorkerError(
                f"The engine could not be started: its process {lost.ending.text()} and said: {said}",
                remedy="Build the engine with `make setup`.",
                code="engine_unavailable",
            ) from lost

    def _open(self, worker: ImageWorker) -> messages.Opened:
        if self._site is None:
            self._site = site_for(self._device, lambda path: worker.survey(ledger_path=path))
        elif self._site.ledger_path:
            worker.survey(ledger_path=self._site.ledger_path)
        return worker.open(
            messages.Open(
                serial=0,
                files=self._order.files,
                device=self._site.engine_name,
                threads=self._order.threads,
                flash_attention=self._order.flash_attention,
                direct_convolution=self._order.direct_convolution,
            )
        )

    def rooms(self, worker: ImageWorker, *, begins_stage: bool = False) -> Rooms:
        """Measure; at the begin of a stage all high-water marks start anew."""
        measured = worker.measure(resets_peaks=begins_stage)
        card = self.site.card
        if begins_stage and card is not None:
            card.begin_stage()
        return Rooms(
            card=card.room(_said(worker, measured)) if card else None,
            ram=ram.room(self._order.ram_max_bytes, measured.ram_bytes),
            measured=measured,
        )

    def expected_bytes(self, worker: ImageWorker, option: StageOption, *, component: Component) -> int:
        """What the worker should hold at the peak of a stage that begins now, in the memory that it uses.

        That is what it holds already, as seen, and what the stage adds, as predicted.
        """
        measured = self.rooms(worker, begins_stage=True).measured
        footprint, how = option.footprint, option.execution
        keeps = component in self.loaded and how.placement is not Placement.STREAM
        added_bytes = -footprint.weights_bytes if keeps else 0
        if how.placement is Placement.CPU or self.site.card is None:
            return measured.ram_bytes + footprint.ram_bytes + added_bytes
        return self.site.card.held_bytes(_said(worker, measured)) + footprint.card_bytes + added_bytes

    def observed_bytes(self, worker: ImageWorker, finished: messages.StageFinished, *, how: Execution) -> int:
        """What it did hold at the peak."""
        # A card's own peak counts for the report even if the stage ran on the CPU.
        said = Said(pid=worker.pid, card_peak_bytes=finished.card_peak_bytes)
        card_peak_bytes = self.site.card.peak_bytes(said) if self.site.card else 0
        return finished.ram_peak_bytes if how.placement is Placement.CPU else card_peak_bytes

    def used_bytes(self, worker: ImageWorker, progress: messages.Progress) -> int:
        """What is in use on the card while a stage runs."""
        said = Said(pid=worker.pid, card_bytes=progress.card_bytes)
        return self.site.card.used_bytes(said) if self.site.card else 0

    def held(self, component: Component, *, needs_encoder: bool) -> Held | None:
        """The component as it is loaded now, if it can serve.

        A VAE that was loaded with its encoder cannot serve decode, which foresees the decoder alone.
        """
        loaded = self.loaded.get(component)
        if loaded is None or loaded.with_encoder is not needs_encoder:
            return None
        return Held(execution=loaded.execution, card_bytes=loaded.card_bytes, ram_bytes=loaded.ram_bytes)

    def concessions(self, component: Component, *, needs_encoder: bool) -> tuple[Concession, ...]:
        """What else is loaded and could go; also `component` itself when it cannot serve as it is."""
        keeps = self.held(component, needs_encoder=needs_encoder) is not None
        return tuple(
            Concession(
                tenant=f"own/{name}",
                name=f"the {name.replace('_', ' ')} of this job",
                yields=YieldClass.OWN_FINISHED,
                card_bytes=loaded.card_bytes,
                ram_bytes=loaded.ram_bytes,
                return_ms=loaded.load_ms,
                component=name,
            )
            for name, loaded in self.loaded.items()
            if not (keeps and name is component)
        )

    def release(self, component: Component) -> None:
        """Give back what a component holds."""
        if self._worker is not None:
            self._worker.release(component)
        self.loaded.pop(component, None)

    def load(
        self, worker: ImageWorker, component: Component, *, option: StageOption, with_encoder: bool
    ) -> int:
        """Load a component unless it is loaded already; returns the milliseconds it took."""
        if component in self.loaded:
            return 0
        # Charged from here on, even if the loading fails half way: `release` gives all of it back.
        self.loaded[component] = Loaded(
            execution=option.execution,
            with_encoder=with_encoder,
            weights_bytes=option.footprint.weights_bytes,
            load_ms=option.load_ms,
        )
        return worker.load(component, option.execution, with_encoder=with_encoder).ms

    def lose(self) -> None:
        """The worker is gone, and with it all that it had loaded."""
        self._worker = None
        self.loaded.clear()

    def close(self) -> None:
        """Let the worker go in peace, and the site after it."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.close()
        self._close_site()

    def abandon(self) -> None:
        """End the worker wherever it is; what it wrote stays."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.end()
        self._close_site()

    def _close_site(self) -> None:
        if self._site is not None:
            self._site.close()


def unusable(error: CommandFailed) -> ClientError | WorkerError:
    """A model or a request that no attempt can save, as the user's fault; anything else as the worker's."""
    match error.fault:
        case FaultKind.INVALID_MODEL:
            return ClientError(f"The model cannot be used: {error.message}.", remedy="", code="invalid_model")
        case FaultKind.INVALID_REQUEST:
            return ClientError(f"The engine refuses: {error.message}.", remedy="", code="invalid_request")
        case FaultKind.UNSUPPORTED:
            return ClientError(f"Not supported yet: {error.message}.", remedy="", code="unsupported")
        case _:
            return WorkerError(f"The engine failed: {error.message}.", code="engine")


def _said(worker: ImageWorker, measured: messages.Measured) -> Said:
    return Said(
        pid=worker.pid,
        card_bytes=measured.card_bytes,
        free_bytes=measured.card_free_bytes,
        total_bytes=measured.card_total_bytes,
    )
