"""Language models foretold and observed on a virtual card, for the test and the benchmark of predictions.

Owns the cases and the two processes: one that asks hollow cards, one that loads and computes. What must hold
of the figures is said by who uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # what JSON carries

from llama_process import LlamaProcess
from tidegate.core.quantity import GIB
from tidegate.runtime.cards.virtual import Preset, VirtualCard, VirtualSpec


@dataclass(frozen=True)
class Case:
    """One configuration: the model's kind, the shape, and the image that is shown to its projector."""

    kind: str = "llama-tiny"
    shape: dict[str, Any] = field(default_factory=dict)
    image_px: tuple[int, int] | None = None
    preset: Preset = Preset.EXACT


CASES = {
    "all layers": Case(shape={"n_gpu_layers": 5}),
    "the output alone": Case(shape={"n_gpu_layers": 1}),
    "partial": Case(shape={"n_gpu_layers": 3, "n_ctx": 4096}),
    "none": Case(shape={"n_gpu_layers": 0}),
    "q8_0 weights, q8_0 cache": Case("llama-tiny:q8_0", {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
    "q4_K weights, q4_0 cache, partial": Case(
        "llama-tiny:q4_K", {"kv_type_k": "q4_0", "kv_type_v": "q4_0", "n_gpu_layers": 2}
    ),
    "without flash attention": Case(shape={"flash_attention": False, "n_ctx": 1024}),
    "four slots of their own": Case(shape={"n_seq_max": 4, "n_ctx": 4096, "n_batch": 256, "n_ubatch": 256}),
    "four slots in one pool": Case(
        shape={"n_seq_max": 4, "n_ctx": 4096, "kv_unified": True, "n_outputs_max": 32, "n_ubatch": 128}
    ),
    "rounded up as on CUDA": Case(shape={"n_gpu_layers": 3}, preset=Preset.CUDA),
    "a sliding window, rounded up": Case("cohere2-tiny", {"n_ctx": 4096}, preset=Preset.CUDA),
    "convolutions, four slots": Case(
        "lfm2-tiny", {"n_seq_max": 4, "n_ctx": 4096, "n_gpu_layers": 4, "kv_unified": True}
    ),
    "a projector of one size": Case(image_px=(300, 200)),
    "a projector of any size": Case("qwen2vl-tiny", {"n_gpu_layers": 2}, image_px=(500, 260)),
}

FORETELL = """
cards = llama.attach_hollow_card(arguments["like"])
rows = llama.predict(arguments["model"], shape(devices=tuple(cards), **arguments["shape"]))
told = {purpose: sum(row.charged_bytes for row in rows if row.on_card and row.purpose == purpose)
        for purpose in ("weights", "kv", "compute")}
if arguments["image_px"]:
    projection = llama.predict_projector(
        arguments["projector"], model=arguments["model"], card=cards[0],
        sizes_px=[arguments["image_px"]])
    told |= {"projector": projection.weights_bytes, "image": projection.compute_bytes}
say(**told)
"""

OBSERVE = """
wanted = shape(**arguments["shape"])
model = load(arguments["model"], wanted)
say(step="weights")
context = context_of(model, wanted)
assert context, said.reason()
say(step="context")
for count in (wanted.n_ubatch, 7, 1):
    assert decode(context, [5] * min(count, wanted.n_ctx // wanted.n_seq_max - 8)) == 0, said.reason()
    engine.llama_memory_clear(engine.llama_get_memory(context), True)
held = llama.holdings(context)[0]
say(step="computed", holdings=[held.weights_bytes, held.kv_bytes, held.compute_bytes])
if arguments["image_px"]:
    vision = llama.vision_bindings()
    parameters = llama.projector_parameters(device=cards[0])
    projector = vision.mtmd_init_from_file(arguments["projector"].encode(), model, parameters)
    assert projector, said.reason()
    say(step="projector")
    width, height = arguments["image_px"]
    pixels = (ctypes.c_uint8 * (width * height * 3))(*range(200))
    part = vision.mtmd_input_part(bitmap=vision.mtmd_bitmap_init(width, height, pixels))
    parts = (ctypes.POINTER(vision.mtmd_input_part) * 1)(ctypes.pointer(part))
    chunks = vision.mtmd_input_chunks_init()
    assert vision.mtmd_tokenize_from_parts(projector, chunks, parts, 1, False) == 0
    for position in range(vision.mtmd_input_chunks_size(chunks)):
        chunk = vision.mtmd_input_chunks_get(chunks, position)
        if vision.mtmd_input_chunk_get_type(chunk) == 1:
            assert vision.mtmd_encode_chunk(projector, chunk) == 0, said.reason()
    say(step="image")
"""


@dataclass(frozen=True)
class Compared:
    """Bytes by part, as foretold and as the ledger showed them, and what the asking itself left there."""

    told: dict[str, int]
    seen: dict[str, int]
    holdings: list[int]
    asking_bytes: int


def compared(case: Case, synthetic_models: Callable[[str], Path], folder: Path) -> Compared:
    """Ask, then do, on a virtual card in this folder."""
    home = synthetic_models(case.kind)
    title = case.kind.replace(":", "-")
    files = {
        "model": str(home / f"{title}.gguf"),
        "projector": str(home / f"{title}-mmproj.gguf"),
        "shape": case.shape,
        "image_px": case.image_px,
    }
    spec = VirtualSpec(capacity_bytes=2 * GIB, preset=case.preset)
    with VirtualCard.create_in(folder, spec) as card:
        with LlamaProcess(FORETELL, like=str(card.path), **files) as oracle:
            told = oracle.only()
        asking_bytes = sum(row.held_bytes() for row in card.read().processes)
        steps: dict[str, int] = {}
        holdings: list[int] = []
        with LlamaProcess(OBSERVE, ledger=str(card.path), **files) as engine:
            for step in engine:
                row = card.read().row_of(engine.pid)
                steps[step["step"]] = 0 if row is None else row.holdings[0].buffers_bytes
                holdings = step.get("holdings", holdings)
    return Compared(told, _by_part(steps), holdings, asking_bytes)


def _by_part(steps: dict[str, int]) -> dict[str, int]:
    """What each step added; the context's two parts come together."""
    seen = {"weights": steps["weights"], "context": steps["context"] - steps["weights"]}
    seen["computing"] = steps["computed"] - steps["context"]
    if "image" in steps:
        seen["projector"] = steps["projector"] - steps["computed"]
        seen["image"] = steps["image"] - steps["projector"]
    return seen
