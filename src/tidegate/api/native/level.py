"""Levels and intents: where a language model rests, and what somebody is about to ask of one.

Owns `/api/models/{model}/level`, `/api/intent`, and `/tokenize` with its inverse, for which no level matters.
What a model holds now is the neighbour `house`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field, model_validator

from tidegate.api.lobby import GateHere
from tidegate.api.native.envelope import documented
from tidegate.api.wishes import Body, Name
from tidegate.core.llm.level import Level
from tidegate.runtime.asks import DetokenWish, IntentKind, LevelWish, TokenWish
from tidegate.runtime.views import ModelView

router = APIRouter(tags=["language models"])
ModelName = Annotated[str, Path(max_length=200)]
LAYERS_MAX: Final = 10_000
TEXT_MAX: Final = 4 * 2**20
IDS_MAX: Final = 1 << 20


class LevelRequest(Body):
    """Where a language model shall rest."""

    level: Literal["hot", "warm", "cold", "partial", "auto"] = Field(
        description="auto gives it back to the planner."
    )
    layers: int | None = Field(
        default=None, ge=1, le=LAYERS_MAX, description="How many on the card, for partial."
    )

    @model_validator(mode="after")
    def _layers_where_needed(self) -> Self:
        if (self.layers is not None) != (self.level == "partial"):
            raise ValueError("layers belongs to partial, and partial needs it")
        return self


class IntentRequest(Body):
    """What a person is about to do."""

    kind: Literal["typing", "upload", "open"] = Field(
        description="typing a message, uploading a picture, opening a conversation."
    )
    model: Name = Field(default="", description="A language model; empty: the default.")


class Noted(BaseModel):
    """It was taken note of."""

    noted: bool = True


class TokenizeRequest(Body):
    """A text to be taken apart."""

    content: str = Field(max_length=TEXT_MAX)
    model: Name = ""
    add_special: bool = Field(default=False, description="Whether the first token is put in front.")
    parse_special: bool = Field(default=True, description="Whether control tokens are meant where spelt.")
    with_pieces: bool = Field(default=False, description="Whether the text of each token is told.")


class Piece(BaseModel):
    """A token with its text, or its bytes where these are no text by themselves."""

    id: int
    piece: str | list[int]


class Tokens(BaseModel):
    """The tokens of a text."""

    tokens: list[int] | list[Piece]


class DetokenizeRequest(Body):
    """Tokens to be put together."""

    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(max_length=IDS_MAX)
    model: Name = ""


class Content(BaseModel):
    """The text of tokens."""

    content: str


@router.put("/api/models/{model}/level", responses=documented(404, 409, 503))
async def set_level(model: ModelName, wish: LevelRequest, gate: GateHere) -> ModelView:
    """Bring a language model to a level and keep it there, or give it back to the planner."""
    level = None if wish.level == "auto" else Level(wish.level)
    return await gate.set_level(model, LevelWish(level=level, layers_count=wish.layers or 0))


@router.post("/api/intent", responses=documented(404))
async def note_intent(wish: IntentRequest, gate: GateHere) -> Noted:
    """Say that a language model will probably be asked soon, so that it is brought back meanwhile."""
    await gate.intent(IntentKind(wish.kind), wish.model)
    return Noted()


@router.post("/tokenize", responses=documented(404, 503))
async def tokenize(wish: TokenizeRequest, gate: GateHere) -> Tokens:
    """Take a text apart into tokens, in llama-server's dialect."""
    view = await gate.tokenize(
        TokenWish(
            text=wish.content,
            model=wish.model,
            adds_special=wish.add_special,
            parses_special=wish.parse_special,
        )
    )
    if not wish.with_pieces:
        return Tokens(tokens=list(view.ids))
    pairs = zip(view.ids, view.pieces, strict=True)
    return Tokens(tokens=[Piece(id=number, piece=_text_or_bytes(raw)) for number, raw in pairs])


@router.post("/detokenize", responses=documented(404, 503))
async def detokenize(wish: DetokenizeRequest, gate: GateHere) -> Content:
    """Put tokens together again."""
    return Content(content=await gate.detokenize(DetokenWish(ids=tuple(wish.tokens), model=wish.model)))


def _text_or_bytes(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # a part of a character
        return list(raw)
