"""Chats for tests: a server with the tiny language model beside the tiny image model, on one virtual card.

Owns no expectation. With four conversations of 8,192 tokens the KV cache takes some hundred MiB, so that a
card of 700 MiB holds the language model or a sampling image, and never both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.runtime.asks import AskOrder
from tidegate.runtime.frontdesk import FrontDesk
from tidegate.runtime.settings import Settings
from tidegate.wire import asks

WAIT_S = 240
TALKER = "talker"
SMALL_CARD = "virtual:700MiB"
ROOMY_CARD = "virtual:3GiB"


def settings_for(
    state: Path, llama: Path, *, checkpoint: Path | None = None, device: str = ROOMY_CARD, **options: object
) -> Settings:
    """Settings of a server for one language model, and for one image model where a checkpoint is named."""
    models = []
    if checkpoint is not None:
        files = {"model": str(checkpoint), "taesd": str(checkpoint.with_name("taesd.safetensors"))}
        models = [{"name": "tiny", "threads": 1, **files}]
    talker = {
        "name": TALKER,
        "file": str(llama),
        "mmproj": "none",
        "threads": 1,
        "evaluation": "reproducible",
    }
    return Settings.model_validate(
        {
            "paths": {"models": str(llama.parent), "state": str(state)},
            "cards": [{"device": device}],
            "models": models,
            "llms": [{**talker, "slots": 4, "context": 8_192, **options}],
        }
    )


def order_of(text: str = "Hello there", *, tokens: int = 400, seed: int = 1, warm: bool = True) -> AskOrder:
    """A chat of one turn."""
    sampling = asks.Sampling(seed=seed, temperature=0.8 if warm else 0.0, tokens_max=tokens)
    turn = asks.Turn(role="user", parts=(asks.Text(text=text),))
    return AskOrder(body=asks.Chat(turns=(turn,), sampling=sampling))


@dataclass
class Heard:
    """What came of a chat so far."""

    text: str = ""
    pauses: list[str] = field(default_factory=list)
    resumed_count: int = 0
    ended: asks.Ended | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, item: asks.Item) -> None:
        """Note an item."""
        match item:
            case asks.Delta():
                self.text += item.text
            case asks.Paused():
                self.pauses.append(item.reason)
            case asks.Resumed():
                self.resumed_count += 1
            case asks.Ended():
                self.ended = item
        self.changed.set()

    async def until(self, holds: Callable[[Heard], bool]) -> None:
        """Wait until something holds of it, or until it has ended."""
        async with asyncio.timeout(WAIT_S):
            while not holds(self) and self.ended is None:
                self.changed.clear()
                await self.changed.wait()


async def listen(items: AsyncIterator[asks.Item], heard: Heard) -> Heard:
    """Take in a chat to its end."""
    async with asyncio.timeout(WAIT_S):
        async for item in items:
            heard.take(item)
    return heard


async def whole(gate: FrontDesk, order: AskOrder) -> Heard:
    """Ask, and hear the answer to its end."""
    async with asyncio.timeout(WAIT_S):
        handle = await gate.ask(order)
    return await listen(gate.hear(handle.id), Heard())


async def begun(gate: FrontDesk, order: AskOrder) -> tuple[Heard, asyncio.Task[Heard]]:
    """Ask, and come back when the first words were heard."""
    heard = Heard()
    async with asyncio.timeout(WAIT_S):
        handle = await gate.ask(order)
    task = asyncio.create_task(listen(gate.hear(handle.id), heard))
    await heard.until(lambda now: bool(now.text))
    return heard, task


async def told(
    gate: FrontDesk, kind: str, holds: Callable[[dict[str, object]], bool], *, after: int = 0
) -> None:
    """Wait for an event of the server, or find it among those that were."""
    async with asyncio.timeout(WAIT_S):
        async for event in gate.events(after=after):
            if event.kind == kind and holds(dict(event.data)):
                return
