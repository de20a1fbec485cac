"""Eyes: pictures that a language model is to see, from what clients send.

Owns which addresses are looked at: `data:` URLs with base64, and nothing that would have to be fetched. How
large a picture may be is `[listen] pixels_max`; decoding is `tidegate.runtime.pictures`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from tidegate.api.lobby import Lobby
from tidegate.api.wishes import picture_bytes
from tidegate.core.faults import ClientError
from tidegate.runtime import pictures
from tidegate.wire import asks


async def pictures_of(urls: Sequence[str], lobby: Lobby) -> tuple[asks.Picture, ...]:
    """The pictures behind these addresses. Raises ClientError."""
    if len(urls) > asks.PICTURES_MAX:
        raise ClientError(
            f"{len(urls)} pictures are more than the {asks.PICTURES_MAX} of one request.",
            remedy="Send fewer of them.",
            code="too_many_pictures",
        )
    return tuple([await seen(_data_of(url), lobby) for url in urls])


async def seen(file: bytes, lobby: Lobby) -> asks.Picture:
    """A picture out of a file. Raises ClientError."""
    pixels_max = lobby.settings.listen.pixels_max
    width, height, rgb = await lobby.off_loop(pictures.decoded, io.BytesIO(file), pixels_max=pixels_max)
    return asks.Picture(width=width, height=height, rgb=rgb)


def _data_of(url: str) -> bytes:
    head, comma, _ = url.partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        raise ClientError(
            "A picture is given as a data: URL with base64; nothing is fetched from elsewhere.",
            remedy="Send data:image/png;base64,... .",
            code="picture_refused",
        )
    return picture_bytes(url)
