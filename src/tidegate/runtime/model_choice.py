"""Model choice: which files an image is made with, from what the user named or from what there is.

Owns the folders in which models are looked for and the sentence for when there is none. Reading, identifying
and pairing files is `tidegate.runtime.models`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tidegate.core.faults import ClientError
from tidegate.runtime.models.assembly import ImageFiles, assemble
from tidegate.runtime.models.fingerprint import fingerprint_of
from tidegate.runtime.models.identity import Kind
from tidegate.runtime.models.shelf import Model, resolve, scan

MODELS_VARIABLE: Final = "TIDEGATE_MODELS"
CACHE_VARIABLE: Final = "TIDEGATE_CACHE"
IMAGE_KINDS: Final = (Kind.CHECKPOINT, Kind.DIFFUSION)


def models_folder() -> Path:
    """Where a user's models lie: $TIDEGATE_MODELS, or the user's data folder."""
    if named := os.environ.get(MODELS_VARIABLE):
        return Path(named).expanduser()
    base = os.environ.get("XDG_DATA_HOME") or _in_home(".local/share", otherwise="/usr/local/share")
    return Path(base) / "tidegate" / "models"


def _in_home(name: str, *, otherwise: str) -> Path:
    try:
        return Path.home() / name
    except RuntimeError:  # no $HOME, and no entry among the users either: what lies there for everybody
        return Path(otherwise)


def demo_folder() -> Path | None:
    """The demo models that `make setup` made last, or None."""
    base = os.environ.get("XDG_CACHE_HOME") or _in_home(".cache", otherwise="/var/cache")
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path(base) / "tidegate")
    try:
        found = [(folder.stat().st_mtime_ns, folder) for folder in (cache / "models").glob("sd1-tiny-*")]
    except OSError:  # a cache that may not be read holds nothing for us
        return None
    whole = [(age, folder) for age, folder in found if (folder / "sd1-tiny.safetensors").is_file()]
    return max(whole)[1] if whole else None


def chosen_files(model: str, given: Mapping[str, Path], *, diffusion_model: str = "") -> ImageFiles:
    """The files of the model that the user named, or of the first one there is. Raises ClientError."""
    if model and diffusion_model:
        raise ClientError(
            "--model and --diffusion-model were both given.",
            remedy="Give --model for a whole checkpoint, --diffusion-model for its diffusion part alone.",
            code="two_models",
        )
    named = model or diffusion_model
    return assemble(resolve(named, models_folder=models_folder()) if named else _first(), given)


def choice_told(files: ImageFiles, *, was_named: bool) -> str:
    """The sentence about a model that the user did not choose; empty for one that was named."""
    if was_named:
        return ""
    return f"No model was named, so the first one found is used: {files.main.path}"


def fingerprints(files: ImageFiles) -> dict[str, str]:
    """What the files are now, by role."""
    return {role: fingerprint_of(model.file).text for role, model in files.models.items()}


def _first() -> Model:
    for model in _candidates():
        return model
    raise ClientError(
        f"There is no image model in {models_folder()}.",
        remedy="Put one there, name a file with --model, or make the demo models with `make setup`.",
        code="no_model",
    )


def _candidates() -> Iterator[Model]:
    for folder in (models_folder(), demo_folder()):
        if folder is not None and folder.is_dir():
            yield from (model for model in scan(folder).models if model.identity.kind in IMAGE_KINDS)
