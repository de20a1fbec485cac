"""Pictures between journal and gallery: safe before they have files, and in their files soon after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tidegate.core.arbiter import Arbiter
from tidegate.core.house import RAM, CardDescriptor, House
from tidegate.core.quantity import GIB
from tidegate.runtime.filing import Filing
from tidegate.runtime.gallery import Gallery
from tidegate.runtime.journal.journal import Journal
from tidegate.runtime.journal.records import Picture, Record
from tidegate.runtime.settings import KeepSettings
from tidegate.runtime.store import Store
from tidegate.runtime.views import ImageView

HOUSE = House(ram=CardDescriptor(name=RAM, total_bytes=GIB))


def view(name: str) -> ImageView:
    return ImageView(
        id=name, job="job", index=0, model="tiny", seed=1, width=8, height=8, created_at_ms=1,
        size_bytes=4, pixels_sha256="", parameters="",
    )  # fmt: skip


class Desk:
    """A gallery with its filing, and what it asks the journal to note."""

    def __init__(self, state: Path) -> None:
        store = Store(state)
        store.prepare()
        self.state = state
        self.gallery = Gallery(state, store, KeepSettings())
        assert not self.gallery.open()
        self.noted: list[Record] = []
        self.troubles: list[str] = []
        self.on_noted: Callable[[], object] = int
        self.thread = ThreadPoolExecutor(1)
        self.filing = Filing(
            self.gallery, thread=self.thread, remember=self._note, on_trouble=self.troubles.append
        )

    def _note(self, records: Sequence[Record]) -> None:
        self.noted += records
        self.on_noted()

    def files(self) -> list[str]:
        return sorted(path.stem for path in (self.state / "images").glob("*.json"))

    def forgotten(self) -> list[object]:
        return [record.values[0] for record in self.noted if record.sql.startswith("DELETE")]


def found_after(folder: Path, records: Sequence[Record] = ()) -> dict[str, Picture]:
    """Write these rows, and read back what another server finds."""
    journal = Journal(folder, on_problem=print)
    found = journal.open()
    journal.begin(Arbiter(HOUSE), is_fresh=not found.last_number)
    journal.append(None, records)
    journal.close()
    again = Journal(folder, on_problem=print)
    pictures = again.open().pictures
    again.close()
    return pictures


def test_a_picture_that_has_no_files_yet_survives_in_the_journal(tmp_path: Path) -> None:
    before = Desk(tmp_path / "before")
    safe = [before.filing.take(view(name), name.encode()) for name in ("one", "two")]
    assert before.files() == [], "its files may take their time"
    assert before.gallery.png("two") == b"two", "it is there all the same"
    before.thread.shutdown()
    journal = tmp_path / "journal"
    journal.mkdir()
    pictures = found_after(journal, safe)
    assert pictures == {name: Picture(view=view(name), png=name.encode()) for name in ("one", "two")}

    async def resumed() -> Desk:
        after = Desk(tmp_path / "after")
        after.filing.resume(pictures)
        after.filing.close()
        after.thread.shutdown()
        return after

    after = asyncio.run(resumed())
    assert after.files() == ["one", "two"]
    assert [after.gallery.png(name) for name in ("one", "two")] == [b"one", b"two"]
    assert found_after(journal, after.noted) == {}


def test_files_are_written_a_moment_after_the_commit(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def scene() -> None:
        written, loop = asyncio.Event(), asyncio.get_running_loop()
        desk.on_noted = lambda: loop.call_soon_threadsafe(written.set)
        desk.filing.take(view("one"), b"1")
        desk.filing.committed("one")
        assert desk.files() == []
        await written.wait()

    asyncio.run(scene())
    desk.thread.shutdown()
    assert desk.files() == desk.forgotten() == ["one"]


def test_one_that_is_deleted_before_it_has_files_gets_none(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def scene() -> None:
        desk.filing.take(view("one"), b"1")
        desk.filing.committed("one")
        desk.gallery.delete("one")
        desk.filing.close()

    asyncio.run(scene())
    desk.thread.shutdown()
    assert desk.files() == [] and desk.forgotten() == ["one"]


def test_a_disk_that_takes_nothing_is_told_and_the_journal_keeps_the_picture(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    folder = tmp_path / "images"

    async def scene() -> None:
        desk.filing.take(view("one"), b"1")
        desk.filing.committed("one")
        folder.rmdir()
        desk.filing.write()
        assert "cannot be saved" in desk.troubles[-1] and desk.forgotten() == []
        folder.mkdir()
        desk.filing.close()

    asyncio.run(scene())
    desk.thread.shutdown()
    assert desk.troubles[-1] == "" and desk.files() == desk.forgotten() == ["one"]
