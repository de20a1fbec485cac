"""Assignments: one attempt at a stage as it is laid out before a worker, and what its result may lack.

Owns the data. Who fills it and takes in what comes of it is the `darkroom`; how pixels become a picture is
told by `prints`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.core import effects as ef
from tidegate.core.image.failure import Failure
from tidegate.runtime.jobbook import Entry, Frame
from tidegate.runtime.registry import Entry as Model
from tidegate.wire import messages


class Spoilt(Exception):
    """The stage ran, but what it gave is no result."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One attempt at a stage: the command without its model, and whose it is."""

    task: ef.RunStage
    frame: Frame
    entry: Entry
    model: Model
    command: messages.RunStage
    embedding_key: str = ""
    is_made: bool = False
