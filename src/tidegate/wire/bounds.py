"""Bounds: what a child may say of itself, checked when it is read.

A number that no machine has, or a hash that is none, comes from a process that has lost its mind, and nothing
else that it says could be trusted. Owns the types; where they stand is told by `messages` and its neighbours.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

# A latent preview is one pixel per latent cell: 192 KiB for an image of 2048 by 2048.
PREVIEW_BYTES_MAX: Final = 256 * 1024
# An error text that is longer says nothing more.
TEXT_CHARACTERS_MAX: Final = 4000

# Bytes, milliseconds or counts of something that exists.
Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Hash = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Words = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)]
Preview = Annotated[bytes, msgspec.Meta(max_length=PREVIEW_BYTES_MAX)]
