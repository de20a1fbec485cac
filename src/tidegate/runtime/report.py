"""Reports: what a run did, as data for programs.

Owns the shape that `--json` prints. The figures come from `relay`; words for people are the notices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tidegate.core.stage import Execution, Placement, Stage


@dataclass(slots=True, kw_only=True)
class StageRecord:
    """One stage as it was finally run. Bytes are those of the card, or on `cpu` of the same buffers in RAM.

    `image` is None for a stage that serves the whole batch. A stage taken from saved work has no attempts.
    """

    stage: Stage
    image: int | None
    execution: Execution
    predicted_bytes: int = 0
    observed_peak_bytes: int = 0
    load_ms: int = 0
    ms: int = 0
    attempts: int = 0

    def data(self) -> dict[str, object]:
        """As JSON."""
        return {
            "stage": str(self.stage),
            "image": self.image,
            **execution_data(self.execution),
            "predicted_bytes": self.predicted_bytes,
            "observed_peak_bytes": self.observed_peak_bytes,
            # What streaming holds depends on how its segments fall, so there the prediction is a bound.
            "is_bound": self.execution.placement is Placement.STREAM,
            "load_ms": self.load_ms,
            "ms": self.ms,
            "attempts": self.attempts,
            "resumed": self.attempts == 0,
        }


@dataclass(slots=True, kw_only=True)
class ImageRecord:
    """One finished image and the executions that it was made with."""

    path: Path
    seed: int
    pixels_sha256: str
    stages: dict[str, dict[str, object]]


@dataclass(slots=True, kw_only=True)
class Report:
    """The whole run. `card` is None when no card took part. A run that a server made says so in `server`,
    and has no `stages`: what they held was counted there.
    """

    recipe: dict[str, object] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    images: list[ImageRecord] = field(default_factory=list)
    card: dict[str, object] | None = None
    notices: list[str] = field(default_factory=list)
    width: int = 0
    height: int = 0
    ms: int = 0
    server: dict[str, object] | None = None

    def data(self) -> dict[str, object]:
        """As JSON; `recipe` and `pixels_sha256` are those of the first image."""
        first = self.images[0] if self.images else None
        return {
            "images": [
                {
                    "path": str(image.path),
                    "seed": image.seed,
                    "pixels_sha256": image.pixels_sha256,
                    "stages": image.stages,
                }
                for image in self.images
            ],
            "width": self.width,
            "height": self.height,
            "stages": [record.data() for record in self.stages],
            "card": self.card,
            "recipe": {**self.recipe, "stages": first.stages if first else {}},
            "pixels_sha256": first.pixels_sha256 if first else None,
            "notices": self.notices,
            "ms": self.ms,
            "server": self.server,
        }


def execution_data(execution: Execution) -> dict[str, object]:
    """An execution as JSON."""
    return {
        "placement": str(execution.placement),
        "mode": str(execution.mode),
        "tile": execution.tile,
        "budget_bytes": execution.budget_bytes,
    }
