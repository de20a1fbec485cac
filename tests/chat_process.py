"""A server in a process of its own with a chat in flight, to be killed: prints the pids of its workers.

Owns the process. `python tests/chat_process.py STATE MODEL`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from chat_runs import begun, order_of, settings_for
from tidegate.runtime.server import serving


async def _serve(state: Path, model: Path) -> None:
    async with serving(settings_for(state, model)) as gate:
        _, chat = await begun(gate, order_of(tokens=8_000))
        print(*(worker.pid for worker in gate.health().workers if worker.pid), flush=True)
        await chat


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2])))
