"""Generated parts of the explanation pages: telling situations in the planner's own words, and the
lifecycles.

Owns what stands between the markers in docs/explanation/planner.md and arbiter.md. `python -m
tests.core.pages` writes them; a test compares, so that the pages say what the code does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from tidegate.core import guest, lease, worker
from tidegate.core.image import job
from tidegate.core.image.failure import Attempt, Failure
from tidegate.core.image.ladder import climb
from tidegate.core.llm import level, request
from tidegate.core.planner import (
    Concession,
    Room,
    StageFacts,
    StageOption,
    StageQuestion,
    Work,
    YieldClass,
    advise,
    candidates_for,
    option_of,
)
from tidegate.core.planner.option import placed
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Stage

Phase = TypeVar("Phase", bound=StrEnum)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation"
RAM = Room(name="RAM", total_bytes=32 * GIB, free_bytes=20 * GIB, headroom_bytes=GIB)
WORK = Work(latent_height=64, latent_width=64, steps_count=20)
SD15 = {
    Stage.ENCODE: (235, 2),
    Stage.DENOISE: (1640, 123),
    Stage.DECODE: (94, 1664),
}  # MiB: weights, computing.


def options(stage: Stage, *, scale: int = 1) -> tuple[StageOption, ...]:
    """Options of SD1.5 at 512 px with flash attention; `scale` makes a larger model of it."""
    weights, computing = (amount * MIB for amount in SD15[stage])
    weights *= scale
    facts = StageFacts(latent_height=64, latent_width=64, weights_bytes=weights, room_bytes=8 * GIB)
    found = []
    for execution in candidates_for(stage, facts):
        part = execution.tile * execution.tile if execution.tile else 4096
        compute = computing * part // 4096
        footprint = placed(execution, weights_bytes=weights, compute_bytes=compute)
        found.append(option_of(stage, execution, footprint=footprint, work=WORK))
    return tuple(found)


def card(free_bytes: int) -> Room:
    """A card of 8 GiB."""
    return Room(name="the card", total_bytes=8 * GIB, free_bytes=free_bytes, headroom_bytes=100 * MIB)


def question(stage: Stage, free_bytes: int, *yielders: Concession, scale: int = 1) -> StageQuestion:
    """A question about one stage of an image."""
    return StageQuestion(
        stage=stage,
        subject="lighthouse",
        card=card(free_bytes),
        ram=RAM,
        options=options(stage, scale=scale),
        concessions=yielders,
    )


DIFFUSION = Concession(
    tenant="diffusion",
    name="the diffusion model of this image",
    yields=YieldClass.OWN_FINISHED,
    card_bytes=1640 * MIB,
    free_ms=20,
    return_ms=410,
    needed_permille=500,
)
KV = Concession(
    tenant="kv",
    name="the KV cache of qwen",
    yields=YieldClass.LLM_KV,
    card_bytes=1200 * MIB,
    ram_bytes=-300 * MIB,
    free_ms=80,
    return_ms=90,
    needed_permille=700,
)
WEIGHTS = Concession(
    tenant="weights",
    name="the model qwen",
    yields=YieldClass.LLM_WEIGHTS,
    card_bytes=4600 * MIB,
    free_ms=250,
    return_ms=1_800,
    needed_permille=700,
    after="kv",
)


def situations() -> list[tuple[str, tuple[str, ...]]]:
    """Seven telling situations, each with the planner's own explanation."""
    gone = question(Stage.DENOISE, 4 * GIB, scale=4)
    failed = question(Stage.DECODE, 4 * GIB)
    told = [
        ("Everything fits", question(Stage.DECODE, 4 * GIB, KV, WEIGHTS)),
        ("A finished stage makes room first", question(Stage.DECODE, 900 * MIB, KV, WEIGHTS, DIFFUSION)),
        ("A chat gives up its KV cache, and stays warm", question(Stage.DECODE, 900 * MIB, KV, WEIGHTS)),
        ("A chat leaves the card altogether", question(Stage.DECODE, 300 * MIB, KV, WEIGHTS)),
        ("Nobody is left to yield: tiles", question(Stage.DECODE, 900 * MIB)),
    ]
    lines = [(title, climb(asked, []).explain()) for title, asked in told]
    advice = tuple(f"Advice: {advice.text}" for advice in advise(gone, weight_type="f16"))
    lines.append(("The model is larger than the card: streamed", climb(gone, []).explain() + advice))
    nan = [Attempt(failed.options[0].execution, Failure.NOT_FINITE)]
    lines.append(("The picture came out as NaN: the CPU in full precision", climb(failed, nan).explain()))
    return lines


def situations_text() -> str:
    """The situations as Markdown."""
    return "\n\n".join(
        f"### {number}. {title}\n\n```text\n" + "\n".join(lines) + "\n```"
        for number, (title, lines) in enumerate(situations(), start=1)
    )


def diagram(transitions: Mapping[Phase, tuple[Phase, ...]]) -> str:
    """A transitions table as a Mermaid diagram."""
    first = next(iter(transitions))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    for start, finishes in transitions.items():
        lines += [f"    {start} --> {finish}" for finish in finishes]
        lines += [] if finishes else [f"    {start} --> [*]"]
    return "\n".join([*lines, "```"])


def lifecycles_text() -> str:
    """Every lifecycle of the core."""
    tables = {
        "Lease": diagram(lease.TRANSITIONS),
        "Worker": diagram(worker.TRANSITIONS),
        "Image job": diagram(job.TRANSITIONS),
        "Language model": diagram(level.TRANSITIONS),
        "Request": diagram(request.TRANSITIONS),
        "Guest": diagram(guest.TRANSITIONS),
    }
    return "\n\n".join(f"### {name}\n\n{drawn}" for name, drawn in tables.items())


def rendered(text: str) -> str:
    """A page with its generated parts made anew."""
    for name, part in (("situations", situations_text()), ("lifecycles", lifecycles_text())):
        block = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(rf"\g<1>\n{part.replace(chr(92), chr(92) * 2)}\n\n\g<2>", text)
    return text


PAGES = (DOCS / "planner.md", DOCS / "arbiter.md")


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
