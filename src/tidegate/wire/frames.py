"""Frames: how a stream of bytes becomes messages, without any I/O.

A frame is a little-endian u32 length followed by that many bytes of MessagePack. The decoder is fed whatever
arrived and hands out whole payloads; it holds at most one incomplete frame, so its memory is bounded by
`FRAME_BYTES_MAX`. A stream that breaks the rules raises `ProtocolError` once and for ever: nothing that
follows a bad length can be trusted, so the connection is given up instead of being resynchronised.

Neighbours: `messages` says what a payload means, `channel` puts frames on a socket.
"""

from __future__ import annotations

from typing import Final

LENGTH_BYTES: Final = 4
# The largest legitimate messages are the vectors of an ask for embeddings and the history of a conversation
# (four bytes for each of up to a million tokens); pixels, latents and conditions travel by file.
FRAME_BYTES_MAX: Final = 16 << 20


class ProtocolError(Exception):
    """The other side sent bytes that are not a conversation. The connection must be closed."""


def encode_frame(payload: bytes) -> bytes:
    """Put the length in front of `payload`. An empty or too long payload is our own bug, said at once."""
    if not 0 < len(payload) <= FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame must hold 1 to {FRAME_BYTES_MAX} bytes, not {len(payload)}")
    return len(payload).to_bytes(LENGTH_BYTES, "little") + payload


class FrameDecoder:
    """Bytes in, whole payloads out. Feed it any slicing of the stream; the payloads are the same."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._broken = ""

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame that are waiting for the rest."""
        return len(self._pending)

    def feed(self, data: bytes) -> list[bytes]:
        """Return every payload that `data` completes, in order."""
        if self._broken:
            raise ProtocolError(self._broken)
        self._pending += data
        payloads: list[bytes] = []
        start = 0
        while len(self._pending) - start >= LENGTH_BYTES:
            length = int.from_bytes(self._pending[start : start + LENGTH_BYTES], "little")
            if not 0 < length <= FRAME_BYTES_MAX:
                self._broken = f"a frame of {length} bytes was announced; the limit is {FRAME_BYTES_MAX}"
                self._pending.clear()
                raise ProtocolError(self._broken)
            end = start + LENGTH_BYTES + length
            if len(self._pending) < end:
                break
            payloads.append(bytes(self._pending[start + LENGTH_BYTES : end]))
            start = end
        del self._pending[:start]
        return payloads

    def end(self) -> None:
        """The stream ended. Ending inside a frame means that the other side died while it was speaking."""
        if self._broken:
            raise ProtocolError(self._broken)
        if self._pending:
            raise ProtocolError(f"the stream ended inside a frame, after {len(self._pending)} bytes of it")
