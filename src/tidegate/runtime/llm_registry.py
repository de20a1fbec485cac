"""The registry of language models: by name, with their files and what holds for each.

Owns finding the GGUF files that the settings name, or all there are in the models folder, and which projector
belongs to which model. What a model needs is asked of the predictor, what is loaded is the core's knowledge;
image models are the neighbour `registry`'s.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tidegate.core.faults import ClientError
from tidegate.core.house import LanguageModel
from tidegate.runtime.models import refusals
from tidegate.runtime.models.fingerprint import fingerprint_of
from tidegate.runtime.models.identity import Kind
from tidegate.runtime.models.model_file import Format
from tidegate.runtime.models.shelf import Model, resolve, scan
from tidegate.runtime.settings import Settings
from tidegate.runtime.settings_file import models_folder_of
from tidegate.runtime.settings_llm import LlmDefaults, LlmSettings, options_of
from tidegate.wire import messages
from tidegate.wire.llm_child import Evaluation

NO_PROJECTOR: Final = "none"
# Tokens whose chances a child computes in one step, at least; it makes its context with the same number.
OUTPUTS_MIN: Final = 32
# Raised whenever the same model needs other bytes than before: what was learned of it then counts no more.
_COUNTING: Final = 2
# The longest chat templates reach 20 kB.
TEMPLATE_BYTES_MAX: Final = 200_000
# Names of a model and of its projector share at least so many letters, unless there is only one model.
SHARED_LETTERS_MIN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmEntry:
    """One language model. `layers_count` are the layers that can be on a card, the output among them."""

    name: str
    path: Path
    mmproj: Path | None
    fingerprints: Mapping[str, str]
    architecture: str
    layers_count: int
    context_trained_count: int
    has_template: bool
    has_embeddings: bool
    options: LlmDefaults
    layers_max: int = -1
    aliases: tuple[str, ...] = ()
    template: str = ""  # The text of a chat template instead of the model's own.

    @property
    def fingerprint(self) -> str:
        """Names its files and everything that decides what it needs."""
        needs = self.options.model_copy(update={"model": "", "keep": LlmDefaults().keep, "threads": 0})
        told = [sorted(self.fingerprints.items()), needs.model_dump_json(), self.layers_max, _COUNTING]
        return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:40]

    @property
    def context_count(self) -> int:
        """Tokens of one conversation at most; no model is driven beyond what it was trained for."""
        return min(self.options.context, self.context_trained_count or self.options.context)

    @property
    def files(self) -> dict[str, Path]:
        """Paths by role."""
        return {"model": self.path, **({"mmproj": self.mmproj} if self.mmproj else {})}

    def question(self, device: str, ledger_path: str) -> messages.PredictLlm:
        """How the predictor is asked what it needs; `device` is "" where there is no card."""
        options = self.options
        return messages.PredictLlm(
            serial=0,
            path=str(self.path),
            device=device,
            ledger_path=ledger_path,
            projector_path=str(self.mmproj) if self.mmproj else "",
            layers_max=self.layers_max if device else 0,
            context_tokens_count=self.context_count,
            slots_count=options.slots,
            batch_tokens_count=options.batch,
            outputs_max=0 if self.has_embeddings else min(options.batch, max(options.slots, OUTPUTS_MIN)),
            kv_type_k=options.kv_type.value,
            kv_type_v=options.kv_type.value,
            flash_attention=options.flash_attention,
            is_reproducible=options.evaluation is Evaluation.REPRODUCIBLE,
            image_tokens_max=options.image_tokens_max if self.mmproj else 0,
        )

    def as_core(self, card: str) -> LanguageModel:
        """The model as the core knows it."""
        return LanguageModel(
            name=self.name,
            card=card if self.layers_max else "",
            slots_count=self.options.slots,
            keep=self.options.keep.level,
            fingerprint=self.fingerprint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmRegistry:
    """All language models that can be used, and the files that cannot, with the reason."""

    entries: Mapping[str, LlmEntry] = field(default_factory=dict)
    default: str = ""
    refused: tuple[tuple[str, str], ...] = ()

    def find(self, name: str) -> LlmEntry:
        """A model by name or alias, "" for the default. Raises ClientError `unknown_model`."""
        if (found := self.named(name or self.default)) is not None:
            return found
        wanted = name.casefold()
        near = difflib.get_close_matches(wanted, [known.casefold() for known in self.entries], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ClientError(
            f"There is no language model {name!r}." if name else "There is no language model at all.",
            remedy=f"{hint}There are: {', '.join(self.entries)}."
            if self.entries
            else "Put a GGUF file of one into the models folder.",
            code="unknown_model",
        )

    def named(self, name: str) -> LlmEntry | None:
        """A model by name or alias, if there is one."""
        wanted = name.casefold()
        for entry in self.entries.values():
            if wanted in (entry.name.casefold(), *(alias.casefold() for alias in entry.aliases)):
                return entry
        return None

    def language_models(self, card: str) -> tuple[LanguageModel, ...]:
        """The models as the core knows them, on this card ("" = none)."""
        return tuple(entry.as_core(card) for entry in self.entries.values())


def gathered_llms(settings: Settings, *, taken: Collection[str] = ()) -> LlmRegistry:
    """The language models that the settings name, else all of the models folder. Blocks; opens no engine.

    `taken` are names of image models, which no language model may have.
    """
    folder = models_folder_of(settings)
    refused: list[tuple[str, str]] = []
    found = _configured(settings, folder, refused) if settings.llms else _scanned(settings, folder, refused)
    entries: dict[str, LlmEntry] = {}
    for entry in found:
        if entry.name in taken or entry.name in entries:
            refused.append(
                (entry.path.name, f"Another model is called {entry.name}; name it under [[llms]].")
            )
        else:
            entries[entry.name] = entry
    default = settings.llm.model
    if default and default not in entries:
        default = next((entry.name for entry in found if default in entry.aliases), "")
    return LlmRegistry(entries=entries, default=default or next(iter(entries), ""), refused=tuple(refused))


def _configured(settings: Settings, folder: Path, refused: list[tuple[str, str]]) -> list[LlmEntry]:
    found = []
    for own in settings.llms:
        try:
            model = resolve(own.file, models_folder=folder)
            check_language_model(model)
            found.append(_entry(own.name, model, _named_projector(own, model, folder), settings, own))
        except ClientError as fault:
            # One model that cannot be used must not take the others with it.
            refused.append((own.name, str(fault)))
    return found


def _named_projector(own: LlmSettings, model: Model, folder: Path) -> Model | None:
    if own.mmproj == NO_PROJECTOR:
        return None
    if not own.mmproj:
        beside = scan(model.path.parent).models if model.path.parent.is_dir() else ()
        return paired_projector(model, beside)
    projector = resolve(own.mmproj, models_folder=folder)
    if projector.identity.kind is not Kind.MMPROJ:
        words = projector.identity.words
        raise refusals.wrong_role(projector.path, option="mmproj", wanted="a projector", what=words)
    found, wanted = _projected_count(projector), _width(model)
    if found and wanted and found != wanted:
        raise refusals.projector_does_not_match(
            projector.path, found_count=found, model=model.path, wanted_count=wanted
        )
    return projector


def _scanned(settings: Settings, folder: Path, refused: list[tuple[str, str]]) -> list[LlmEntry]:
    if not folder.is_dir():
        return []
    shelf = scan(folder)
    found: list[LlmEntry] = []
    for model in shelf.models:
        if not _is_candidate(model):
            continue
        try:
            check_language_model(model)
            found.append(_entry(model.name, model, paired_projector(model, shelf.models), settings, None))
        except ClientError as fault:
            # As above; it is shown beside the others.
            refused.append((model.path.name, str(fault)))
    return found


def _is_candidate(model: Model) -> bool:
    """Whether it is a language model, and not a later part of one that is split over several files."""
    is_later_part = _number(model, "split.no") > 0
    return model.identity.kind is Kind.LLM and model.file.format is Format.GGUF and not is_later_part


def check_language_model(model: Model) -> None:
    """Refuse what the engine could not serve. Raises ClientError."""
    if model.identity.kind is not Kind.LLM or model.file.format is not Format.GGUF:
        raise refusals.not_a_language_model(model.path, model.identity.words)
    if not model.file.metadata_text("tokenizer.ggml.model"):
        raise refusals.incomplete_language_model(model.path, "vocabulary")
    if not _number(model, f"{model.identity.architecture}.block_count"):
        raise refusals.incomplete_language_model(model.path, "count of its layers")


def paired_projector(model: Model, beside: Sequence[Model]) -> Model | None:
    """The projector that was made for this model, by the width of its embeddings and by its name."""
    fitting = [
        other
        for other in beside
        if other.identity.kind is Kind.MMPROJ
        and other.path.parent == model.path.parent
        and _projected_count(other) == _width(model) > 0
    ]
    if not fitting:
        return None
    best = max(fitting, key=lambda other: (_shared_letters(model, other), other.name))
    rivals = [
        other
        for other in beside
        if _is_candidate(other) and other.path.parent == model.path.parent and _width(other) == _width(model)
    ]
    if len(rivals) > 1 and _shared_letters(model, best) < SHARED_LETTERS_MIN:
        return None  # Any of the models could be meant, and a wrong projector sees nonsense.
    return best


def _shared_letters(model: Model, projector: Model) -> int:
    bare = projector.name.casefold().replace("mmproj", "").strip("-_.")
    if bare.startswith("model"):
        bare = bare.removeprefix("model").strip("-_.")
    name = model.name.casefold()
    return next((count for count, (a, b) in enumerate(zip(name, bare, strict=False)) if a != b),
                min(len(name), len(bare)))  # fmt: skip


def _width(model: Model) -> int:
    return _number(model, f"{model.identity.architecture}.embedding_length")


def _projected_count(projector: Model) -> int:
    return _number(projector, "clip.vision.projection_dim") or _number(projector, "clip.audio.projection_dim")


def _number(model: Model, key: str) -> int:
    value = model.file.metadata.get(key, 0)
    return value if isinstance(value, int) else 0


def _entry(
    name: str, model: Model, projector: Model | None, settings: Settings, own: LlmSettings | None
) -> LlmEntry:
    folder = models_folder_of(settings)
    architecture = model.identity.architecture
    files: Iterable[tuple[str, Model | None]] = (("model", model), ("mmproj", projector))
    return LlmEntry(
        name=name,
        path=model.path,
        mmproj=projector.path if projector else None,
        fingerprints={role: fingerprint_of(known.file).text for role, known in files if known},
        architecture=architecture,
        layers_count=_number(model, f"{architecture}.block_count") + 1,
        context_trained_count=_number(model, f"{architecture}.context_length"),
        has_template=bool(model.file.metadata_text("tokenizer.chat_template")) or bool(own and own.template),
        has_embeddings=f"{architecture}.pooling_type" in model.file.metadata,
        options=options_of(settings.llm, own),
        layers_max=own.layers if own else -1,
        aliases=own.aliases if own else (),
        template=_template_text(own.template, folder) if own and own.template else "",
    )


def _template_text(name: str, folder: Path) -> str:
    """Read a chat template's file: a path, or a name in the models folder. Raises ClientError."""
    path = Path(name).expanduser()
    path = path if path.exists() else folder / name
    try:
        with path.open("rb") as file:
            raw = file.read(TEMPLATE_BYTES_MAX + 1)
        if len(raw) > TEMPLATE_BYTES_MAX:
            raise refusals.unusable_template(path, f"it is larger than {TEMPLATE_BYTES_MAX} bytes")
        return raw.decode("utf-8")
    except OSError as error:
        raise refusals.unusable_template(path, error.strerror or type(error).__name__) from error
    except UnicodeDecodeError as error:
        raise refusals.unusable_template(path, "it is not UTF-8") from error
