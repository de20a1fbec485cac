"""Plans: the planner's answer, with everything that it weighed.

Owns Plan (what to do, who yields first, what was refused and why) and Refusal (nothing fits). Both explain
themselves in words and as data; nobody else words them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.core.faults import CapacityError
from tidegate.core.planner.filters import Candidate, Rejection
from tidegate.core.planner.option import StageOption
from tidegate.core.planner.question import Concession, Room
from tidegate.core.planner.scores import Score
from tidegate.core.quantity import size_text
from tidegate.core.stage import Errand, Execution, Stage


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate that could run, with its price."""

    candidate: Candidate
    score: Score

    def text(self) -> str:
        """Word it: how it would run, who would yield, what it would cost."""
        told = self.candidate.option.execution.text()
        if names := ", ".join(release.name for release in self.candidate.releases):
            told += f" after {names} made room"
        return f"{told}: {self.score.text()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one stage shall run. `drops_held`: its component is loaded otherwise and must be released first."""

    stage: Stage | Errand
    subject: str
    card: Room | None
    ram: Room
    chosen: Scored
    runners_up: tuple[Scored, ...]
    rejected: tuple[Rejection, ...]
    drops_held: bool = False
    skipped_count: int = 0  # Candidates never looked at because the bound was reached.

    @property
    def option(self) -> StageOption:
        """The chosen option with its footprint."""
        return self.chosen.candidate.option

    @property
    def execution(self) -> Execution:
        """The chosen way to run the stage."""
        return self.option.execution

    @property
    def releases(self) -> tuple[Concession, ...]:
        """Who makes room first, in yield order."""
        return self.chosen.candidate.releases

    @property
    def score(self) -> Score:
        """The price of the chosen candidate in its parts."""
        return self.chosen.score

    def explain(self) -> tuple[str, ...]:
        """Tell a user, line by line, what was decided and why."""
        footprint = self.option.footprint
        lines = [f"{self.subject}: {self.stage} runs {self.execution.text()}."]
        needs = [f"{size_text(footprint.card_bytes)} on the card"] if footprint.card_bytes else []
        needs += [f"{size_text(footprint.ram_bytes)} of RAM"] if footprint.ram_bytes else []
        lines.append(
            f"It needs {' and '.join(needs) or 'no memory'} ({footprint.provenance}); {_rooms(self)}."
        )
        if self.drops_held:
            lines.append("Its component is loaded in another way and is released first.")
        lines += [f"First {_concession_text(release)}." for release in self.releases]
        lines.append(f"Expected {self.score.text()}.")
        lines += [f"Not {rejection.text()}." for rejection in self.rejected]
        lines += [f"Rather than {scored.text()}." for scored in self.runners_up[:3]]
        if self.skipped_count:
            lines.append(
                f"{self.skipped_count} further candidates were not looked at: the bound was reached."
            )
        return tuple(lines)

    def data(self) -> dict[str, object]:
        """The same as plain data, for APIs and logs."""
        footprint, score, execution = self.option.footprint, self.score, self.execution
        return {
            "stage": str(self.stage),
            "subject": self.subject,
            "card": self.card.name if self.card else None,
            **_execution_data(execution),
            "card_bytes": footprint.card_bytes,
            "ram_bytes": footprint.ram_bytes,
            "provenance": str(footprint.provenance),
            "expected_ms": score.total_ms,
            "score": {
                "free_ms": score.free_ms,
                "load_ms": score.load_ms,
                "run_ms": score.run_ms,
                "return_ms": score.return_ms,
            },
            "releases": [
                {"tenant": release.tenant, "class": str(release.yields), "card_bytes": release.card_bytes}
                for release in self.releases
            ],
            "rejected": [
                {
                    **_execution_data(rejection.execution),
                    "reason": str(rejection.reason),
                    "needed_bytes": rejection.needed_bytes,
                    "available_bytes": rejection.available_bytes,
                }
                for rejection in self.rejected
            ],
            "explain": list(self.explain()),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Nothing fits, whoever yields. Carries why for every execution."""

    stage: Stage | Errand
    subject: str
    card: Room | None
    ram: Room
    rejected: tuple[Rejection, ...]

    def explain(self) -> tuple[str, ...]:
        """Tell a user why nothing is possible."""
        head = f"{self.subject}: there is no way to run {self.stage}; {_rooms(self)}."
        return (head, *(f"Not {rejection.text()}." for rejection in self.rejected))

    def fault(self) -> CapacityError:
        """Make the one clear error of it, with the numbers of the least demanding candidate."""
        least = min(
            (rejection for rejection in self.rejected if rejection.needed_bytes),
            key=lambda rejection: rejection.needed_bytes - rejection.available_bytes,
            default=None,
        )
        if least is None:
            return CapacityError(
                f"No way is left to run {self.stage}.",
                remedy="Try again, or use a smaller model.",
                code="no_candidate",
            )
        return CapacityError(
            f"There is not enough memory for {self.stage}: {least.text()}.",
            remedy="Free memory, ask for a smaller size or use a quantised model.",
            code="out_of_memory",
            needed_bytes=least.needed_bytes,
            available_bytes=least.available_bytes,
        )


def _rooms(answer: Plan | Refusal) -> str:
    ram = f"{size_text(max(0, answer.ram.usable_bytes))} of RAM"
    if answer.card is None:
        return f"{ram} may be used"
    return f"{size_text(max(0, answer.card.usable_bytes))} of {answer.card.name} and {ram} may be used"


def _concession_text(release: Concession) -> str:
    saved = f", {size_text(-release.ram_bytes)} saved to RAM" if release.ram_bytes < 0 else ""
    amount = size_text(release.card_bytes) if release.card_bytes else f"{size_text(release.ram_bytes)} of RAM"
    return f"{release.name} gives up {amount}{saved}"


def _execution_data(execution: Execution) -> dict[str, object]:
    return {
        "placement": str(execution.placement),
        "mode": str(execution.mode),
        "tile": execution.tile,
        "budget_bytes": execution.budget_bytes,
    }
