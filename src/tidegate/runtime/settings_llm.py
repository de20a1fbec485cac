"""Settings of language models: what holds for all of them, and what one of them says otherwise.

Owns the tables `[llm]` and `[[llms]]` of the settings file. The other tables are the neighbour `settings`;
which files there are is found by `llm_registry`.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tidegate.core.llm.level import Level
from tidegate.wire.llm_child import Evaluation, Overflow

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
PATH_LENGTH_MAX = 4_096

# The loop in `tidegate.workers.llm`.
OWN_BACKEND: Final = "tidegate"


class KvType(enum.StrEnum):
    """In which type the KV cache is kept."""

    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


class Keep(enum.StrEnum):
    """At which level a model is held; auto: as the card allows."""

    AUTO = "auto"
    HOT = "hot"
    WARM = "warm"
    COLD = "cold"

    @property
    def level(self) -> Level | None:
        """As the core has it."""
        return None if self is Keep.AUTO else Level(self.value)


class LlmTable(BaseModel):
    """Base of both tables: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LlmDefaults(LlmTable):
    """What holds for every language model that does not say otherwise."""

    model: str = Field(default="", description="Name of the default language model; none: the first.")
    context: int = Field(default=8_192, ge=256, le=4_194_304, description="Tokens of one conversation.")
    slots: int = Field(default=2, ge=1, le=64, description="Conversations served at the same time.")
    kv_type: KvType = KvType.F16
    evaluation: Evaluation = Evaluation.THROUGHPUT
    overflow: Overflow = Overflow.END
    keep: Keep = Field(default=Keep.AUTO, description="At which level it is held; auto: as there is room.")
    flash_attention: bool = True
    batch: int = Field(default=512, ge=32, le=16_384, description="Tokens of a prompt evaluated at once.")
    image_tokens_max: int = Field(default=1_024, ge=16, le=2_116, description="Tokens of one picture.")
    threads: int = Field(default=0, ge=0, le=1_024, description="Threads of the CPU; 0: as many as cores.")


class LlmSettings(LlmTable):
    """One language model by name. Files are paths, or names in the models folder.

    A projector (`mmproj`) that is not named is looked for beside the model; "none" is for none. What is left
    out is as `[llm]` says.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    file: str = Field(min_length=1, max_length=PATH_LENGTH_MAX)
    mmproj: str = Field(default="", max_length=PATH_LENGTH_MAX)
    aliases: tuple[Annotated[str, Field(pattern=NAME_PATTERN)], ...] = Field(default=(), max_length=32)
    context: int | None = Field(default=None, ge=256, le=4_194_304)
    slots: int | None = Field(default=None, ge=1, le=64)
    kv_type: KvType | None = None
    layers: int = Field(
        default=-1, ge=-1, le=10_000, description="Layers on the card at most; -1: all there are."
    )
    evaluation: Evaluation | None = None
    overflow: Overflow | None = None
    keep: Keep | None = None
    flash_attention: bool | None = None
    batch: int | None = Field(default=None, ge=32, le=16_384)
    image_tokens_max: int | None = Field(default=None, ge=16, le=2_116)
    threads: int | None = Field(default=None, ge=0, le=1_024)
    template: str = Field(
        default="", max_length=PATH_LENGTH_MAX, description="File of a chat template instead of the model's."
    )
    backend: str = Field(
        default=OWN_BACKEND, max_length=40, description="Who computes; llama-server cannot be chosen yet."
    )

    @field_validator("backend")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if value == "llama-server":
            raise ValueError(
                "llama-server cannot compute for tidegate yet (docs/decisions says what is missing); "
                f"leave `backend` out, or say {OWN_BACKEND!r}"
            )
        if value != OWN_BACKEND:
            raise ValueError(f"there is only the backend {OWN_BACKEND!r}")
        return value


def options_of(common: LlmDefaults, own: LlmSettings | None) -> LlmDefaults:
    """What holds for one model."""
    if own is None:
        return common
    names = LlmDefaults.model_fields.keys() & LlmSettings.model_fields.keys()
    said = {name: getattr(own, name) for name in sorted(names) if getattr(own, name) is not None}
    return common.model_copy(update=said)
