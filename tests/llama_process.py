"""A process with the language engine in it, for tests: as `engine_process`, with llama.cpp instead.

`model(...)` and `context(...)` in a script take what `llama.Shape` takes; a ledger named in the arguments is
attached before, and `devices` are then its cards.
"""

from __future__ import annotations

from typing import ClassVar

from engine_process import EngineProcess

PRELUDE = """
import ctypes, hashlib, json, os, sys
import numpy as np
from tidegate_engines import llama

arguments = json.loads(sys.argv[1])
engine = llama.bindings()
said = llama.log()
cards = llama.attach_virtual_card(arguments["ledger"]) if "ledger" in arguments else []
engine.llama_backend_init()

def say(**values):
    print(json.dumps(values), flush=True)
    sys.stdin.readline()

def shape(**options):
    options.setdefault("devices", tuple(cards))
    return llama.Shape(**{"n_ctx": 512, **options})

def load(path, wanted):
    said.forget()
    parameters = wanted.model_parameters()
    return engine.llama_model_load_from_file(os.fsencode(path), parameters)

def context_of(model, wanted):
    parameters = wanted.context_parameters()
    parameters.n_threads = parameters.n_threads_batch = 1
    return engine.llama_init_from_model(model, parameters)

def tokens_of(model, text, special=True):
    vocabulary = engine.llama_model_get_vocab(model)
    raw = text.encode()
    found = (engine.llama_token * (len(raw) + 8))()
    count = engine.llama_tokenize(vocabulary, raw, len(raw), found, len(found), True, special)
    return list(found[:count])

def piece(model, token):
    vocabulary = engine.llama_model_get_vocab(model)
    text = ctypes.create_string_buffer(64)
    count = engine.llama_token_to_piece(vocabulary, token, text, len(text), 0, True)
    return text.raw[:count]

def decode(context, tokens):
    held = (engine.llama_token * len(tokens))(*tokens)
    return engine.llama_decode(context, engine.llama_batch_get_one(held, len(tokens)))

def greedy(model, context, tokens, count):
    wanted, answer = list(tokens), []
    vocabulary = engine.llama_model_get_vocab(model)
    for _ in range(count):
        assert decode(context, wanted) == 0, said.reason()
        logits = engine.llama_get_logits_ith(context, -1)
        best = int(np.argmax(np.ctypeslib.as_array(logits, (engine.llama_vocab_n_tokens(vocabulary),))))
        answer.append(best)
        wanted = [best]
    return answer
"""


class LlamaProcess(EngineProcess):
    """Runs a script behind this prelude."""

    prelude: ClassVar[str] = PRELUDE
