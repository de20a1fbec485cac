"""RAM: how many bytes of the machine's memory a one-shot may use now.

Owns the planner's view of it, and what is left for everybody else. The kernel's figures are read by
`cards.memory`; what is done with the number is the planner's business.
"""

from __future__ import annotations

from typing import Final

from tidegate.core.planner import Room
from tidegate.core.quantity import MIB
from tidegate.runtime.cards.memory import read_host_memory

# Left for the parent, the page cache of the model file that is being read, and everybody else. A machine
# that swaps makes an image later than one that tiles.
HEADROOM_BYTES: Final = 256 * MIB


def room(limit_bytes: int = 0, used_bytes: int = 0) -> Room:
    """The planner's view of RAM, within the user's own bound (0: none), of which `used_bytes` are held."""
    memory = read_host_memory()
    total_bytes, free_bytes = memory.total_bytes, memory.available_bytes
    if not limit_bytes:
        return Room(name="RAM", total_bytes=total_bytes, free_bytes=free_bytes, headroom_bytes=HEADROOM_BYTES)
    # A bound that the user sets is meant exactly; the headroom guards the machine's own limit.
    left = min(limit_bytes - used_bytes, free_bytes - HEADROOM_BYTES)
    return Room(name="RAM", total_bytes=limit_bytes, free_bytes=max(0, left))
