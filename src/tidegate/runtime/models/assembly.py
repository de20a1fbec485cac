"""Assembly: which files together make one image model.

Owns `ImageFiles` and the choice of a VAE or TAESD beside a checkpoint that brings none. Single files are
judged by the neighbour `soundness`; the engine gets `ImageFiles.files` as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.core.faults import ClientError
from tidegate.runtime.models import refusals
from tidegate.runtime.models.identity import Kind
from tidegate.runtime.models.opening import SUFFIXES
from tidegate.runtime.models.shelf import Model, open_model
from tidegate.runtime.models.signatures import FAMILIES
from tidegate.runtime.models.soundness import ROLE_KINDS, check_image_model, check_latents, check_role

# Decoders of equal shape are trained for different latents; by custom their file names say for which.
FAMILY_HINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SDXL", ("xl",)),
    ("SD3.x", ("sd3", "taesd3")),
    ("Flux", ("flux", "taef1")),
    ("Wan", ("wan",)),
    ("Qwen Image", ("qwen",)),
    ("SD 1.x", ("sd1", "sd15", "v1-5", "ft-mse", "ft-ema")),
)
NEIGHBOURS_MAX = 200


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """One image model as files by role (`model` or `diffusion_model`, `vae`, ...), all opened and judged."""

    models: Mapping[str, Model]
    paired: tuple[str, ...] = ()
    """Roles that were found beside the model rather than given."""

    @property
    def main(self) -> Model:
        """The file that holds the diffusion model."""
        return self.models["model"] if "model" in self.models else self.models["diffusion_model"]

    @property
    def files(self) -> dict[str, str]:
        """Paths by role, as the engine takes them."""
        return {role: str(model.path) for role, model in self.models.items()}


def assemble(main: Model, given: Mapping[str, Path] | None = None) -> ImageFiles:
    """Complete an image model: `given` are files by role; a missing VAE is looked for beside the model.

    Raises `ClientError` when a file cannot play its role, or a text encoder or VAE is nowhere to be found.
    """
    check_image_model(main)
    models = {"model" if main.identity.kind is Kind.CHECKPOINT else "diffusion_model": main}
    for role, path in (given or {}).items():
        models[role] = open_model(path)
        check_role(models[role], role)
        if role in ("vae", "taesd"):
            check_latents(main, models[role])
    _check_encoders(main, models)
    if not _needs_decoder(main, models):
        return ImageFiles(models)
    decoder = best_decoder(main, neighbours(main.path))
    if decoder is None:
        raise refusals.vae_missing(
            main.path, family=main.identity.family, channels_count=main.identity.latent_channels_count
        )
    role = "vae" if decoder.identity.kind is Kind.VAE else "taesd"
    return ImageFiles({**models, role: decoder}, paired=(role,))


def neighbours(path: Path) -> list[Model]:
    """The sound VAE and TAESD files in the same folder, and in a folder `vae` beside or inside it."""
    folders = [path.parent, path.parent / "vae", path.parent / "VAE", path.parent.parent / "vae"]
    found: list[Model] = []
    for candidate in _candidates(folders, path):
        try:
            model = open_model(candidate)
        except ClientError:
            # A damaged neighbour is no reason to refuse this model; the scan of the folder reports it.
            continue
        if model.identity.kind in (Kind.VAE, Kind.TAESD):
            found.append(model)
    return found


def best_decoder(main: Model, decoders: Sequence[Model]) -> Model | None:
    """The decoder that fits best: equal latent channels, no name of another family, VAE before TAESD, then
    by name.
    """
    fitting = [model for model in decoders if _fits(main, model)]
    return min(fitting, key=lambda model: _rank(main, model), default=None)


def _candidates(folders: Iterable[Path], path: Path) -> list[Path]:
    paths: list[Path] = []
    for folder in folders:
        try:
            names = sorted(folder.iterdir())[:NEIGHBOURS_MAX]
        except OSError:
            # Most of these folders do not exist, and one that may not be listed is treated alike.
            continue
        paths += [p for p in names if p.suffix in SUFFIXES and p != path and p not in paths]
    return paths


def _hinted(name: str) -> str:
    folded = name.casefold()
    if folded.startswith("ae."):
        # Flux's own VAE is published under just this name.
        return "Flux"
    return next((family for family, hints in FAMILY_HINTS if any(hint in folded for hint in hints)), "")


def _fits(main: Model, decoder: Model) -> bool:
    wanted = main.identity.latent_channels_count
    if not wanted or decoder.identity.latent_channels_count != wanted:
        return False
    hint = _hinted(decoder.path.name)
    if decoder.path.name.casefold().startswith("taesd.") and main.identity.family.startswith("SDXL"):
        # The one called plain `taesd` is the one for SD 1 and 2; SDXL's is called `taesdxl`.
        return False
    if hint == "SD 1.x":
        return main.identity.family.startswith(("SD 1", "SD 2", "Instruct", "SDXS"))
    return not hint or main.identity.family.startswith(hint)


def _rank(main: Model, decoder: Model) -> tuple[bool, bool, bool, str]:
    same_name = decoder.name.casefold().startswith(main.name.casefold())
    return (
        not same_name,
        decoder.identity.kind is not Kind.VAE,
        not _hinted(decoder.path.name),
        decoder.path.name,
    )


def _needs_decoder(main: Model, models: Mapping[str, Model]) -> bool:
    family = FAMILIES.get(main.identity.family)
    without_vae = family is not None and family.vae_channels_count == 0
    return not without_vae and "vae" not in main.identity.components and not models.keys() & {"vae", "taesd"}


def _check_encoders(main: Model, models: Mapping[str, Model]) -> None:
    family = FAMILIES.get(main.identity.family)
    if family is None or not family.encoders:
        return
    present = [role for role in family.encoders if role in main.identity.encoders or role in models]
    missing = [role for role in family.encoders if role not in present]
    if missing and not (family.optional and present):
        options = " and ".join(f"--{role.replace('_', '-')} FILE" for role in missing)
        raise refusals.component_missing(main.path, "text encoder", remedy=f"Give it with {options}.")


assert set(ROLE_KINDS) >= {role for family in FAMILIES.values() for role in family.encoders}
