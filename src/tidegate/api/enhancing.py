"""Enhancing: from a short idea to a prompt in the words that an image model was trained on.

Owns the styles, the instructions that come with tidegate, and asking the language model. A grammar holds the
answer to one line that begins with a word, so that no chatter stands before it. Routes are
`native.enhance` and every route that makes images.
"""

from __future__ import annotations

import enum
import logging
import secrets
from dataclasses import dataclass
from typing import Final

from tidegate.api.lobby import Lobby
from tidegate.api.replies import asked, whole
from tidegate.core.faults import CapacityError, ClientError, WorkerError
from tidegate.runtime.asks import AskHandle
from tidegate.runtime.order import SEED_MAX
from tidegate.runtime.settings_tasks import EnhanceSettings
from tidegate.wire import asks

_log = logging.getLogger(__name__)
ONE_LINE: Final = "root ::= [^ \\t\\n\\r\"'`*#<] [^\\n\\r]*\n"


class Style(enum.StrEnum):
    """In which words a family of image models is prompted."""

    TAGS = "tags"
    PHRASES = "phrases"
    SENTENCES = "sentences"


# Families by how their names begin; all others read sentences.
_STYLES: Final = (
    ("SDXL", Style.PHRASES),
    ("SDXS", Style.TAGS),
    ("SD 1", Style.TAGS),
    ("SD 2", Style.TAGS),
    ("Instruct-Pix2Pix", Style.TAGS),
)
_RULES: Final = (
    " Keep to the idea and add what an artist would decide: subject, setting, light, colours, composition "
    "and medium. Answer with the prompt alone, on one line, without quotation marks or explanations."
)
INSTRUCTIONS: Final = {
    Style.TAGS: (
        "You write prompts for Stable Diffusion 1.5. Turn the user's idea into 15 to 30 short tags in "
        "English with commas between them, the most important first, among them a few for quality and style."
        + _RULES
    ),
    Style.PHRASES: (
        "You write prompts for Stable Diffusion XL. Turn the user's idea into a few descriptive phrases in "
        "English with commas between them, 30 to 60 words, the subject first." + _RULES
    ),
    Style.SENTENCES: (
        "You write prompts for an image model that understands plain language. Describe the picture of the "
        "user's idea in two to four English sentences, as if you saw it." + _RULES
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Idea:
    """What is to be enhanced, and for whom. Empty texts are as the settings say."""

    text: str
    style: Style
    language_model: str = ""
    instruction: str = ""
    seed: int | None = None
    temperature: float | None = None
    tokens_max: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhanced:
    """A prompt, and what was made of it; `notice` says why it is the idea itself, where it is."""

    prompt: str
    idea: str = ""
    notice: str = ""


def style_of(family: str) -> Style:
    """The style of a family of image models."""
    return next((style for start, style in _STYLES if family.startswith(start)), Style.SENTENCES)


def style_for(lobby: Lobby, model: str) -> Style:
    """The style of an image model by name, "" for the default. Raises ClientError `unknown_model`."""
    wanted = model.casefold()
    for view in lobby.gate.models():
        if view.language is not None or view.refused:
            continue
        names = (view.name.casefold(), *(alias.casefold() for alias in view.aliases))
        if wanted in names or (not wanted and view.is_default):
            return style_of(view.family)
    if not wanted:
        return Style.SENTENCES
    raise ClientError(f"There is no image model {model!r}.", remedy="See /api/models.", code="unknown_model")


def chat_of(idea: Idea, settings: EnhanceSettings) -> asks.Chat:
    """The ask."""
    own = {Style.TAGS: settings.sd1, Style.PHRASES: settings.sdxl, Style.SENTENCES: settings.natural}
    instruction = idea.instruction or settings.instruction or own[idea.style] or INSTRUCTIONS[idea.style]
    return asks.Chat(
        turns=(
            asks.Turn(role="system", parts=(asks.Text(text=instruction),)),
            asks.Turn(role="user", parts=(asks.Text(text=idea.text),)),
        ),
        format=asks.Format(shape=asks.Shape.GRAMMAR, text=ONE_LINE),
        sampling=asks.Sampling(
            seed=secrets.randbelow(SEED_MAX + 1) if idea.seed is None else idea.seed,
            temperature=settings.temperature if idea.temperature is None else idea.temperature,
            tokens_max=idea.tokens_max or settings.tokens_max,
        ),
    )


async def begun(lobby: Lobby, idea: Idea) -> AskHandle:
    """Ask for it. Raises the gate's faults."""
    settings = lobby.settings.enhance
    (handle,) = await asked(
        lobby.gate,
        [chat_of(idea, settings)],
        model=idea.language_model or settings.model,
        priority=idea.priority,
    )
    return handle


async def prompt_of(lobby: Lobby, handle: AskHandle) -> str:
    """The prompt, once it is whole."""
    (reply,) = await whole(lobby.gate, [handle])
    return reply.text.strip()


async def for_image(lobby: Lobby, prompt: str, *, model: str, is_wanted: bool) -> Enhanced:
    """The prompt of an image request, enhanced where that is wanted.

    An image does not fail because no language model had room or its process died: then it is made from the
    idea as it is, and a notice says so. Raises ClientError.
    """
    if not is_wanted:
        return Enhanced(prompt=prompt)
    try:
        handle = await begun(lobby, Idea(text=prompt, style=style_for(lobby, model)))
        return Enhanced(prompt=await prompt_of(lobby, handle) or prompt, idea=prompt)
    except (CapacityError, WorkerError) as fault:
        _log.warning("A prompt is taken as it is: %s", fault)
        return Enhanced(prompt=prompt, notice=f"The prompt was taken as it is: {fault.message}")
