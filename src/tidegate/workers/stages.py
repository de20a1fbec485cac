"""Stages: one command of the parent carried out on the engine.

Owns the open model and the results that could not be saved. Runs on the engine's thread only; the thread that
reads commands and hears Cancel is `tidegate.workers.image`. The engine is `tidegate_engines.sdstage`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, Protocol, assert_never

import numpy as np
import numpy.typing as npt
from tidegate_engines import sdstage

from tidegate.core.stage import Component, Stage
from tidegate.wire import artifacts, bounds, messages
from tidegate.wire.messages import FaultKind
from tidegate.workers import arrays

# Results that live here because the disk was full: embeddings, an init latent and a few latents of a batch.
UNSAVED_MAX: Final = 64
_STDERR: Final = 2

_FAULT_OF: Final[tuple[tuple[type[Exception], FaultKind], ...]] = (
    (sdstage.InvalidModel, FaultKind.INVALID_MODEL),
    (sdstage.InvalidRequest, FaultKind.INVALID_REQUEST),
    (sdstage.Unsupported, FaultKind.UNSUPPORTED),
    (sdstage.OutOfMemory, FaultKind.OUT_OF_MEMORY),
    (sdstage.NotFinite, FaultKind.NOT_FINITE),
    (sdstage.Cancelled, FaultKind.CANCELLED),
    (sdstage.EngineError, FaultKind.ENGINE),
    (MemoryError, FaultKind.OUT_OF_MEMORY),
    (artifacts.UnreadableArtifact, FaultKind.STORAGE),
    (OSError, FaultKind.STORAGE),
)
# All that can go wrong in operation. What is not in this list is a programmer's error and ends the worker.
OPERATING_ERRORS: Final = tuple(kind for kind, _ in _FAULT_OF)


def fault_of(error: Exception) -> FaultKind:
    """Classify an operating error."""
    return next(fault for kind, fault in _FAULT_OF if isinstance(error, kind))


class Outside(Protocol):
    """What a running stage needs from the thread that talks to the parent."""

    def send(self, message: messages.FromWorker) -> None: ...

    def is_cancelled(self, serial: int) -> bool: ...


class Engine:
    """The engine with its open models, by name."""

    def __init__(self, outside: Outside, *, exchange: int) -> None:
        self._outside = outside
        self._exchange = exchange
        self._checkpoints: dict[str, sdstage.Checkpoint] = {}
        self._devices: dict[str, str] = {}
        self._unsaved: dict[str, arrays.Arrays] = {}

    def hello(self) -> None:
        """Introduce ourselves, and let the engine speak on stderr, where the parent listens."""
        sdstage.set_log_file(_STDERR)
        build = sdstage.engine_build()
        self._outside.send(messages.Hello(version=messages.WIRE_VERSION, engine_build=build, pid=os.getpid()))

    def answer(self, command: messages.ToWorker) -> messages.FromWorker:
        """Carry out one command. Operating errors become an answer; programmers' errors are raised."""
        try:
            return self._carry_out(command)
        except OPERATING_ERRORS as error:
            return self._failure(command, error)

    def close(self) -> None:
        """Release every component, so that a leak would show in the ledger before the process is gone."""
        for checkpoint in self._checkpoints.values():
            for component in Component:
                checkpoint.release(component.value)
        self._checkpoints.clear()

    def _carry_out(self, command: messages.ToWorker) -> messages.FromWorker:
        match command:
            case messages.Survey():
                return self._survey(command)
            case messages.Open():
                return self._open(command)
            case messages.Predict():
                return self._predict(command)
            case messages.Load():
                return self._load(command)
            case messages.Release():
                return self._release(command)
            case messages.Measure():
                return self._measure(command)
            case messages.RunStage():
                return self._run(command)
            case messages.Cancel() | messages.Ping() | messages.Shutdown() | messages.PredictLlm():
                raise AssertionError("these never reach the engine")
            case _:
                assert_never(command)

    def _failure(self, command: messages.ToWorker, error: Exception) -> messages.FromWorker:
        fault = fault_of(error)
        text = str(error)[: bounds.TEXT_CHARACTERS_MAX]
        match command:
            case messages.Survey() | messages.Open() | messages.Predict():
                return messages.Refused(serial=command.serial, fault=fault, message=text)
            case messages.Shutdown():
                raise error
            case _:
                card, ram = self._peaks(getattr(command, "model", ""))
                return messages.StageFailed(
                    serial=command.serial, fault=fault, message=text, card_peak_bytes=card, ram_peak_bytes=ram
                )

    def _survey(self, command: messages.Survey) -> messages.Surveyed:
        """Attach the virtual card, if one is named, and list the devices."""
        attached = tuple(sdstage.attach_virtual_card(command.ledger_path)) if command.ledger_path else ()
        return messages.Surveyed(
            serial=command.serial,
            devices=tuple(_device_facts(device) for device in sdstage.devices()),
            attached=attached,
        )

    def _open(self, command: messages.Open) -> messages.Opened:
        """Read the headers of a model."""
        self._checkpoints.pop(command.model, None)  # open twice, it would hold two sets of graphs
        checkpoint = sdstage.Checkpoint(
            command.files,
            device=command.device,
            flash_attention=command.flash_attention,
            direct_convolution=command.direct_convolution,
            threads=command.threads,
            weight_type=command.weight_type,
        )
        self._checkpoints[command.model], self._devices[command.model] = checkpoint, command.device
        side = 64 * checkpoint.size_multiple
        channels, height, _ = checkpoint.latent_shape(side, side)
        return messages.Opened(
            serial=command.serial,
            family=checkpoint.family,
            components={name: _component_facts(facts) for name, facts in checkpoint.components.items()},
            latent_channels=channels,
            latent_factor=side // height,
            size_multiple=checkpoint.size_multiple,
            device=command.device,
            default_sampler=checkpoint.default_sampler,
            samplers=tuple(sdstage.samplers()),
            schedulers=tuple(sdstage.schedulers()),
        )

    def _predict(self, command: messages.Predict) -> messages.FootprintPredicted:
        """Run a stage dry."""
        how = command.execution
        found = self._opened(command.model).predict(
            command.stage.value,
            engine_request(command.request),
            how.placement.value,
            tile=how.tile,
            budget_bytes=how.budget_bytes,
        )
        return messages.FootprintPredicted(
            serial=command.serial,
            weights_bytes=found.weights_bytes,
            compute_bytes=found.compute_bytes,
            card_peak_bytes=found.card_peak_bytes,
            ram_peak_bytes=found.ram_peak_bytes,
        )

    def _load(self, command: messages.Load) -> messages.Loaded:
        """Bring weights to their place."""
        began = time.monotonic()
        how = command.execution
        checkpoint = self._opened(command.model)
        checkpoint.load(
            command.component.value,
            how.placement.value,
            budget_bytes=how.budget_bytes,
            encoder=command.encoder,
        )
        held = checkpoint.stage_bytes()
        return messages.Loaded(
            serial=command.serial,
            component=command.component,
            ms=_since_ms(began),
            card_bytes=held["card_bytes"],
            ram_bytes=held["ram_bytes"],
        )

    def _release(self, command: messages.Release) -> messages.Released:
        """Give back what a component holds."""
        checkpoint = self._opened(command.model)
        checkpoint.release(command.component.value)
        held = checkpoint.stage_bytes()
        return messages.Released(
            serial=command.serial,
            component=command.component,
            card_bytes=held["card_bytes"],
            ram_bytes=held["ram_bytes"],
        )

    def _measure(self, command: messages.Measure) -> messages.Measured:
        """Read the device and ourselves."""
        checkpoint = self._opened(command.model)
        if command.resets_peaks:
            checkpoint.reset_peaks()
        held = checkpoint.stage_bytes()
        free = total = 0
        for device in sdstage.devices():
            if device.name == self._devices[command.model] and device.kind == "gpu":
                free, total = device.free_bytes, device.total_bytes
        return messages.Measured(
            serial=command.serial,
            card_free_bytes=free,
            card_total_bytes=total,
            card_bytes=held["card_bytes"],
            ram_bytes=held["ram_bytes"],
        )

    def _run(self, command: messages.RunStage) -> messages.StageFinished:
        """Run one stage and leave its result in a file, or in the exchange if it is pixels."""
        if self._outside.is_cancelled(command.serial):
            raise sdstage.Cancelled("cancelled before it began")
        if command.resets_peaks:
            self._opened(command.model).reset_peaks()
        began = time.monotonic()
        sha256, storage_error = self._result(command)
        held = self._opened(command.model).stage_bytes()
        return messages.StageFinished(
            serial=command.serial,
            stage=command.stage,
            artifact=command.output,
            sha256=sha256,
            ms=_since_ms(began),
            card_peak_bytes=held["card_peak_bytes"],
            ram_peak_bytes=held["ram_peak_bytes"],
            storage_error=storage_error,
        )

    def _peaks(self, model: str) -> tuple[int, int]:
        """Card and RAM high-water marks; zeros before the model is open."""
        checkpoint = self._checkpoints.get(model)
        if checkpoint is None:
            return 0, 0
        held = checkpoint.stage_bytes()
        return held["card_peak_bytes"], held["ram_peak_bytes"]

    def _opened(self, model: str) -> sdstage.Checkpoint:
        try:
            return self._checkpoints[model]
        except KeyError as error:
            raise sdstage.InvalidModel(f"the model {model!r} is not open") from error

    def _result(self, command: messages.RunStage) -> tuple[str, str]:
        request, tile = engine_request(command.request), command.execution.tile
        match command.stage:
            case Stage.ENCODE:
                return self._keep(command, dict(self._opened(command.model).encode(request)))
            case Stage.ENCODE_IMAGE:
                size = {"width": command.request.width, "height": command.request.height}
                rgb = arrays.read_pixels(self._exchange, **size)
                latent = self._opened(command.model).encode_image(
                    request, rgb, tile=tile, progress=self._progress_of(command)
                )
                return self._keep(command, {"latent": latent})
            case Stage.DENOISE:
                latent = self._denoise(command, request)
                sha256, storage_error = self._keep(command, {"latent": latent})
                # A tape that could not be kept costs the safety net, not the image.
                return sha256, storage_error or self._opened(command.model).tape_error()
            case Stage.DECODE:
                latent = self._latent(command, "latent")
                pixels = self._opened(command.model).decode(
                    request, latent, tile=tile, progress=self._progress_of(command)
                )
                return arrays.write_pixels(self._exchange, pixels), ""
            case _:
                assert_never(command.stage)

    def _denoise(self, command: messages.RunStage, request: sdstage.Request) -> npt.NDArray[np.float32]:
        init = self._latent(command, "init_latent") if "init_latent" in command.inputs else None
        return self._opened(command.model).denoise(
            request,
            self._input(command, "embeddings"),
            init_latent=init,
            tape=command.tape,
            tape_owner=artifacts.owner_of(command.fingerprint),
            progress=self._progress_of(command),
        )

    def _progress_of(self, command: messages.RunStage) -> sdstage.Progress:
        def progress(step: int, steps: int, preview: arrays.Pixels | None) -> bool:
            shown = preview if command.previews and preview is not None else None
            if shown is not None and shown.nbytes > bounds.PREVIEW_BYTES_MAX:
                shown = None  # a picture too large for a frame is worth less than the progress it comes with
            self._outside.send(
                messages.Progress(
                    serial=command.serial,
                    stage=command.stage,
                    step=step,
                    steps=steps,
                    card_bytes=self._opened(command.model).stage_bytes()["card_bytes"],
                    preview_width=0 if shown is None else shown.shape[1],
                    preview_height=0 if shown is None else shown.shape[0],
                    preview=b"" if shown is None else np.ascontiguousarray(shown).tobytes(),
                )
            )
            return not self._outside.is_cancelled(command.serial)

        return progress

    def _latent(self, command: messages.RunStage, role: str) -> npt.NDArray[np.float32]:
        try:
            return self._input(command, role)["latent"].astype(np.float32, copy=False)
        except KeyError as error:
            raise artifacts.UnreadableArtifact(f"{command.inputs[role]} holds no latent") from error

    def _input(self, command: messages.RunStage, role: str) -> arrays.Arrays:
        try:
            path = command.inputs[role]
        except KeyError as error:
            raise sdstage.InvalidRequest(f"{command.stage.value} needs {role}") from error
        kept = self._unsaved.get(path)
        return arrays.load(Path(path)) if kept is None else kept

    def _keep(self, command: messages.RunStage, result: arrays.Arrays) -> tuple[str, str]:
        for name, array in result.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise sdstage.NotFinite(f"{command.stage.value} gave NaN or infinity in {name}")
        try:
            return arrays.save(Path(command.output), result, fingerprint=command.fingerprint), ""
        except OSError as error:
            # A full disk costs the safety net, not the image: the next stage finds the result here.
            if len(self._unsaved) >= UNSAVED_MAX:
                raise
            self._unsaved[command.output] = result
            return "", error.strerror or str(error)


def engine_request(request: messages.ImageRequest) -> sdstage.Request:
    """Say the request in the engine's own type."""
    names = (name for name in request.__struct_fields__ if name != "idea")
    return sdstage.Request(**{name: getattr(request, name) for name in names})


def _device_facts(device: sdstage.Device) -> messages.DeviceFacts:
    return messages.DeviceFacts(
        name=device.name,
        description=device.description,
        type=device.kind,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
    )


def _component_facts(facts: sdstage.ComponentFacts) -> messages.ComponentFacts:
    return messages.ComponentFacts(
        tensor_count=facts["tensor_count"], file_bytes=facts["file_bytes"], types=dict(facts.get("types", {}))
    )


def _since_ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
