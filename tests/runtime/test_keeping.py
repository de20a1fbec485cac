"""What is kept and for how long, where it is kept, and what is read ahead."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tidegate.core.faults import ClientError
from tidegate.core.quantity import MIB
from tidegate.core.stage import Component
from tidegate.runtime import settings_file
from tidegate.runtime.gallery import Gallery
from tidegate.runtime.models.assembly import assemble
from tidegate.runtime.models.extents import bytes_of, extents_of
from tidegate.runtime.models.shelf import open_model
from tidegate.runtime.prefetch import advised
from tidegate.runtime.settings import KeepSettings, Settings
from tidegate.runtime.store import Store
from tidegate.runtime.views import ImageView


def kept(state: Path, keep: KeepSettings) -> Gallery:
    store = Store(state)
    store.prepare()
    gallery = Gallery(state, store, keep)
    assert not gallery.open()
    return gallery


def add(gallery: Gallery, number: int, *, size_bytes: int = 10) -> None:
    view = ImageView(
        id=f"image{number}",
        job="job",
        index=number,
        model="tiny",
        seed=number,
        width=8,
        height=8,
        created_at_ms=number,
        size_bytes=size_bytes,
        pixels_sha256="",
        parameters="",
    )
    gallery.take(view, bytes([number]) * 10)
    assert not gallery.file()


def test_the_oldest_images_go_first_with_their_files(tmp_path: Path) -> None:
    gallery = kept(tmp_path, KeepSettings(images_count_max=3))
    for number in range(5):
        add(gallery, number)
    assert [view.id for view in gallery.page(count_max=9, before="")] == ["image4", "image3", "image2"]
    assert len(list((tmp_path / "images").iterdir())) == 3
    assert len(list((tmp_path / "objects").glob("??/*"))) == 3
    # A lower limit holds from the next start on.
    fewer = kept(tmp_path, KeepSettings(images_count_max=1))
    assert [view.id for view in fewer.page(count_max=9, before="")] == ["image4"]
    assert len(list((tmp_path / "objects").glob("??/*"))) == 1


def test_images_go_by_their_bytes_and_the_youngest_stays(tmp_path: Path) -> None:
    gallery = kept(tmp_path, KeepSettings(images_bytes_max=2 * MIB))
    for number in range(3):
        add(gallery, number, size_bytes=MIB)
    assert [view.id for view in gallery.page(count_max=9, before="")] == ["image2", "image1"]
    add(gallery, 3, size_bytes=5 * MIB)
    assert [view.id for view in gallery.page(count_max=9, before="")] == ["image3"]


def test_a_picture_that_two_images_share_stays_for_the_second(tmp_path: Path) -> None:
    gallery = kept(tmp_path, KeepSettings(images_count_max=2))
    add(gallery, 1)
    view = gallery.view("image1")
    for name in ("a", "b"):
        gallery.take(ImageView(**{**_fields(view), "id": name}), bytes([1]) * 10)
    assert not gallery.file()
    assert gallery.png("b") == bytes([1]) * 10


def _fields(view: ImageView) -> dict[str, object]:
    return {name: getattr(view, name) for name in view.__dataclass_fields__}


def test_each_component_is_read_ahead_by_its_own_bytes(sd1_tiny: Path) -> None:
    files = assemble(open_model(sd1_tiny))
    extents = extents_of(files)
    whole_bytes = sd1_tiny.stat().st_size
    encoder, diffusion = extents[Component.TEXT_ENCODER], extents[Component.DIFFUSION]
    assert bytes_of(encoder) + bytes_of(diffusion) <= whole_bytes
    assert bytes_of(encoder) + bytes_of(diffusion) > whole_bytes * 95 // 100, "hardly a tensor is left out"
    for one in encoder:
        for other in diffusion:
            apart = one.offset_bytes + one.size_bytes <= other.offset_bytes
            assert apart or other.offset_bytes + other.size_bytes <= one.offset_bytes
    assert {extent.path.name for extent in extents[Component.VAE]} == {"taesd.safetensors"}
    assert advised(extents[Component.VAE]) == bytes_of(extents[Component.VAE])


def test_without_a_home_the_state_folder_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_uid: int) -> pwd.struct_passwd:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "TIDEGATE_STATE", "TIDEGATE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    assert settings_file.load() == Settings()
    with pytest.raises(ClientError, match="--state"):
        settings_file.state_folder_of(Settings())
    named = settings_file.load("", settings_file.Overrides(state=os.fspath(Path("/srv/tidegate"))))
    assert settings_file.state_folder_of(named) == Path("/srv/tidegate")
