"""Chances: the logarithms of probabilities beside the tokens of an answer, for who wanted them.

Owns turning the child's numbers into what a client is shown, and where among the deltas they stand.
"""

from __future__ import annotations

from tidegate.wire import asks
from tidegate.wire.llm_link import Run
from tidegate.workers.front.vocabulary import Vocabulary


def chances_of(vocabulary: Vocabulary, run: Run) -> tuple[asks.Chance, ...]:
    """One for each token of the run."""

    def chance(token: int, logprob: float, top: tuple[asks.Chance, ...] = ()) -> asks.Chance:
        raw = vocabulary.piece(token)
        return asks.Chance(text=raw.decode("utf-8", "replace"), raw=raw, logprob=logprob, top=top)

    return tuple(
        chance(
            token,
            likely.logprob,
            tuple(chance(other, value) for other, value in zip(likely.ids, likely.logprobs, strict=True)),
        )
        for token, likely in zip(run.ids, run.likely, strict=True)
    )


def with_chances(deltas: tuple[asks.Delta, ...], chances: tuple[asks.Chance, ...]) -> tuple[asks.Delta, ...]:
    """The tokens behind a text, told with its first piece; with none when the text is held back."""
    if not deltas:
        return (asks.Delta(chances=chances),)
    first = deltas[0]
    told = asks.Delta(text=first.text, reasoning=first.reasoning, calls=first.calls, chances=chances)
    return (told, *deltas[1:])
