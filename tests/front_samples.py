"""What tests of the prompt side share: short ways to a chat and to its layout."""

from __future__ import annotations

from datetime import datetime

from tidegate.wire import asks
from tidegate.workers.front.templates import Piece, Specials, Template, Words

SPECIALS = Specials(
    ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|start_header_id|>"]
)
NOW = datetime(2026, 1, 2)


def turn(role: str, text: str) -> asks.Turn:
    return asks.Turn(role=role, parts=(asks.Text(text=text),))


def chat(*turns: asks.Turn) -> asks.Chat:
    return asks.Chat(turns=turns)


def laid_out(source: str, asked: asks.Chat, *, bos: str = "", now: datetime = NOW) -> tuple[Piece, ...]:
    return Template(source, bos=bos).rendered(asked, specials=SPECIALS, now=now)


def said(pieces: tuple[Piece, ...]) -> str:
    return "".join(piece.text if isinstance(piece, Words) else "(picture)" for piece in pieces)
