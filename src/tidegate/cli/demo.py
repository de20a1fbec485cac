"""`tidegate demo`: three images on a virtual card, and what happens to them, told as it happens."""

from __future__ import annotations


def demo() -> None:
    """Make three images on a virtual card and tell what happens."""
