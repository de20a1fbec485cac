"""Tests of the core: given a state, when events come, then exactly these effects."""

from __future__ import annotations
