"""What the language engine does when something is refused it: the facts that its caller is built upon."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any  # what JSON carries

import pytest

from llama_process import LlamaProcess
from tidegate.core.faults import ClientError
from tidegate.core.quantity import MIB
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec
from tidegate.runtime.models.shelf import open_model

CUT_BYTES = 200

RISE = """
wanted = shape(n_ctx=2048, n_gpu_layers=arguments["layers"])
model = load(arguments["model"], wanted)
context = context_of(model, wanted) if model else None
computed = decode(context, [5] * 100) if context else None
say(model=bool(model), context=bool(context), computed=computed, reason=said.reason())
if context: engine.llama_free(context)
if model: engine.llama_model_free(model)
say(freed=True)
again = load(arguments["model"], shape(n_ctx=512, n_gpu_layers=1))
context = context_of(again, shape(n_ctx=512, n_gpu_layers=1)) if again else None
say(again=bool(context))
"""


@pytest.fixture(scope="module")
def tiny(synthetic_models: Callable[[str], Path]) -> Path:
    return synthetic_models("llama-tiny")


def rise(card: VirtualCard, folder: Path, *, layers: int = 5) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """What came of it, what was held after all was freed, and whether a smaller attempt went well."""
    path = str(folder / "llama-tiny.gguf")
    with LlamaProcess(RISE, ledger=str(card.path), model=path, layers=layers) as engine:
        said = iter(engine)
        came = next(said)
        assert next(said) == {"freed": True}
        row = card.read().row_of(engine.pid)
        held_bytes = row.held_bytes() if row else 0
        again = next(said)
        assert list(said) == []
    return came, held_bytes, again


@pytest.mark.parametrize(("capacity_mib", "model", "context"), [(4, False, False), (10, True, False)])
def test_what_does_not_fit_is_refused_and_nothing_is_kept(
    tiny: Path, tmp_path: Path, capacity_mib: int, model: bool, context: bool
) -> None:
    with VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=capacity_mib * MIB)) as card:
        came, held_bytes, again = rise(card, tiny)
        assert (came["model"], came["context"], held_bytes) == (model, context, 0)
        assert "do not fit on VCARD0" in came["reason"]
        assert again == {"again": capacity_mib == 10}


def test_every_allocation_may_be_refused(tiny: Path, tmp_path: Path) -> None:
    """With room for everything the first, the second, ... attempt is refused: no crash, no leak."""
    outcomes = []
    while True:
        spec = VirtualSpec(capacity_bytes=256 * MIB)
        with VirtualCard.create_in(tmp_path, spec) as card:
            card.plant_fault(len(outcomes) + 1)
            came, held_bytes, again = rise(card, tiny)
        if came["computed"] == 0:
            break
        outcomes.append((came["model"], came["context"], came["computed"]))
        assert held_bytes == 0
        assert again == {"again": True}
    # Weights, cache, and the buffers of the computation; all before the first token.
    assert outcomes[0] == (False, False, None)
    assert set(outcomes[1:]) == {(True, False, None)}
    assert len(outcomes) == 3


PROJECT = """
vision = llama.vision_bindings()
parameters = engine.llama_model_default_params()
parameters.vocab_only = True
text = engine.llama_model_load_from_file(arguments["model"].encode(), parameters)
say(about_to="open")
projector = vision.mtmd_init_from_file(
    arguments["projector"].encode(), text, llama.projector_parameters(device=cards[0] if cards else ""))
say(opened=bool(projector), reason=said.reason())
"""


def test_a_projector_that_does_not_fit_takes_the_process_with_it(tiny: Path, tmp_path: Path) -> None:
    """Why a projector is predicted before it is opened, and opened in the child that may die."""
    files = {"model": str(tiny / "llama-tiny.gguf"), "projector": str(tiny / "llama-tiny-mmproj.gguf")}
    with (
        VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=MIB // 8)) as card,
        LlamaProcess(PROJECT, ledger=str(card.path), **files) as engine,
    ):
        said = iter(engine)
        assert next(said) == {"about_to": "open"}
        with pytest.raises(AssertionError, match="ended with"):
            next(said)
        assert engine.process.returncode in (-signal.SIGABRT, -signal.SIGSEGV)
        row = card.read().row_of(engine.pid)
        assert row is None or row.held_bytes() == 0


def test_a_projector_cut_at_its_end_is_seen_by_us_alone(tiny: Path, tmp_path: Path) -> None:
    """The engine reads what is missing as whatever was there before; the length in the header tells."""
    whole = (tiny / "llama-tiny-mmproj.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:-CUT_BYTES])
    with pytest.raises(ClientError, match="cut short"):
        open_model(cut)
    with LlamaProcess(PROJECT, model=str(tiny / "llama-tiny.gguf"), projector=str(cut)) as engine:
        *_, last = list(engine)
    assert last["opened"] is True
