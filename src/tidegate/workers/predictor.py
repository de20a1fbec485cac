"""The predictor: a child process that says what would be needed, and never computes anything.

Started by exec as `python -m tidegate.workers.predictor` with the arguments of an image worker, and speaks
the same language. It answers Survey, Open, Predict and PredictLlm; nothing that would take memory of a card
is carried out here, so its answers cost nobody anything, even while the card is full. Its neighbour `image`
has the threads, `stages` the image engine; the language engine is in a process of its own, `llm_predictor`,
which is started at the first question and whose death is no more than a refusal.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Final

from tidegate.wire import channel, frames, messages
from tidegate.wire.messages import FaultKind
from tidegate.workers import image

# A dry run keeps a processor busy for up to seconds, while somebody else may be computing an image on it.
NICENESS = 5
# A model of a hundred layers takes seconds, a large projector from a slow disk some more.
ORACLE_WAIT_MAX_MS: Final = 120_000
ORACLE_ATTEMPTS: Final = 2


def _obey(talk: image.Conversation, exchange: int) -> None:
    # Imported on the thread that uses it, as in `image`.
    from tidegate.workers import stages

    os.nice(NICENESS)
    engine = stages.Engine(talk, exchange=exchange)
    oracle = Oracle()
    engine.hello()
    while True:
        command = talk.commands.get()
        match command:
            case messages.Shutdown():
                oracle.end()
                engine.close()
                os._exit(0)
            case messages.Survey() | messages.Open() | messages.Predict():
                talk.send(engine.answer(command))
            case messages.PredictLlm():
                talk.send(oracle.ask(command))
            case _:
                talk.send(_refusal(command))


def _refusal(command: messages.ToWorker) -> messages.Refused:
    serial = getattr(command, "serial", 0)
    told = f"a predictor carries out no {type(command).__name__}"
    return messages.Refused(serial=serial, fault=FaultKind.INVALID_REQUEST, message=told)


class Oracle:
    """The process with the language engine. It dies with us; if alone, the next question starts another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._talk: channel.Channel[messages.FromWorker] | None = None

    def ask(self, question: messages.PredictLlm) -> messages.FromWorker:
        """Its answer, or a refusal that says what became of it."""
        told = ""
        for _attempt in range(ORACLE_ATTEMPTS):
            talk = self._talk or self._started()
            try:
                talk.send(question)
                return talk.receive(ORACLE_WAIT_MAX_MS)
            except channel.SilenceTooLong:
                told = f"the language engine has not answered for {ORACLE_WAIT_MAX_MS // 1000} s"
                break
            except (channel.Closed, frames.ProtocolError):
                # Perhaps it had died before, of something else.
                told = "the language engine ended while it looked at this model"
                self.end()
        self.end()
        return messages.Refused(serial=question.serial, fault=FaultKind.ENGINE, message=told)

    def end(self) -> None:
        """End the process, if there is one."""
        if self._talk is not None:
            self._talk.close()
            self._talk = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self) -> channel.Channel[messages.FromWorker]:
        ours, theirs = socket.socketpair()
        with theirs:
            number = str(theirs.fileno())
            command = [sys.executable, "-P", "-m", "tidegate.workers.llm_predictor", "--channel", number]
            # It hands no files over; the exchange is there because every worker has one.
            command += ["--exchange", "-1", "--parent", str(os.getpid())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._talk = channel.parent_end(ours)
        return self._talk


if __name__ == "__main__":
    image.main(_obey)
