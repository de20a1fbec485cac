"""One sample of every message, for the golden file and the fuzzer.

A new message needs a sample here and a line in golden.txt; `test_messages` says so when one is missing.
"""

from __future__ import annotations

from tidegate.core.stage import Component, DecodeMode, Execution, Placement, Stage
from tidegate.wire import messages
from tidegate.wire.messages import FaultKind

REQUEST = messages.ImageRequest(
    prompt="a lighthouse at dusk, ünïcödé",
    negative="fog",
    width=64,
    height=128,
    steps=4,
    seed=7,
    sampler="euler_a",
)
TILED = Execution(Placement.CARD, DecodeMode.TILED, 32)
STREAMED = Execution(Placement.STREAM, budget_bytes=1 << 28)

TO_WORKER: tuple[messages.ToWorker, ...] = (
    messages.Survey(serial=1, ledger_path="/run/user/0/card.vcard"),
    messages.Open(
        serial=2, files={"model": "/m/sd.safetensors", "vae": "/m/vae.safetensors"}, device="VCARD0"
    ),
    messages.Predict(serial=3, stage=Stage.DECODE, request=REQUEST, execution=TILED),
    messages.PredictLlm(
        serial=9,
        path="/m/chat.gguf",
        device="VCARD0",
        ledger_path="/run/user/0/card.vcard",
        projector_path="/m/mmproj.gguf",
        slots_count=4,
        kv_type_k="q8_0",
        image_tokens_max=1024,
    ),
    messages.Load(serial=4, component=Component.DIFFUSION, execution=STREAMED, encoder=False),
    messages.Release(serial=5, component=Component.TEXT_ENCODER),
    messages.RunStage(
        serial=6,
        stage=Stage.DENOISE,
        request=REQUEST,
        execution=STREAMED,
        inputs={"embeddings": "/s/embeddings.safetensors"},
        output="/s/latent-7.safetensors",
        tape="/s/tape-7",
        fingerprint={"job": "0123"},
        previews=True,
    ),
    messages.Measure(serial=7, resets_peaks=True),
    messages.Cancel(serial=6),
    messages.Ping(serial=8),
    messages.Shutdown(),
)

FROM_WORKER: tuple[messages.FromWorker, ...] = (
    messages.Hello(version=messages.WIRE_VERSION, engine_build="build", pid=4711),
    messages.Surveyed(
        serial=1,
        devices=(
            messages.DeviceFacts(
                name="VCARD0", description="virtual", type="gpu", total_bytes=3 << 30, free_bytes=2 << 30
            ),
        ),
        attached=("VCARD0",),
    ),
    messages.Opened(
        serial=2,
        family="SD 1.x",
        components={"vae": messages.ComponentFacts(tensor_count=248, file_bytes=99, types={"f16": 248})},
        latent_channels=4,
        latent_factor=8,
        size_multiple=64,
        device="VCARD0",
        default_sampler="euler_a",
        samplers=("euler", "euler_a"),
        schedulers=("karras",),
    ),
    messages.FootprintPredicted(
        serial=3, weights_bytes=100, compute_bytes=20, card_peak_bytes=120, ram_peak_bytes=0
    ),
    messages.LlmForetold(
        serial=9,
        layers_count=1,
        splits=tuple(
            messages.SplitFacts(
                card_weights_bytes=layers << 20,
                card_kv_bytes=layers << 10,
                card_compute_bytes=layers << 12,
                ram_weights_bytes=1 << 19,
                ram_kv_bytes=(1 - layers) << 10,
                ram_compute_bytes=1 << 12,
            )
            for layers in (0, 1)
        ),
        state_bytes=1 << 10,
        projector_weights_bytes=1 << 16,
        projector_compute_bytes=1 << 15,
    ),
    messages.Refused(serial=3, fault=FaultKind.INVALID_MODEL, message="tensor x is missing"),
    messages.Loaded(serial=4, component=Component.DIFFUSION, ms=12, card_bytes=0, ram_bytes=100),
    messages.Released(serial=5, component=Component.TEXT_ENCODER, card_bytes=0, ram_bytes=0),
    messages.Measured(serial=7, card_free_bytes=5, card_total_bytes=9, card_bytes=4, ram_bytes=0),
    messages.Progress(
        serial=6,
        stage=Stage.DENOISE,
        step=1,
        steps=4,
        card_bytes=77,
        preview_width=2,
        preview_height=1,
        preview=b"\x01\x02\x03\x04\x05\x06",
    ),
    messages.StageFinished(
        serial=6,
        stage=Stage.DENOISE,
        artifact="/s/latent-7.safetensors",
        sha256="ab" * 32,
        ms=900,
        card_peak_bytes=120,
        ram_peak_bytes=0,
        storage_error="",
    ),
    messages.StageFailed(
        serial=6, fault=FaultKind.OUT_OF_MEMORY, message="refused", card_peak_bytes=1, ram_peak_bytes=2
    ),
    messages.Pong(serial=8),
)
