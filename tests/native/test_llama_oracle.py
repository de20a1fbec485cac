"""The predictor asked about language models: every count of layers, and a life beyond its oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tidegate.core.quantity import GIB
from tidegate.runtime.cards.virtual import VirtualCard, VirtualSpec
from tidegate.runtime.children import Child
from tidegate.wire import messages
from tidegate.wire.messages import FaultKind

WAIT_MAX_MS = 60_000
FEED_FORWARD = b"llama.feed_forward_length\x04\0\0\0"


@pytest.fixture
def predictor() -> Iterator[Child[messages.FromWorker]]:
    child = Child.spawn("tidegate.workers.predictor")
    try:
        assert isinstance(child.channel.receive(WAIT_MAX_MS), messages.Hello)
        yield child
    finally:
        child.end()


def asked(child: Child[messages.FromWorker], question: messages.PredictLlm) -> messages.FromWorker:
    child.channel.send(question)
    answer = child.channel.receive(WAIT_MAX_MS)
    assert getattr(answer, "serial", None) == question.serial
    return answer


def test_every_count_of_layers_is_foretold(
    predictor: Child[messages.FromWorker], synthetic_models: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = synthetic_models("llama-tiny")
    with VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=1 * GIB)) as card:
        question = messages.PredictLlm(
            serial=7,
            path=str(folder / "llama-tiny.gguf"),
            device="VCARD0",
            ledger_path=str(card.path),
            projector_path=str(folder / "llama-tiny-mmproj.gguf"),
            context_tokens_count=1024,
            slots_count=2,
        )
        answer = asked(predictor, question)
        assert not card.read().processes
    assert isinstance(answer, messages.LlmForetold)
    assert answer.layers_count == 5
    assert len(answer.splits) == 6
    weights = [split.card_weights_bytes for split in answer.splits]
    cache = [split.card_kv_bytes for split in answer.splits]
    # The first layer that goes to the card is the output, which has no cache.
    assert weights[0] == cache[0] == cache[1] == answer.splits[0].card_compute_bytes == 0
    assert weights == sorted(weights)
    assert cache[1:] == [part * cache[-1] // 4 for part in range(5)]
    assert {split.card_kv_bytes + split.ram_kv_bytes for split in answer.splits} == {cache[-1]}
    assert cache[-1] < answer.state_bytes < 2 * cache[-1]
    assert min(answer.projector_weights_bytes, answer.projector_compute_bytes) > 0


def test_layers_can_be_bounded_and_cards_left_out(
    predictor: Child[messages.FromWorker], synthetic_models: Callable[[str], Path]
) -> None:
    path = str(synthetic_models("llama-tiny") / "llama-tiny.gguf")
    plain = asked(predictor, messages.PredictLlm(serial=1, path=path, layers_max=0))
    # Without a ledger a card of CUDA's kind is asked, whatever the name of the real one.
    some = asked(predictor, messages.PredictLlm(serial=2, path=path, device="CUDA0", layers_max=2))
    assert isinstance(plain, messages.LlmForetold)
    assert isinstance(some, messages.LlmForetold)
    assert (plain.layers_count, some.layers_count) == (0, 2)
    assert plain.splits[0].card_compute_bytes == 0 < plain.splits[0].ram_compute_bytes
    assert all(split.card_weights_bytes % (2 << 20) == 0 for split in some.splits)


@pytest.mark.parametrize("broken", ["no header", "half a header", "other shapes", "no vocabulary"])
def test_what_is_no_model_is_refused_and_the_next_question_answered(
    predictor: Child[messages.FromWorker],
    synthetic_models: Callable[[str], Path],
    tmp_path: Path,
    broken: str,
) -> None:
    sound = synthetic_models("llama-tiny") / "llama-tiny.gguf"
    whole = sound.read_bytes()
    path = tmp_path / "broken.gguf"
    path.write_bytes(
        {
            "no header": b"GGUF" + b"\xff" * 400,
            "half a header": whole[:9_000],
            "other shapes": whole.replace(FEED_FORWARD + b"\0\x02", FEED_FORWARD + b"\0\x03"),
            "no vocabulary": whole.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.madel"),
        }[broken]
    )
    answer = asked(predictor, messages.PredictLlm(serial=1, path=str(path), device="CUDA0"))
    assert isinstance(answer, messages.Refused)
    assert answer.fault in (FaultKind.INVALID_MODEL, FaultKind.ENGINE)
    assert answer.message
    after = asked(predictor, messages.PredictLlm(serial=2, path=str(sound), device="CUDA0", layers_max=1))
    assert isinstance(after, messages.LlmForetold)


def test_a_projector_that_would_end_the_engine_ends_only_the_oracle(
    predictor: Child[messages.FromWorker], synthetic_models: Callable[[str], Path], tmp_path: Path
) -> None:
    """The engine takes it, and touches the missing matrix when it encodes: in a child that serves, once."""
    folder = synthetic_models("qwen2vl-tiny")
    sound = (folder / "qwen2vl-tiny-mmproj.gguf").read_bytes()
    broken = tmp_path / "broken-mmproj.gguf"
    broken.write_bytes(sound.replace(b"v.blk.0.attn_k.weight", b"v.blk.0.attn_x.weight"))
    question = messages.PredictLlm(
        serial=1,
        path=str(folder / "qwen2vl-tiny.gguf"),
        projector_path=str(broken),
        device="CUDA0",
        layers_max=1,
        image_tokens_max=64,
    )
    answer = asked(predictor, question)
    assert isinstance(answer, messages.Refused)
    assert answer.fault is FaultKind.ENGINE
    whole = str(folder / "qwen2vl-tiny-mmproj.gguf")
    after = asked(predictor, msgspec.structs.replace(question, serial=2, projector_path=whole))
    assert isinstance(after, messages.LlmForetold)
    assert after.projector_compute_bytes > 0


def test_the_death_of_the_oracle_is_not_the_predictors(
    predictor: Child[messages.FromWorker], synthetic_models: Callable[[str], Path]
) -> None:
    path = str(synthetic_models("llama-tiny") / "llama-tiny.gguf")
    question = messages.PredictLlm(serial=1, path=path, layers_max=0)
    first = asked(predictor, question)
    (oracle,) = psutil.Process(predictor.pid).children()
    oracle.kill()
    assert asked(predictor, question) == first
    (other,) = psutil.Process(predictor.pid).children()
    assert other.pid != oracle.pid


def test_the_oracle_dies_with_the_predictor(
    predictor: Child[messages.FromWorker], synthetic_models: Callable[[str], Path]
) -> None:
    path = str(synthetic_models("llama-tiny") / "llama-tiny.gguf")
    asked(predictor, messages.PredictLlm(serial=1, path=path, layers_max=0))
    (oracle,) = psutil.Process(predictor.pid).children()
    predictor.end()
    psutil.wait_procs([oracle], timeout=WAIT_MAX_MS / 1000)
    assert not oracle.is_running() or oracle.status() == psutil.STATUS_ZOMBIE
