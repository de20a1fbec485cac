"""The core: pure, deterministic decisions about card and RAM. Standard library only; no clock, no I/O, no
chance.

Events come in, effects go out (`arbiter`). The planner (`planner/`) can be used alone, as the one-shot
command does.
"""

from __future__ import annotations
