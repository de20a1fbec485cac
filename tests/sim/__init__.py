"""The simulator: seeded worlds with their own truth, which try to break the arbiter.

Read in this order: `workload` (what a seed makes), `truth` (who physically holds what, and what was
promised), `world` (performs effects, with faults, and reports events), `judge` (what must never happen),
`schedule` (one run: safety under faults, then liveness), `shrink`, `mutants`. Nothing here asks the core what
is free or how a rule is meant: the judge keeps its own books from the effects alone.
"""

from __future__ import annotations
