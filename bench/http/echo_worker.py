"""A worker without an engine: it answers every command at once, so that what is measured is all the rest.

Speaks the language of the image worker, and is started like it. Results are bytes without meaning.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tidegate.core.stage import Component, Stage
from tidegate.wire import artifacts, messages
from tidegate.workers import image

FACTS = messages.ComponentFacts(tensor_count=1, file_bytes=1 << 20)
BYTES = 1 << 20


def opened(command: messages.Open) -> messages.Opened:
    """What the headers would say."""
    return messages.Opened(
        serial=command.serial,
        family="SD 1.x",
        components={component.value: FACTS for component in Component},
        latent_channels=4,
        latent_factor=8,
        size_multiple=8,
        device=command.device,
    )


def finished(command: messages.RunStage, exchange: int) -> messages.StageFinished:
    """A result, at once."""
    side = command.request.width * command.request.height * 3
    data = bytes(number % 251 for number in range(side)) if command.stage is Stage.DECODE else os.urandom(64)
    if command.output:
        artifacts.write_atomically(Path(command.output), data)
    else:
        os.pwrite(exchange, data, 0)
    return messages.StageFinished(
        serial=command.serial,
        stage=command.stage,
        artifact=command.output,
        sha256=hashlib.sha256(data).hexdigest(),
        ms=0,
        card_peak_bytes=0,
        ram_peak_bytes=0,
    )


def answer(command: messages.ToWorker, exchange: int) -> messages.FromWorker:
    """Whatever is expected."""
    match command:
        case messages.Survey():
            return messages.Surveyed(serial=command.serial, devices=())
        case messages.Open():
            return opened(command)
        case messages.Predict():
            return messages.FootprintPredicted(
                serial=command.serial,
                weights_bytes=BYTES,
                compute_bytes=BYTES,
                card_peak_bytes=2 * BYTES,
                ram_peak_bytes=0,
            )
        case messages.Load():
            return messages.Loaded(
                serial=command.serial, component=command.component, ms=0, card_bytes=BYTES, ram_bytes=0
            )
        case messages.Release():
            return messages.Released(
                serial=command.serial, component=command.component, card_bytes=0, ram_bytes=0
            )
        case messages.Measure():
            return messages.Measured(
                serial=command.serial, card_free_bytes=0, card_total_bytes=0, card_bytes=0, ram_bytes=0
            )
        case messages.RunStage():
            return finished(command, exchange)
        case _:
            raise AssertionError(f"{type(command).__name__} is not for an image worker")


def obey(talk: image.Conversation, exchange: int) -> None:
    """Answer for ever."""
    talk.send(messages.Hello(version=messages.WIRE_VERSION, engine_build="echo", pid=os.getpid()))
    while True:
        command = talk.commands.get()
        if isinstance(command, messages.Shutdown):
            os._exit(0)
        talk.send(answer(command, exchange))


if __name__ == "__main__":
    image.main(obey)
