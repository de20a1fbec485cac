"""Tagging: from a picture to tags, a caption and a rating.

Owns the styles, the instructions that come with tidegate, the grammar that an answer keeps to, and reading
it. The grammar bounds every part, so an answer is valid JSON unless the context ends first; then what is
complete of it is taken. The route is `native.tag`.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import Final

from tidegate.wire import asks

CAPTION_MAX: Final = 400
TAG_MAX: Final = 40


class TagStyle(enum.StrEnum):
    """How tags are written."""

    BOORU = "booru"
    NATURAL = "natural"


class Rating(enum.StrEnum):
    """For whom a picture is, as picture boards rate."""

    GENERAL = "general"
    SENSITIVE = "sensitive"
    QUESTIONABLE = "questionable"
    EXPLICIT = "explicit"


_FORM: Final = (
    ' Answer with JSON: {"rating": general, sensitive, questionable or explicit, "caption": one or two '
    'sentences that describe the picture, "tags": a list, the most important first}.'
)
INSTRUCTIONS: Final = {
    TagStyle.BOORU: (
        "You tag pictures for a picture board. Tags are in lower case with underscores instead of spaces, "
        "such as 1girl, solo, long_hair, looking_at_viewer, night_sky." + _FORM
    ),
    TagStyle.NATURAL: (
        "You describe pictures. Tags are one to three plain English words in lower case, such as lighthouse, "
        "stormy sea, oil painting." + _FORM
    ),
}
# What a tag may hold after its first letter.
_LETTERS: Final = {TagStyle.BOORU: "[a-z0-9_():'-]", TagStyle.NATURAL: "[a-z0-9 '-]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """What a language model saw. `is_cut`: its context ended before the answer did."""

    rating: Rating
    caption: str
    tags: tuple[str, ...]
    is_cut: bool = False


def grammar_for(style: TagStyle, *, tags_max: int) -> str:
    """The grammar of an answer, in GBNF."""
    ratings = " | ".join(f'"{rating}"' for rating in Rating)
    return (
        'root ::= "{\\"rating\\": \\"" rating "\\", \\"caption\\": \\"" caption "\\", \\"tags\\": [" '
        f'tag (", " tag){{0,{tags_max - 1}}} "]}}"\n'
        f"rating ::= {ratings}\n"
        f'caption ::= [^"\\\\\\x00-\\x20\\x7F] [^"\\\\\\x00-\\x1F\\x7F]{{0,{CAPTION_MAX - 1}}}\n'
        f'tag ::= "\\"" [a-z0-9] {_LETTERS[style]}{{0,{TAG_MAX - 1}}} "\\""\n'
    )


def chat_of(
    picture: asks.Picture,
    *,
    style: TagStyle,
    instruction: str,
    tags_max: int,
    temperature: float,
    seed: int,
) -> asks.Chat:
    """The ask for one picture."""
    return asks.Chat(
        turns=(
            asks.Turn(role="system", parts=(asks.Text(text=instruction or INSTRUCTIONS[style]),)),
            asks.Turn(role="user", parts=(asks.Seen(picture=0), asks.Text(text="Tag this picture."))),
        ),
        pictures=(picture,),
        format=asks.Format(shape=asks.Shape.GRAMMAR, text=grammar_for(style, tags_max=tags_max)),
        sampling=asks.Sampling(seed=seed, temperature=temperature),
    )


def read(text: str) -> Tagged:
    """What an answer says, also one that was cut off."""
    rating = re.match(r'\{"rating": "(\w+)"', text)
    caption = re.search(r'"caption": "([^"]*)', text)
    _, _, after = text.partition('"tags": [')
    tags = [str(json.loads(tag)) for tag in re.findall(r'"[^"]*"', after)]
    return Tagged(
        rating=Rating(rating.group(1)) if rating else Rating.GENERAL,
        caption=caption.group(1).strip() if caption else "",
        # A model that says something twice means it once.
        tags=tuple(dict.fromkeys(tag.strip() for tag in tags)),
        is_cut=not text.endswith("]}"),
    )
