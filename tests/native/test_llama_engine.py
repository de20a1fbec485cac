"""The language engine as it is installed: bindings, log, the virtual card as its plugin, its program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from tidegate_engines import llama

from llama_process import LlamaProcess
from tidegate.core.quantity import MIB
from tidegate.runtime.cards.virtual import Preset, VirtualCard, VirtualSpec

TEXTS = """
model = load(arguments["model"], shape(n_gpu_layers=arguments["layers"]))
context = context_of(model, shape(n_gpu_layers=arguments["layers"]))
answer = greedy(model, context, tokens_of(model, "the lighthouse at dusk"), 24)
say(answer=answer, text=b"".join(piece(model, token) for token in answer).decode())
engine.llama_free(context)
engine.llama_model_free(model)
say(freed=True)
"""


@pytest.fixture(scope="module")
def tiny(synthetic_models: Callable[[str], Path]) -> Path:
    return synthetic_models("llama-tiny") / "llama-tiny.gguf"


def test_a_text_on_the_virtual_card_is_the_text_on_the_cpu(tiny: Path, tmp_path: Path) -> None:
    with LlamaProcess(TEXTS, model=str(tiny), layers=0) as plain:
        on_cpu = next(iter(plain))
    spec = VirtualSpec(capacity_bytes=64 * MIB, flags=3)
    with (
        VirtualCard.create_in(tmp_path, spec) as card,
        LlamaProcess(TEXTS, model=str(tiny), layers=5, ledger=str(card.path)) as engine,
    ):
        said = iter(engine)
        on_card = next(said)
        held = card.read().row_of(engine.pid)
        assert held is not None
        assert held.held_bytes() > tiny.stat().st_size // 2
        assert next(said) == {"freed": True}
        after = card.read().row_of(engine.pid)
        assert after is not None
        assert after.held_bytes() == 0
        assert list(said) == []
    assert on_card == on_cpu
    assert len(set(on_card["answer"])) > 8, "a text of few words says little about equality"
    assert re.fullmatch(r"[ -~\n]+", on_card["text"])


def test_the_tokenizer_takes_any_text(tiny: Path) -> None:
    script = """
model = load(arguments["model"], shape())
for text in arguments["texts"]:
    tokens = tokens_of(model, text)
    say(back=b"".join(piece(model, token) for token in tokens).decode(), count=len(tokens))
"""
    texts = [
        "the lighthouse at dusk",
        "<|im_start|>user\nhello<|im_end|>\n",
        "größer, 雪 and 🏠\n\ttabs",
        '{"a": [1, 2]}',
    ]
    with LlamaProcess(script, model=str(tiny), texts=texts) as engine:
        answers = list(engine)
    assert [said["back"] for said in answers] == texts
    assert answers[0]["count"] == 6  # "the" has no blank before it, and is two tokens for that


def test_a_refusal_has_the_engines_words(tmp_path: Path) -> None:
    script = """
model = load(arguments["model"], shape())
say(model=bool(model), reason=said.reason())
"""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 16)
    with LlamaProcess(script, model=str(broken)) as engine:
        answer = engine.only()
    assert answer["model"] is False
    assert answer["reason"]


LEDGERS = """
try:
    say(cards=llama.attach_virtual_card(arguments["second"]))
except llama.UnusableLedger as refusal:
    say(refused=str(refusal))
say(devices=[[device.name, device.kind, device.total_bytes] for device in llama.devices()])
"""


def test_one_ledger_for_a_process(tmp_path: Path) -> None:
    spec = VirtualSpec(capacity_bytes=64 * MIB, preset=Preset.CUDA)
    with (
        VirtualCard.create_in(tmp_path, spec) as first,
        VirtualCard.create_in(tmp_path, spec) as other,
        LlamaProcess(LEDGERS, ledger=str(first.path), second=str(first.path)) as again,
        LlamaProcess(LEDGERS, ledger=str(first.path), second=str(other.path)) as elsewhere,
    ):
        assert list(again) == [
            {"cards": ["VCARD0"]},
            {"devices": [["CPU", "cpu", pytest.approx(0, abs=2**50)], ["VCARD0", "gpu", 64 * MIB]]},
        ]
        assert "already" in next(iter(elsewhere))["refused"]


def test_a_hollow_card_takes_no_memory(tiny: Path) -> None:
    script = """
import resource
cards = llama.attach_hollow_card()
held = {}
for tokens in (512, 1 << 20):
    rows = llama.predict(arguments["model"], shape(n_ctx=tokens, devices=tuple(cards)))
    held[tokens] = sum(row.charged_bytes for row in rows if row.on_card)
say(small=held[512], large=held[1 << 20], own=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    free=[device.total_bytes - device.free_bytes for device in llama.devices() if device.name in cards])
"""
    with LlamaProcess(script, model=str(tiny)) as engine:
        said = engine.only()
    assert said["large"] > 2048 * MIB > 64 * MIB > said["small"]
    assert said["own"] < 512 * MIB
    assert said["free"] == [0]


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    script = """
try:
    llama.attach_virtual_card(arguments["path"])
except llama.UnusableLedger as refusal:
    say(refused=str(refusal))
"""
    with LlamaProcess(script, path=str(tmp_path / "none")) as engine:
        assert "cannot be opened" in engine.only()["refused"]


def test_the_two_engines_never_share_a_process() -> None:
    script = """
from tidegate_engines import sdstage, llama
try:
    llama.bindings()
except llama.WrongProcess as refusal:
    print(refusal)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "never share" in done.stdout


def test_a_schema_becomes_a_grammar() -> None:
    script = r"""
for schema in arguments["schemas"]:
    try:
        say(grammar=llama.json_schema_to_gbnf(schema))
    except ValueError as refusal:
        say(refused=str(refusal))
"""
    sound = '{"type": "object", "properties": {"a": {"type": "string", "pattern": "^x\\\\d$"}}}'
    with LlamaProcess(script, schemas=[sound, "{", '{"$ref": "#/none"}']) as engine:
        grammar, broken, dangling = list(engine)
    assert grammar["grammar"].count("root ::=") == 1
    assert broken["refused"]
    assert dangling["refused"]


def test_the_stock_server_takes_the_virtual_card(tiny: Path, tmp_path: Path) -> None:
    with VirtualCard.create_in(tmp_path, VirtualSpec(capacity_bytes=64 * MIB)) as card:
        options = f"--device VCARD0 -ngl 99 --fit off -m {tiny} -c 512 -np 1 -t 1 --no-warmup"
        command = [str(llama.program("llama-server")), *options.split(), "--host", str(tmp_path / "x.sock")]
        environment = {
            **os.environ,
            "GGML_BACKEND_PATH": str(llama.card_plugin()),
            "TIDEGATE_VCARD_LEDGER": str(card.path),
        }
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as server:
            assert server.stdout is not None
            said = list(until(server.stdout, "listening"))
            row = card.read().row_of(server.pid)
            server.kill()
    assert row is not None, "".join(said)
    assert row.held_bytes() > tiny.stat().st_size // 2


def until(lines: Iterable[str], word: str) -> Iterator[str]:
    for line in lines:
        yield line
        if word in line:
            return


def test_the_stock_server_knows_itself() -> None:
    done = subprocess.run(
        [llama.program("llama-server"), "--version"], capture_output=True, text=True, check=True
    )
    assert "version" in done.stdout + done.stderr
    with pytest.raises(FileNotFoundError, match="llama-none"):
        llama.program("llama-none")
