"""One sample of every message of the language models' three conversations, for the golden file."""

from __future__ import annotations

from tidegate.core.llm.level import Level
from tidegate.wire import asks, llm_child, llm_front, llm_link, messages
from tidegate.wire.messages import FaultKind

HELLO = messages.Hello(version=messages.WIRE_VERSION, engine_build="build", pid=4711)
NOTE = llm_link.StateNote(
    tokens_count=300, position=300, state_bytes=1 << 20, fingerprint="ab12", digest="cd34", slot=2
)

TO_FRONT: tuple[llm_front.ToFront, ...] = (
    llm_front.Furnish(serial=1, ram_bytes=1 << 28, disk_bytes=1 << 30, folder="/state/talk"),
    llm_front.OpenModel(
        serial=2, model="qwen", path="/m/qwen.gguf", context_tokens_count=4096, slots_count=4
    ),
    llm_front.CloseModel(serial=3, model="qwen"),
    llm_front.Attach(model="qwen", worker="llm/qwen", incarnation=3),
    llm_front.Ask(serial=4, request="r1", model="qwen", body=b"\x80", history=(7, 8)),
    llm_front.Serve(request="r1", model="qwen", worker="llm/qwen", incarnation=3),
    llm_front.Drop(serial=5, request="r1"),
    llm_front.FreeStates(serial=9, model="tiny"),
    llm_front.Tokenize(serial=6, model="qwen", text="ünïcödé", adds_special=True),
    llm_front.Detokenize(serial=7, model="qwen", ids=(1, 2)),
    messages.Ping(serial=8),
    messages.Shutdown(),
)
FROM_FRONT: tuple[llm_front.FromFront, ...] = (
    HELLO,
    llm_front.Furnished(serial=1, kept_count=2),
    llm_front.ModelOpened(serial=2, model="qwen", vocabulary_count=1000, context_trained_count=8192),
    llm_front.ModelClosed(serial=3, model="qwen"),
    llm_front.FrontRefused(serial=2, fault=FaultKind.INVALID_MODEL, message="no vocabulary", code="bad"),
    llm_front.Answered(serial=4, request="r1", answer=asks.Accepted(prompt_count=12)),
    llm_front.Said(
        words=(
            llm_front.Word("r1", (asks.Delta(text="hé"),), (7, 8)),
            llm_front.Word("r2", (asks.Ended(finish=asks.Finish.STOP, prompt_count=3),)),
        )
    ),
    llm_front.Working(request="r1", done_count=256, total_count=900),
    llm_front.Failed(
        request="r1", worker="llm/qwen", incarnation=3, fault=FaultKind.OUT_OF_MEMORY, message="refused"
    ),
    llm_front.Dropped(serial=5, request="r1"),
    llm_front.StatesFreed(serial=9, model="tiny"),
    llm_front.Keeping(model="qwen", active_bytes=5, idle_bytes=6, disk_bytes=7),
    llm_front.Tokenized(serial=6, ids=(1, 2), pieces=(b"a", b"\xc3")),
    llm_front.Detokenized(serial=7, text="aé"),
    messages.Pong(serial=8),
)
TO_CHILD: tuple[llm_child.ToChild, ...] = (
    llm_child.OpenLlm(
        serial=1, model="qwen", path="/m/qwen.gguf", device="VCARD0", ledger_path="/l", kv_type_k="q8_0"
    ),
    llm_child.AttachFront(),
    llm_child.SetLevel(serial=2, level=Level.PARTIAL, layers_count=6, card_bytes=1 << 30),
    messages.Ping(serial=3),
    messages.Shutdown(),
)
FROM_CHILD: tuple[llm_child.FromChild, ...] = (
    HELLO,
    llm_child.LlmOpened(serial=1),
    llm_child.LlmRefused(serial=1, fault=FaultKind.UNSUPPORTED, message="no such device"),
    llm_child.LevelReached(
        serial=2,
        level=Level.PARTIAL,
        layers_count=6,
        took_ms=20,
        holdings=(llm_child.Holding(device="VCARD0", weights_bytes=3, kv_bytes=2, compute_bytes=1),),
    ),
    llm_child.LevelFailed(serial=2, fault=FaultKind.OUT_OF_MEMORY, message="the context was refused"),
    messages.Pong(serial=3),
)
TO_ENGINE: tuple[llm_link.ToEngine, ...] = (
    llm_link.Begin(
        stream=9,
        prompt=(llm_link.Ids(llm_link.to_bytes([1, 2, 300])), llm_link.Image("ef56", 64, 48)),
        sampling=asks.Sampling(seed=3, temperature=0.0, logit_bias={5: -1.5}),
        generated=llm_link.to_bytes([4]),
        grammar='root ::= "a"',
        state=NOTE,
        common_count=300,
    ),
    llm_link.Embed(stream=10, tokens=llm_link.to_bytes([1])),
    llm_link.Leave(stream=9),
    llm_link.Kept(handover=2),
)
FROM_ENGINE: tuple[llm_link.FromEngine, ...] = (
    llm_link.Tokens(
        runs=(
            llm_link.Run(9, (5, 6)),
            llm_link.Run(11, (7,), llm_link.Ending.STOP, (llm_link.Likely(-0.5, (7, 8), (-0.5, -2.0)),)),
        )
    ),
    llm_link.Evaluated(stream=9, done_count=256, total_count=300, reused_count=0, prompt_count=290),
    llm_link.Shifted(stream=9, kept_count=4, shifted_count=100),
    llm_link.Snapshot(stream=9, state=NOTE),
    llm_link.Handover(handover=2, history=llm_link.to_bytes([1, 2]), state=NOTE),
    llm_link.Embedded(stream=10, vector=b"\0\0\x80\x3f"),
    llm_link.Declined(stream=9),
    llm_link.Failed(stream=9, fault=FaultKind.OUT_OF_MEMORY, message="refused"),
)
