"""Brackets: where a JSON value ends that comes in pieces.

Owns counting brackets outside of texts. Whether what stands between them is JSON is not its business.
"""

from __future__ import annotations

import re
from typing import Final

_WITHIN: Final = re.compile(r'[{}\[\]"]')
_IN_TEXT: Final = re.compile(r'["\\]')


class Brackets:
    """Reads an object or list, piece by piece, to its last bracket."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self.is_closed = False

    def take(self, text: str) -> int:
        """How many characters of the text still belong to the value."""
        at = 0
        while at < len(text) and not self.is_closed:
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_IN_TEXT if self._in_text else _WITHIN).search(text, at)
            if found is None:
                return len(text)
            at = found.end()
            self._count(found.group())
        return at

    def _count(self, sign: str) -> None:
        match sign:
            case "\\":
                self._escaped = True
            case '"':
                self._in_text = not self._in_text
            case "{" | "[":
                self._depth += 1
            case _:
                self._depth -= 1
                self.is_closed = self._depth <= 0
