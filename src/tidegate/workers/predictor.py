"""The predictor: a child process that says what stages would need, and never computes one.

Started by exec as `python -m tidegate.workers.predictor` with the arguments of an image worker, and speaks
the same language. It answers Survey, Open and Predict; nothing that would take memory of a card is carried
out here, so its answers cost nobody anything, even while the card is full. Its neighbour `image` has the
threads, `stages` the engine.
"""

from __future__ import annotations

import os

from tidegate.wire import messages
from tidegate.wire.messages import FaultKind
from tidegate.workers import image

# A dry run keeps a processor busy for up to seconds, while somebody else may be computing an image on it.
NICENESS = 5


def _obey(talk: image.Conversation, exchange: int) -> None:
    # Imported on the thread that uses it, as in `image`.
    from tidegate.workers import stages

    os.nice(NICENESS)
    engine = stages.Engine(talk, exchange=exchange)
    engine.hello()
    while True:
        command = talk.commands.get()
        match command:
            case messages.Shutdown():
                engine.close()
                os._exit(0)
            case messages.Survey() | messages.Open() | messages.Predict():
                talk.send(engine.answer(command))
            case _:
                talk.send(_refusal(command))


def _refusal(command: messages.ToWorker) -> messages.Refused:
    serial = getattr(command, "serial", 0)
    told = f"a predictor carries out no {type(command).__name__}"
    return messages.Refused(serial=serial, fault=FaultKind.INVALID_REQUEST, message=told)


if __name__ == "__main__":
    image.main(_obey)
