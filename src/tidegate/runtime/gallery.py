"""The gallery: finished images with what is known about them, readable without the journal.

    <state>/images/<id>.json   one per image; names the PNG object in the store

Owns these files and the index of them in memory. Because each image stands for itself, a lost journal loses
no picture. Methods that touch the disk block and are called on the `files` or `pictures` thread; the index
is only replaced as a whole or by single items, so that the loop may read it at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Final

import msgspec

from tidegate.core.faults import ClientError
from tidegate.runtime.settings import KeepSettings
from tidegate.runtime.store import FOLDER_MODE, Store
from tidegate.runtime.views import ImageView
from tidegate.wire import artifacts

# Images that a full disk did not take, a few megabytes each.
UNSAVED_MAX: Final = 32


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of one JSON file."""

    view: ImageView
    png_sha256: str


class Gallery:
    """The images of one state folder."""

    def __init__(self, state: Path, store: Store, keep: KeepSettings) -> None:
        self._folder = state / "images"
        self._store = store
        self._keep = keep
        self._cards: dict[str, Card] = {}
        self._unsaved: dict[str, tuple[ImageView, bytes]] = {}

    def open(self) -> list[str]:
        """Read every image's file; return in words which of them are damaged."""
        self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        found, damaged = [], []
        for path in self._folder.glob("*.json"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Card))
            except (OSError, msgspec.MsgspecError) as error:
                damaged.append(f"The image file {path.name} cannot be read: {error}.")
        found.sort(key=lambda card: card.view.created_at_ms)
        self._cards = {card.view.id: card for card in found}
        self.trim()
        return damaged

    def take(self, view: ImageView, png: bytes) -> None:
        """Keep an image in memory until `file`; one of the same id is replaced."""
        self._unsaved[view.id] = (view, png)
        self._cards.pop(view.id, None)
        self._cards[view.id] = Card(view=view, png_sha256=hashlib.sha256(png).hexdigest())

    def file(self) -> str:
        """Write the files of every image that is only in memory, also of those that an earlier full disk did
        not take. Returns why some still have none, or "".
        """
        trouble = ""
        for image, (_, data) in tuple(self._unsaved.items()):
            card = self._cards.get(image)
            if card is None:
                continue  # Deleted meanwhile.
            try:
                self._store.put(data)
                artifacts.write_atomically(self._card_path(image), msgspec.json.encode(card))
            except OSError as error:
                trouble = f"Images cannot be saved: {error.strerror}. They are kept in memory for now."
                continue
            self._unsaved.pop(image, None)
            if image not in self._cards:  # Deleted while it was written.
                self._card_path(image).unlink(missing_ok=True)
        while trouble and len(self._unsaved) > UNSAVED_MAX:
            del self._unsaved[next(iter(self._unsaved))]
        self.trim()
        return trouble

    def unsaved(self) -> dict[str, int]:
        """Images that are only in memory, with their bytes."""
        return {image: len(png) for image, (_, png) in self._unsaved.copy().items()}

    def trim(self) -> None:
        """Let the oldest images go until what is kept is within its limits; the youngest one always stays."""
        count = len(self._cards)
        total_bytes = sum(card.view.size_bytes for card in tuple(self._cards.values()))
        too_many: list[Card] = []
        for card in tuple(self._cards.values())[:-1]:
            if count <= self._keep.images_count_max and total_bytes <= self._keep.images_bytes_max:
                break
            too_many.append(card)
            count -= 1
            total_bytes -= card.view.size_bytes
        for card in too_many:
            self._unsaved.pop(card.view.id, None)
            self._cards.pop(card.view.id, None)
        kept = self.objects() if too_many else set()
        for card in too_many:
            # On a disk that takes no change they stay, and are counted again at the next start.
            with contextlib.suppress(OSError):
                self._card_path(card.view.id).unlink(missing_ok=True)
                if card.png_sha256 not in kept:
                    self._store.remove(card.png_sha256)

    def page(self, *, count_max: int, before: str) -> tuple[ImageView, ...]:
        """The youngest images first, beginning after `before`."""
        views = [card.view for card in reversed(self._cards.values())]
        if before:
            names = [view.id for view in views]
            views = views[names.index(before) + 1 :] if before in names else []
        return tuple(views[:count_max])

    def has(self, image: str) -> bool:
        """Whether the image is there."""
        return image in self._cards

    def view(self, image: str) -> ImageView:
        """One image. Raises ClientError `unknown_image`."""
        return self._card(image).view

    def png(self, image: str) -> bytes:
        """The PNG file of an image. Raises ClientError."""
        path = self._store.path(self._card(image).png_sha256)
        if (unsaved := self._unsaved.get(image)) is not None:
            return unsaved[1]
        try:
            return path.read_bytes()
        except OSError as error:
            raise ClientError(
                f"The file of the image {image} cannot be read: {error.strerror}.",
                remedy="It was removed from outside; make the image again from its recipe.",
                code="unknown_image",
            ) from error

    def delete(self, image: str) -> None:
        """Remove an image. Raises ClientError and OSError."""
        card = self._card(image)
        del self._cards[image]
        self._unsaved.pop(image, None)
        self._card_path(image).unlink(missing_ok=True)
        if not any(other.png_sha256 == card.png_sha256 for other in self._cards.values()):
            with contextlib.suppress(OSError):  # the sweep at the next start takes it
                self._store.path(card.png_sha256).unlink(missing_ok=True)

    def objects(self) -> set[str]:
        """Every object that an image needs."""
        return {card.png_sha256 for card in self._cards.values()}

    def _card_path(self, image: str) -> Path:
        return self._folder / f"{image}.json"

    def _card(self, image: str) -> Card:
        try:
            return self._cards[image]
        except KeyError:
            raise ClientError(
                f"There is no image {image}.", remedy="GET /api/images lists them.", code="unknown_image"
            ) from None
