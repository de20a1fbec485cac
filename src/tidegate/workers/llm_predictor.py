"""The oracle of language models: a process that says what one would need, and never loads one.

Started by the predictor, because the two engines never share a process: `python -m
tidegate.workers.llm_predictor` with the arguments of an image worker, and the same language, of which it
knows PredictLlm. Everything is asked on hollow cards, which store and compute nothing, so its answers cost
nobody anything, even while the card is full. Neighbour `predictor` starts and ends it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from tidegate_engines import llama

from tidegate.wire import messages
from tidegate.wire.llm_child import Evaluation
from tidegate.wire.messages import FaultKind
from tidegate.workers import image
from tidegate.workers.llm.context import shares_cells

# A model's blocks are counted by nobody who allocates; this many counts are no model's.
LAYERS_MAX: Final = 1024
# What a saved state has beside keys and values: a header, and for each cell its position and its sequences.
STATE_HEADER_BYTES: Final = 4096
STATE_CELL_BYTES: Final = 32
# Larger than any projector takes pictures in: they are made smaller until their tokens are as many as may
# be, and how many that is depends on their form.
PICTURES_PX: Final = ((2048, 2048), (2304, 1536), (2560, 1600), (3072, 1024))


def _obey(talk: image.Conversation, exchange: int) -> None:
    del exchange  # Nothing that it says is large.
    oracle = Oracle()
    while True:
        command = talk.commands.get()
        match command:
            case messages.Shutdown():
                os._exit(0)
            case messages.PredictLlm():
                talk.send(oracle.answer(command))
            case _:
                told = f"an oracle of language models carries out no {type(command).__name__}"
                serial = getattr(command, "serial", 0)
                talk.send(messages.Refused(serial=serial, fault=FaultKind.INVALID_REQUEST, message=told))


class Oracle:
    """The engine on hollow cards. They are of the kind of the first ledger that is named, or of CUDA's."""

    def __init__(self) -> None:
        # Real cards are hidden: hollow ones stand for them, and even counting them would open a driver.
        os.environ |= dict.fromkeys(
            ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), ""
        )
        llama.log()
        self._ledger_path: str | None = None
        self._cards: list[str] = []

    def answer(self, asked: messages.PredictLlm) -> messages.LlmForetold | messages.Refused:
        """Foretell, or say why not."""
        try:
            return self._foretold(asked)
        except (llama.UnusableModel, llama.UnusableLedger) as refusal:
            fault, told = FaultKind.INVALID_MODEL, str(refusal)
        except KeyError as unknown:
            # A KV type or a card that there is not: the question is wrong, not the model.
            fault, told = FaultKind.UNSUPPORTED, f"there is no {unknown.args[0]}"
        return messages.Refused(serial=asked.serial, fault=fault, message=told)

    def _foretold(self, asked: messages.PredictLlm) -> messages.LlmForetold:
        card = self._card(asked)
        known = llama.header(asked.path)
        shape = _shape(asked, card)
        total = min(known.layers_count, LAYERS_MAX) if card else 0
        layers_count = min(total, asked.layers_max) if asked.layers_max >= 0 else total
        # A card without a layer would still be used for computing: a model with none there is given no card.
        shapes = [replace(shape, devices=())]
        shapes += [replace(shape, n_gpu_layers=layers) for layers in range(1, layers_count + 1)]
        splits = [_split(llama.predict(asked.path, wanted, known)) for wanted in shapes]
        projection = llama.Projection(0, 0, 0)
        if asked.projector_path and card:
            projection = llama.predict_projector(
                asked.projector_path,
                model=asked.path,
                card=card,
                sizes_px=PICTURES_PX,
                flash_attention=asked.flash_attention,
                image_tokens_max=asked.image_tokens_max,
            )
        kv_bytes = max(split.card_kv_bytes + split.ram_kv_bytes for split in splits)
        return messages.LlmForetold(
            serial=asked.serial,
            layers_count=len(splits) - 1,
            splits=tuple(splits),
            state_bytes=kv_bytes + asked.slots_count * STATE_HEADER_BYTES + shape.n_ctx * STATE_CELL_BYTES,
            projector_weights_bytes=projection.weights_bytes,
            projector_compute_bytes=projection.compute_bytes,
        )

    def _card(self, asked: messages.PredictLlm) -> str:
        """The hollow card that stands for the one asked about, "" for none."""
        if not asked.device:
            return ""
        if self._ledger_path is None:
            self._cards = llama.attach_hollow_card(asked.ledger_path)
            self._ledger_path = asked.ledger_path
        elif self._ledger_path != asked.ledger_path:
            raise llama.UnusableLedger("an oracle speaks of the cards of one ledger only")
        return asked.device if asked.device in self._cards else self._cards[0]


def _shape(asked: messages.PredictLlm, card: str) -> llama.Shape:
    rows_max = max(asked.batch_tokens_count, asked.slots_count)
    return llama.Shape(
        n_ctx=asked.context_tokens_count * asked.slots_count,
        n_gpu_layers=0,
        n_batch=rows_max,
        n_ubatch=rows_max,
        n_seq_max=asked.slots_count,
        n_outputs_max=asked.outputs_max,
        kv_type_k=asked.kv_type_k,
        kv_type_v=asked.kv_type_v,
        flash_attention=asked.flash_attention,
        kv_unified=_shares_cells(asked),
        repack=not asked.is_reproducible and not card,
        devices=(card,) if card else (),
    )


def _shares_cells(asked: messages.PredictLlm) -> bool:
    """What the child will decide from the same figures of the model."""
    api = llama.bindings()
    parameters = llama.Shape(n_ctx=0, n_gpu_layers=0, devices=()).model_parameters()
    parameters.no_alloc = True
    parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
    llama.log().forget()
    opened = api.llama_model_load_from_file(os.fsencode(asked.path), parameters)
    if not opened:
        raise llama.UnusableModel(llama.log().reason() or f"the engine does not take {asked.path}")
    try:
        evaluation = Evaluation.REPRODUCIBLE if asked.is_reproducible else Evaluation.THROUGHPUT
        return shares_cells(api, opened, evaluation)
    finally:
        api.llama_model_free(opened)


def _split(allocations: list[llama.Allocation]) -> messages.SplitFacts:
    def taken(purpose: str, *, on_card: bool) -> int:
        return sum(
            allocation.charged_bytes
            for allocation in allocations
            if allocation.purpose == purpose and allocation.on_card is on_card
        )

    return messages.SplitFacts(
        card_weights_bytes=taken("weights", on_card=True),
        card_kv_bytes=taken("kv", on_card=True),
        card_compute_bytes=taken("compute", on_card=True),
        ram_weights_bytes=taken("weights", on_card=False),
        ram_kv_bytes=taken("kv", on_card=False),
        ram_compute_bytes=taken("compute", on_card=False),
    )


if __name__ == "__main__":
    image.main(_obey)
