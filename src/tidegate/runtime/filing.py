"""Filing: finished pictures on their way from the journal into the gallery's files.

    a picture  ->  the gallery's memory  ->  the journal, in the commit that ends its job  ->  its two files

A picture is safe with that commit, so the job is answered after one wait for the disk. The files, which make
it readable without the journal, take four more; they are written a moment later, several pictures at once.

Owns that moment and what is left of it after a crash. What the files are is the `gallery`'s part.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tidegate.runtime.gallery import Gallery
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.records import Picture, Record
from tidegate.runtime.views import ImageView

# Long enough not to disturb somebody who asks for one image after the other; a journal that is damaged would
# cost the pictures of this time.
FILE_S: Final = 0.2
# When so many bytes wait in memory, whoever makes more of them writes them first.
WAITING_BYTES_MAX: Final = 64 << 20


class Filing:
    """The pictures of one server that are not in their files yet. Belongs to one event loop."""

    def __init__(
        self,
        gallery: Gallery,
        *,
        thread: ThreadPoolExecutor,
        remember: Callable[[Sequence[Record]], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        """`remember` and `on_trouble` are called on the thread; the latter with "" when all is well."""
        self._gallery = gallery
        self._thread = thread
        self._remember = remember
        self._on_trouble = on_trouble
        self._writing = threading.Lock()
        self._due: deque[str] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def resume(self, pictures: Mapping[str, Picture]) -> None:
        """Go on with what an earlier server did not come to."""
        for name, picture in pictures.items():
            self._gallery.take(picture.view, picture.png)
            self.committed(name)

    def take(self, view: ImageView, png: bytes) -> Record:
        """Keep a picture in memory, and return the record by which it is safe. Blocks when many wait."""
        self._gallery.take(view, png)
        if sum(self._gallery.unsaved().values()) > WAITING_BYTES_MAX:
            self.write()
        return rec.picture_made(view, png)

    def committed(self, image: str) -> None:
        """The journal has the picture; from now on its files may take their time."""
        self._due.append(image)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FILE_S, self._begin)

    def close(self) -> None:
        """Write what is left. Blocks."""
        if self._timer is not None:
            self._timer.cancel()
        self.write()

    def write(self) -> None:
        """Write the files of every picture that is only in memory, and let the journal forget those that are
        there. Blocks.
        """
        with self._writing:
            due = [self._due.popleft() for _ in range(len(self._due))]
            self._on_trouble(self._gallery.file())
            # One that was deleted meanwhile, or is too old to be kept, needs no file either.
            left = self._gallery.unsaved()
            self._due.extendleft(image for image in due if image in left)
            done = [rec.picture_filed(image) for image in due if image not in left]
        if done:
            self._remember(done)

    def _begin(self) -> None:
        self._timer = None
        self._thread.submit(self.write)
