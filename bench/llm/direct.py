"""The engine called directly, without any of our processes: what the house's figures are compared with.

    python direct.py MODEL CONTEXT SLOTS TOKENS PROMPT_TOKENS

One thread, the same shape of context and the same sampler as the house's child. Prints one line of JSON:
milliseconds of loading, of making a context, of a prompt up to its first token; tokens per second and CPU per
token of SLOTS streams side by side. TOKENS 0 leaves the streams out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any  # what the bindings hand out

from tidegate_engines import llama

BATCH = 256
ROUNDS = 7


def main() -> None:
    path, context_count, slots, tokens, prompt = sys.argv[1], *map(int, sys.argv[2:6])
    api = llama.bindings()
    llama.log()
    shape = llama.Shape(
        n_ctx=context_count * slots,
        n_batch=BATCH,
        n_ubatch=BATCH,
        n_seq_max=slots,
        n_outputs_max=max(slots, 32),
        kv_unified=False,
        repack=True,
        n_gpu_layers=0,
        devices=(),
    )
    began = time.perf_counter()
    model_parameters = shape.model_parameters()
    model = api.llama_model_load_from_file(path.encode(), model_parameters)
    load_ms = (time.perf_counter() - began) * 1000
    parameters = shape.context_parameters()
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.no_perf = True
    contexts_ms = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        context = api.llama_init_from_model(model, parameters)
        contexts_ms.append((time.perf_counter() - began) * 1000)
        api.llama_free(context)
    context = api.llama_init_from_model(model, parameters)
    prompts_ms = [first_token_ms(api, context, prompt) for _ in range(ROUNDS)]
    rates = [stream(api, context, slots, tokens) for _ in range(2 if tokens else 0)]
    told = {
        "load_ms": load_ms,
        "context_ms": statistics.median(contexts_ms),
        "first_context_ms": contexts_ms[0],
        "prompt_ms": statistics.median(prompts_ms),
        "first_prompt_ms": prompts_ms[0],
    }
    if rates:
        told |= {"tokens_per_s": max(rate for rate, _ in rates), "cpu_us": min(cpu for _, cpu in rates)}
    print(json.dumps(told), flush=True)


def first_token_ms(api: Any, context: Any, count: int) -> float:
    began = time.perf_counter()
    clear(api, context)
    done = 0
    while done < count:
        step = min(BATCH, count - done)
        compute(api, context, [(300 + n % 500, done + n, 0, done + n == count - 1) for n in range(step)])
        done += step
    chain = sampler(api)
    api.llama_sampler_sample(chain, context, step - 1)
    api.llama_sampler_free(chain)
    return (time.perf_counter() - began) * 1000


def stream(api: Any, context: Any, slots: int, tokens: int) -> tuple[float, float]:
    clear(api, context)
    chains = [sampler(api) for _ in range(slots)]
    last = [300 + slot for slot in range(slots)]
    began, began_cpu = time.perf_counter(), time.process_time()
    for position in range(tokens):
        compute(api, context, [(last[slot], position, slot, True) for slot in range(slots)])
        for slot in range(slots):
            last[slot] = api.llama_sampler_sample(chains[slot], context, slot)
    took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    for chain in chains:
        api.llama_sampler_free(chain)
    return slots * tokens / took, took_cpu * 1e6 / (slots * tokens)


def sampler(api: Any) -> Any:
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    for made in (
        api.llama_sampler_init_top_k(40),
        api.llama_sampler_init_top_p(0.95, 1),
        api.llama_sampler_init_min_p(0.05, 1),
        api.llama_sampler_init_temp(0.8),
        api.llama_sampler_init_dist(7),
    ):
        api.llama_sampler_chain_add(chain, made)
    return chain


def clear(api: Any, context: Any) -> None:
    api.llama_memory_clear(api.llama_get_memory(context), False)


def compute(api: Any, context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
    if not _made:
        _made.append(api.llama_batch_init(BATCH, 0, 1))
    batch = _made[0]
    for n, (token, position, slot, is_output) in enumerate(rows):
        batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, position, 1
        batch.seq_id[n][0], batch.logits[n] = slot, is_output
    batch.n_tokens = len(rows)
    assert api.llama_decode(context, batch) == 0
    api.llama_synchronize(context)


_made: list[Any] = []

if __name__ == "__main__":
    main()
