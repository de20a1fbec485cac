"""What a predictor is asked about a language model, and what it answers.

Owns these two messages; they are part of the language of `messages`, from which they are taken.
"""

from __future__ import annotations

import msgspec

from tidegate.wire.bounds import Amount
from tidegate.wire.message import Message


class PredictLlm(Message, frozen=True, kw_only=True):
    """Ask what a language model needs with 0, 1, 2, ... layers on a card. Nothing is allocated.

    `device` is the engine's name of the card, "" for none. Layers count as llama.cpp counts them, the output
    being one; `layers_max` are considered at most, -1 for all. `context_tokens_count` is for one slot.
    """

    serial: int
    path: str
    device: str = ""
    ledger_path: str = ""
    projector_path: str = ""
    layers_max: int = -1
    context_tokens_count: int = 4096
    slots_count: int = 1
    batch_tokens_count: int = 256
    outputs_max: int = 0
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: bool = True
    is_reproducible: bool = False
    image_tokens_max: int = 0


class SplitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a language model needs with a number of its layers on the card, as it will be charged there."""

    card_weights_bytes: Amount
    card_kv_bytes: Amount
    card_compute_bytes: Amount
    ram_weights_bytes: Amount
    ram_kv_bytes: Amount
    ram_compute_bytes: Amount


class LlmForetold(Message, frozen=True, kw_only=True):
    """What a language model needs: `splits` for 0 to `layers_count` layers on the card.

    `state_bytes` bounds the saved state of all slots. Projector figures are for the card, 0 without one.
    """

    serial: int
    layers_count: int
    splits: tuple[SplitFacts, ...]
    state_bytes: Amount
    projector_weights_bytes: Amount = 0
    projector_compute_bytes: Amount = 0
