"""Language models: predicted bytes beside observed bytes.

Owns the rows of language.md; the cases are those of the test of predictions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from llama_forecasts import CASES, compared

HEAD = ["configuration", "model", "part", "predicted", "observed", "difference"]


def language_rows(models: Callable[[str], Path]) -> list[list[str]]:
    """One row for each part of each configuration."""
    rows = []
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = compared(case, models, Path(folder))
        told, seen = found.told, found.seen
        parts = [("weights", told["weights"], seen["weights"])]
        parts.append(("KV and compute", told["kv"] + told["compute"], seen["context"] + seen["computing"]))
        if case.image_px:
            parts.append(("projector", told["projector"], seen["projector"]))
            width, height = case.image_px
            parts.append((f"image {width}x{height}", told["image"], seen["image"]))
        rows += [
            [name, case.kind, part, f"{predicted:,}", f"{observed:,}", str(observed - predicted)]
            for part, predicted, observed in parts
        ]
    return rows
