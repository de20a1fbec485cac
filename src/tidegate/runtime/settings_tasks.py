"""Settings of tasks: what language models are told when they enhance prompts and tag pictures.

Owns the tables `[enhance]` and `[tag]` of the settings file. The instructions that come with tidegate are
`tidegate.api.tasks`; who answers is chosen here by name.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

INSTRUCTION_MAX = 20_000
Instruction = Annotated[str, Field(max_length=INSTRUCTION_MAX)]


class TaskTable(BaseModel):
    """Base of both tables: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str = Field(default="", description="Name of the language model; none: the default one.")
    temperature: float = Field(default=0.7, ge=0, le=100)


class EnhanceSettings(TaskTable):
    """How a short idea becomes a prompt. What is empty is as it comes with tidegate."""

    tokens_max: int = Field(default=256, ge=16, le=4_096)
    instruction: Instruction = Field(default="", description="Instead of those for each family.")
    sd1: Instruction = Field(default="", description="For Stable Diffusion 1 and 2: tags.")
    sdxl: Instruction = Field(default="", description="For SDXL: phrases.")
    natural: Instruction = Field(default="", description="For SD 3, Flux and later: sentences.")


class TagSettings(TaskTable):
    """How a picture becomes tags, a caption and a rating."""

    temperature: float = Field(default=0.2, ge=0, le=100)
    tags_max: int = Field(default=40, ge=1, le=200)
    instruction: Instruction = Field(default="", description="Instead of those for each style.")
