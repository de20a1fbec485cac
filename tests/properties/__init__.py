"""Properties: Hypothesis drives the core by itself, beside the simulator."""

from __future__ import annotations
