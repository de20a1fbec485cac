"""Synthetic checkpoints: random weights in real shapes, for tests, demos and predictions.

`shapes` asks the engine for names and shapes; `weights` makes the numbers, `quantising` packs them, `layouts`
arranges a file, `checkpoints` writes it. The reading side is `tidegate.runtime.models`.
"""

from __future__ import annotations
