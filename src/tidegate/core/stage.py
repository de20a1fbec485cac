"""Stages: the words for what an image job does, with which component, and where.

Owns Stage, Component, Placement, DecodeMode and Execution (one way to run one stage). What an execution needs
in bytes lives in `planner/option.py`; the order of stages within a job and its checkpoints in `image/job.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import assert_never

from tidegate.core.quantity import size_text


class Stage(enum.StrEnum):
    """One step of an image job between two checkpoints."""

    ENCODE = "encode"
    ENCODE_IMAGE = "encode_image"
    DENOISE = "denoise"
    DECODE = "decode"


class Errand(enum.StrEnum):
    """What the planner makes room for besides stages."""

    SERVE = "serve"  # A language model that is wanted.
    GUEST = "guest"  # Another application.


class Component(enum.StrEnum):
    """The part of a model that a stage computes with."""

    TEXT_ENCODER = "text_encoder"
    DIFFUSION = "diffusion"
    VAE = "vae"


class Placement(enum.StrEnum):
    """Where weights live and where the computing happens."""

    CARD = "card"  # Weights and computing on the card.
    STREAM = "stream"  # Weights in RAM, copied to the card part by part within a budget.
    CPU = "cpu"  # Weights and computing in RAM.


class DecodeMode(enum.StrEnum):
    """Whether pixels are computed in one piece or tile by tile."""

    WHOLE = "whole"
    TILED = "tiled"


COMPONENT_OF: Mapping[Stage, Component] = MappingProxyType(
    {
        Stage.ENCODE: Component.TEXT_ENCODER,
        Stage.ENCODE_IMAGE: Component.VAE,
        Stage.DENOISE: Component.DIFFUSION,
        Stage.DECODE: Component.VAE,
    }
)


@dataclass(frozen=True, slots=True)
class Execution:
    """One way to run one stage, or to serve; `tile` is in latent pixels (0 = whole), `budget_bytes` only
    for `stream`.
    """

    placement: Placement
    mode: DecodeMode = DecodeMode.WHOLE
    tile: int = 0
    budget_bytes: int = 0
    layers_count: int = 0  # Of a language model that is only partly on the card; 0 otherwise.

    def __post_init__(self) -> None:
        assert (self.mode is DecodeMode.TILED) == (self.tile > 0), "a tile size belongs to the tiled mode"
        assert (self.placement is Placement.STREAM) == (self.budget_bytes > 0), (
            "a budget belongs to streaming"
        )

    def text(self) -> str:
        """Say it in words, as explain() and notices do."""
        match self.placement:
            case Placement.CARD:
                where = "on the card"
            case Placement.STREAM:
                where = f"streamed to the card within {size_text(self.budget_bytes)}"
            case Placement.CPU:
                where = "on the CPU"
            case _:
                assert_never(self.placement)
        if self.layers_count:
            where = f"with {self.layers_count} layers {where}"
        return f"{where}, in tiles of {self.tile}" if self.tile else where


def relay(*, from_image: bool) -> tuple[Stage, ...]:
    """Name the stages of an image job in order; `from_image` adds the encoding of a given picture."""
    if from_image:
        return (Stage.ENCODE, Stage.ENCODE_IMAGE, Stage.DENOISE, Stage.DECODE)
    return (Stage.ENCODE, Stage.DENOISE, Stage.DECODE)
