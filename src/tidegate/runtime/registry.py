"""The registry: the image models of a server by name, with what their headers say.

Owns finding the files that the settings name, or all there are in the models folder, and which components
two models share because they come from the same files. What is loaded is the core's knowledge. Opening
headers needs the engine and is done by the predictor's process (`surveyed`).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from tidegate.core.faults import ClientError
from tidegate.core.house import ImageModel
from tidegate.core.stage import Component
from tidegate.runtime.model_choice import IMAGE_KINDS, demo_folder
from tidegate.runtime.models.assembly import ImageFiles, assemble
from tidegate.runtime.models.extents import Extent, extents_of
from tidegate.runtime.models.fingerprint import fingerprint_of
from tidegate.runtime.models.shelf import resolve, scan
from tidegate.runtime.settings import ModelSettings, Settings
from tidegate.runtime.settings_file import models_folder_of
from tidegate.wire import messages

_ENCODERS: Final = ("clip_l", "clip_g", "t5xxl", "llm")
# Families whose text encoders are told nothing about the size of the image.
_SIZELESS: Final = ("SD 1", "SD 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model. `facts` are None until its headers were opened by the engine."""

    name: str
    files: Mapping[str, Path]
    fingerprints: Mapping[str, str]
    shapes: Mapping[str, str]
    family: str
    aliases: tuple[str, ...] = ()
    flash_attention: bool = True
    direct_convolution: bool = True
    threads: int = 0
    facts: messages.Opened | None = None
    owners: Mapping[Component, str] = field(default_factory=dict)
    extents: Mapping[Component, tuple[Extent, ...]] = field(default_factory=dict)

    @property
    def opened(self) -> messages.Opened:
        """What the headers say."""
        assert self.facts is not None, "a model of the registry was surveyed"
        return self.facts

    def owner(self, component: Component) -> str:
        """The model in whose name a component is loaded; another one when the two share its files."""
        return self.owners.get(component, self.name)

    def part(self, component: Component) -> str:
        """What the core calls the component's lease."""
        return f"{self.owner(component)}/{component}"

    def command(self, device: str) -> messages.Open:
        """How the engine opens it."""
        return messages.Open(
            serial=0,
            files={role: str(path) for role, path in self.files.items()},
            device=device,
            threads=self.threads,
            flash_attention=self.flash_attention,
            direct_convolution=self.direct_convolution,
            model=self.name,
        )

    def source(self, component: Component) -> str:
        """Names the files and options that a component is made of: equal for shared components."""
        match component:
            case Component.VAE:
                roles = [role for role in ("taesd", "vae") if role in self.files][:1] or ["model"]
            case Component.TEXT_ENCODER:
                roles = [role for role in (*_ENCODERS, "model") if role in self.files]
            case Component.DIFFUSION:
                roles = ["diffusion_model" if "diffusion_model" in self.files else "model"]
        told = [self.family, self.flash_attention, self.direct_convolution, self.threads]
        told += [f"{role}={self.fingerprints.get(role, '')}" for role in roles]
        return hashlib.sha256(msgspec.json.encode(told)).hexdigest()

    def embedding_key(self, request: messages.ImageRequest, *, engine_build: str, device: str) -> str:
        """Under which the embeddings of a prompt are remembered."""
        sized = not self.family.startswith(_SIZELESS)
        told = {
            "source": self.source(Component.TEXT_ENCODER),
            "prompt": request.prompt,
            "negative": request.negative,
            # Without guidance the engine leaves the negative half out.
            "cfg": request.cfg != 1.0,
            "clip_skip": request.clip_skip,
            "size": [request.width, request.height] if sized else [],
            "engine": engine_build,
            "device": device,
        }
        return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """All models that can be used, and the files that cannot, with the reason."""

    entries: Mapping[str, Entry]
    default: str = ""
    refused: tuple[tuple[str, str], ...] = ()

    def find(self, name: str) -> Entry:
        """A model by name or alias, "" for the default. Raises ClientError `unknown_model`."""
        wanted = (name or self.default).casefold()
        for entry in self.entries.values():
            if wanted in (entry.name.casefold(), *(alias.casefold() for alias in entry.aliases)):
                return entry
        known = ", ".join(self.entries) or "none"
        near = difflib.get_close_matches(wanted, [known.casefold() for known in self.entries], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ClientError(
            f"There is no image model {name!r}." if name else "There is no image model at all.",
            remedy=f"{hint}There are: {known}." if self.entries else "Put one into the models folder.",
            code="unknown_model",
        )

    def image_models(self) -> tuple[ImageModel, ...]:
        """The models as the core knows them."""
        return tuple(
            ImageModel(
                name=entry.name,
                weights_bytes={
                    Component(name): facts.file_bytes
                    for name, facts in sorted(entry.opened.components.items())
                    if name in set(Component)
                },
                owners={part: owner for part, owner in entry.owners.items() if owner != entry.name},
            )
            for entry in self.entries.values()
        )


def gathered(settings: Settings) -> Registry:
    """The models that the settings name, else all of the models folder. Blocks; opens no engine."""
    folder = models_folder_of(settings)
    refused: list[tuple[str, str]] = []
    entries: dict[str, Entry] = {}
    for entry in _configured(settings, folder, refused) if settings.models else _scanned(folder, refused):
        entries.setdefault(entry.name, entry)
    default = settings.defaults.model or next(iter(entries), "")
    return Registry(entries=entries, default=default, refused=tuple(refused))


def with_facts(registry: Registry, facts: Mapping[str, messages.Opened | str]) -> Registry:
    """The registry with what the engine said about each model: its facts, or why it refuses it."""
    entries: dict[str, Entry] = {}
    refused = list(registry.refused)
    for name, entry in registry.entries.items():
        said = facts[name]
        if isinstance(said, str):
            refused.append((name, said))
        else:
            entries[name] = replace(entry, facts=said)
    shared = _shared(entries.values())
    entries = {name: replace(entry, owners=shared[name]) for name, entry in entries.items()}
    default = registry.default if registry.default in entries else next(iter(entries), "")
    return Registry(entries=entries, default=default, refused=tuple(refused))


def _shared(entries: Iterable[Entry]) -> dict[str, dict[Component, str]]:
    first: dict[tuple[Component, str], str] = {}
    owners: dict[str, dict[Component, str]] = {}
    for entry in entries:
        owners[entry.name] = {
            component: first.setdefault((component, entry.source(component)), entry.name)
            for component in Component
        }
    return owners


def _configured(settings: Settings, folder: Path, refused: list[tuple[str, str]]) -> list[Entry]:
    found = []
    for model in settings.models:
        try:
            main = resolve(model.model or model.diffusion_model, models_folder=folder)
            given = {
                role: resolve(name, models_folder=folder).path for role, name in model.companions.items()
            }
            found.append(_entry(model.name, assemble(main, given), model))
        except ClientError as fault:
            # One model that cannot be used must not take the others with it.
            refused.append((model.name, str(fault)))
    return found


def _scanned(folder: Path, refused: list[tuple[str, str]]) -> list[Entry]:
    found: list[Entry] = []
    for place in (folder, demo_folder()):
        if place is None or not place.is_dir() or found:
            continue  # The demo models are for a machine that has no others.
        shelf = scan(place)
        refused += [(path.name, str(fault)) for path, fault in shelf.refused]
        for model in shelf.models:
            if model.identity.kind not in IMAGE_KINDS:
                continue
            try:
                found.append(_entry(model.name, assemble(model)))
            except ClientError as fault:
                # As above; most often a VAE or text encoder is missing.
                refused.append((model.path.name, str(fault)))
    return found


def _entry(name: str, files: ImageFiles, model: ModelSettings | None = None) -> Entry:
    prints = {role: fingerprint_of(known.file) for role, known in files.models.items()}
    return Entry(
        name=name,
        files={role: known.path for role, known in files.models.items()},
        fingerprints={role: found.text for role, found in prints.items()},
        shapes={role: found.shape_text for role, found in prints.items()},
        family=files.main.identity.family,
        aliases=model.aliases if model else (),
        flash_attention=model.flash_attention if model else True,
        direct_convolution=model.direct_convolution if model else True,
        threads=model.threads if model else 0,
        extents=extents_of(files),
    )
