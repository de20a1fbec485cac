"""Language models: levels, first tokens and rates of our processes, beside the engine called directly and the
stock server of the same sources, on one thread each.

A front and a child as the server starts them, without the server; what HTTP adds is measured by bench/http.
Writes speed.md; ends with 1 when a bound does not hold.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stock import Stock, program
from table import write_page

from llm_house import LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks
from tidegate.wire.llm_child import Evaluation, OpenLlm

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
CONTEXT, SLOTS, TOKENS, PROMPT = 1024, 4, 200, 500
# What a message after the others adds: here our own share is not lost in the engine's second.
SHORT_PROMPT = 32
ROUNDS = 3
RATE_MIN, LEVEL_MAX, COLD_MAX, COLD_EXTRA_MS = 0.95, 1.25, 1.25, 100.0
FIRST_TOKEN_EXTRA_MS, CPU_EXTRA_US = 5.0, 150.0
Rows = list[list[str]]


def model() -> Path:
    """157 MB of f16 weights, random, made once."""
    command = [sys.executable, str(TREE / "scripts" / "demo_models.py"), "llama-100m"]
    told = subprocess.run(command, cwd=TREE, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return next(path for path in Path(told).glob("*.gguf") if "mmproj" not in path.name)


def direct(path: Path, slots: int, *, tokens: int = 0, prompt_count: int = PROMPT) -> dict[str, float]:
    """The engine alone, at the moment at which it is asked; with `tokens`, its streams too."""
    figures = [str(CONTEXT), str(slots), str(tokens), str(prompt_count)]
    command = [sys.executable, str(HERE / "direct.py"), str(path), *figures]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    found: dict[str, float] = json.loads(told)
    return found


def cpu_s(pid: int) -> float:
    """Seconds that all threads of a process have computed, finer than the ticks of its usual figures."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def order(path: Path, evaluation: Evaluation, **changes: object) -> OpenLlm:
    given = {"context_tokens_count": CONTEXT, "slots_count": SLOTS, "batch_tokens_count": 256}
    return order_for(path, evaluation=evaluation, proves_restores=False, **{**given, **changes})


def prompt(number: int, count: int) -> tuple[int, ...]:
    """Tokens that no other number's prompt begins with."""
    return (300 + number % 1000, *(301 + (n * 7 + number) % 900 for n in range(count - 1)))


def ask(house: LlmHouse, name: str, count: int, tokens: int) -> None:
    sampling = asks.Sampling(seed=len(house.heard), tokens_max=tokens, ignore_eos=True)
    accepted = house.ask(name, asks.Completion(prompt=prompt(len(house.heard), count), sampling=sampling))
    assert isinstance(accepted, asks.Accepted), accepted


def rate(house: LlmHouse, streams: int) -> tuple[float, float]:
    """Tokens per second of this many streams, and CPU microseconds per token of front and child."""
    assert house.child is not None
    pids = (house.child.pid, house.front.pid)
    names = [f"rate {len(house.heard) + n}" for n in range(streams)]
    before, began = sum(map(cpu_s, pids)), time.perf_counter()
    for name in names:
        ask(house, name, 2, TOKENS)
    house.answered(*names)
    took, used = time.perf_counter() - began, sum(map(cpu_s, pids)) - before
    return streams * TOKENS / took, used * 1e6 / (streams * TOKENS)


def rates(path: Path) -> tuple[Rows, bool]:
    """Both modes and the stock server, in turns, so that what disturbs one disturbs all."""
    found, rows, holds = program(), [], True
    for streams in (1, SLOTS):
        alone = direct(path, streams, tokens=TOKENS)
        ours: dict[Evaluation, list[tuple[float, float]]] = {mode: [] for mode in Evaluation}
        stock: list[float] = []
        for _ in range(ROUNDS):
            for mode in Evaluation:
                with LlmHouse(order(path, mode)) as house:
                    house.start_child()
                    house.set_level(Level.HOT, layers=0)
                    rate(house, streams)
                    ours[mode].append(rate(house, streams))
            if found is not None:
                with Stock(found, path, slots=SLOTS, context_count=CONTEXT) as server:
                    server.rate(streams, 20)
                    stock.append(server.rate(streams, TOKENS))
        plain = max(speed for speed, _ in ours[Evaluation.THROUGHPUT])
        fixed = max(speed for speed, _ in ours[Evaluation.REPRODUCIBLE])
        extra_us = min(cpu for _, cpu in ours[Evaluation.THROUGHPUT]) - alone["cpu_us"]
        named = f"{streams} streams" if streams > 1 else "1 stream"
        best = max(stock, default=0.0)
        beside = f"stock llama-server {best:.0f}" if stock else "no llama-server was built"
        ratio = f"{plain / best:.2f} of stock" if stock else "-"
        rows.append([f"{named}, throughput, tokens/s", f"{plain:.0f}", beside, ratio])
        rows.append(
            [f"{named}, reproducible, tokens/s", f"{fixed:.0f}", beside, f"{fixed / plain:.2f} of ours"]
        )
        over = f"{extra_us:.0f} µs more"
        rows.append(
            [
                f"{named}, CPU per token, µs",
                f"{alone['cpu_us'] + extra_us:.0f}",
                f"engine {alone['cpu_us']:.0f}",
                over,
            ]
        )
        holds = holds and (not stock or plain >= RATE_MIN * best) and extra_us <= CPU_EXTRA_US
    return rows, holds


def memory_ms(count: int) -> float:
    """Copying this many bytes once, at the speed of this machine's memory."""
    source, target = np.ones(count, dtype=np.uint8), np.zeros(count, dtype=np.uint8)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        took.append((time.perf_counter() - began) * 1000)
    return min(took)


def back_to_hot(path: Path) -> tuple[Rows, bool]:
    """WARM to HOT until every stream's state is restored; with idle conversations kept beside them too."""
    rows: Rows = []
    holds = True
    with LlmHouse(order(path, Evaluation.THROUGHPUT)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        for streams, idle in ((1, 0), (SLOTS, 0), (1, 24)):
            for number in range(idle):
                ask(house, f"idle {number}", 100, 2)
            house.answered(*(f"idle {number}" for number in range(idle)))
            names = [f"back {streams} {idle} {n}" for n in range(streams)]
            for name in names:
                ask(house, name, PROMPT, CONTEXT - PROMPT - 10)
            until_all(house, lambda name: bool(house.heard[name].ids), names)
            took, contexts = [], []
            for _ in range(ROUNDS):
                state_bytes, turns = brought_back(house, names)
                took += turns
                house.set_level(Level.WARM, layers=0)  # It rests while the engine is measured beside it.
                contexts.append(direct(path, SLOTS, prompt_count=1)["context_ms"])
                house.set_level(Level.HOT, layers=0)
            for name in names:
                house.drop(name)
            context_ms, copy_ms = statistics.median(contexts), memory_ms(state_bytes)
            base, back_ms = context_ms + copy_ms, statistics.median(took)
            told = f"WARM to HOT, {streams} streams, {state_bytes >> 20} MiB, {idle} idle kept, ms"
            beside = f"context {context_ms:.1f} + copy {copy_ms:.1f}"
            rows.append([told, f"{back_ms:.1f}", beside, f"{back_ms / base:.2f} times"])
            holds = holds and back_ms <= LEVEL_MAX * base
    return rows, holds


def brought_back(house: LlmHouse, names: list[str]) -> tuple[int, list[float]]:
    """Bytes of the state, and the milliseconds of some ways from WARM to HOT."""
    took = []
    for _ in range(5):
        warm = house.set_level(Level.WARM, layers=0)
        house.working.clear()
        began = time.perf_counter()
        house.set_level(Level.HOT, layers=0)
        until_all(house, lambda name: name in house.working, names)
        took.append((time.perf_counter() - began) * 1000)
    return warm.state_bytes, took


def until_all(house: LlmHouse, holds: Callable[[str], bool], names: list[str]) -> None:
    """Hear the house until this holds for each of the requests."""
    house.until(lambda: all(holds(name) for name in names))


def from_cold(path: Path) -> tuple[Rows, bool]:
    """COLD to the first token of a fresh prompt, from a process that waits as standby."""
    took = []
    alone = direct(path, SLOTS)
    with LlmHouse(order(path, Evaluation.THROUGHPUT)) as house:
        for number in range(4):
            house.wait_for_child()
            ask(house, f"cold {number}", PROMPT, 2)
            began = time.perf_counter()
            house.open_child()
            house.set_level(Level.HOT, layers=0)
            until_all(house, lambda name: bool(house.heard[name].ids), [f"cold {number}"])
            took.append((time.perf_counter() - began) * 1000)
            house.answered(f"cold {number}")
            house.end_child()
    base = alone["load_ms"] + alone["first_context_ms"] + alone["first_prompt_ms"]
    told = f"engine {base:.0f} (load {alone['load_ms']:.0f}, context, prompt of {PROMPT})"
    row = ["COLD to the first token, ms", f"{min(took):.0f}", told, f"{min(took) / base:.2f} times"]
    return [row], min(took) <= COLD_MAX * base + COLD_EXTRA_MS


def first_tokens(path: Path, count: int) -> tuple[Rows, bool]:
    """HOT and idle: from the ask to the first token, beside the prompt alone, in turns."""
    took, alone = [], []
    with LlmHouse(order(path, Evaluation.THROUGHPUT)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        for number in range(ROUNDS * 7):
            if number % 7 == 0:
                alone.append(direct(path, SLOTS, prompt_count=count)["prompt_ms"])
            began = time.perf_counter()
            ask(house, f"first {number}", count, 2)
            until_all(house, lambda name: bool(house.heard[name].ids), [f"first {number}"])
            took.append((time.perf_counter() - began) * 1000)
            house.answered(f"first {number}")
    p50, engine_ms = statistics.median(took), statistics.median(alone)
    extra = p50 - engine_ms
    told = f"engine {engine_ms:.1f}"
    row = [f"first token of a prompt of {count}, p50, ms", f"{p50:.1f}", told, f"{extra:+.1f} ms"]
    return [row], extra <= FIRST_TOKEN_EXTRA_MS


def main() -> int:
    path = model()
    rows: Rows = []
    holds = True
    for part, held in (
        rates(path),
        back_to_hot(path),
        from_cold(path),
        first_tokens(path, SHORT_PROMPT),
        first_tokens(path, PROMPT),
    ):
        rows += part
        holds = holds and held
    text = (
        f"{path.stat().st_size >> 20} MiB of f16 weights on the CPU, one thread, {SLOTS} slots of {CONTEXT}"
        f" tokens, f16 cache, answers of {TOKENS} tokens. Bounds: rate {RATE_MIN} of stock, WARM to HOT"
        f" {LEVEL_MAX} times context and copy, COLD {COLD_MAX} times the engine + {COLD_EXTRA_MS:.0f} ms,"
        f" first token +{FIRST_TOKEN_EXTRA_MS:.0f} ms, CPU +{CPU_EXTRA_US:.0f} µs. "
        + ("All of them hold." if holds else "Not all of them hold.")
    )
    write_page(
        HERE / "speed.md", "Language models", text=text, head=["what", "ours", "beside", "ratio"], rows=rows
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
