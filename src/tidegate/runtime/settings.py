"""Settings: what one TOML file may say, checked, with its JSON schema.

Owns names, kinds, bounds and defaults, and nothing else: no file is read here. Finding and reading the file,
and what the command line overrides, is the neighbour `settings_file`. Sizes are whole bytes or texts such as
"3GiB"; times are in milliseconds. An unknown name is refused, because a misspelt limit would be no limit.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from tidegate.core.faults import ClientError
from tidegate.core.planner.question import YieldClass
from tidegate.core.policy import Policy
from tidegate.core.quantity import GIB, MIB
from tidegate.runtime.cards.device import parse_device
from tidegate.runtime.cards.sizes import SIZE_MAX, parse_size
from tidegate.runtime.settings_llm import LlmDefaults, LlmSettings
from tidegate.runtime.settings_tasks import EnhanceSettings, TagSettings

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 7860
# A key that can be guessed is none; 16 characters of any alphabet resist guessing over a network.
KEY_LENGTH_MIN: Final = 16
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
# No limit, wait or count of the policy is sensibly larger: a day in milliseconds.
DAY_MS: Final = 86_400_000


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except ClientError as fault:  # pydantic gathers ValueErrors and says where they stood
        raise ValueError(str(fault)) from fault


def _device(value: str) -> str:
    try:
        parse_device(value)
    except ClientError as fault:  # as above
        raise ValueError(str(fault)) from fault
    return value


def _home(value: Path) -> Path:
    return value.expanduser()


Size = Annotated[
    int,
    BeforeValidator(_size, json_schema_input_type=int | str),
    Field(ge=0, le=SIZE_MAX, description="Bytes, or a text with a unit such as 512MiB."),
]
DeviceName = Annotated[
    str, AfterValidator(_device), Field(description="auto, cpu, cuda:0, vulkan:0, rocm:0, virtual:3GiB.")
]
Folder = Annotated[Path, AfterValidator(_home)]
ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Table(BaseModel):
    """Base of all tables of the file: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ListenSettings(Table):
    """Where requests come in, who may send them, and how large they may be."""

    host: str = Field(default=DEFAULT_HOST, description="Address to listen on; any but loopback needs keys.")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65_535, description="0 takes a free one.")
    keys: tuple[SecretStr, ...] = Field(default=(), max_length=1_000, description="API keys.")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), max_length=100, description="Names, beside localhost, under which clients call us."
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(), max_length=100, description="Origins of web pages elsewhere that may call us (CORS)."
    )
    body_bytes_max: Size = Field(default=48 * MIB, ge=1_024, description="Largest body of a request.")
    pixels_max: int = Field(default=4_194_304, ge=4_096, description="Largest picture, made or uploaded.")
    connections_max: int = Field(default=512, ge=4, le=65_536, description="Open connections.")

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < KEY_LENGTH_MIN for key in keys):
            raise ValueError(
                f"a key has at least {KEY_LENGTH_MIN} characters; `openssl rand -hex 24` makes one"
            )
        return keys

    @field_validator("allowed_origins")
    @classmethod
    def _whole_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, mark, rest = origin.partition("://")
            if not mark or scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise ValueError(f"{origin!r} is no origin; write it as https://example.org")
        return origins

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name may stand for any address, so it is taken for a public one
            return False

    @model_validator(mode="after")
    def _keys_where_needed(self) -> Self:
        if not self.is_loopback and not self.keys:
            raise ValueError(
                f"{self.host} can be reached from other machines, which needs keys: "
                f'keys = ["..."] under [listen]; `openssl rand -hex 24` makes one'
            )
        return self


class PathSettings(Table):
    """Folders. Empty means the usual place of this user."""

    models: Folder | None = Field(default=None, description="Where model files lie.")
    state: Folder | None = Field(
        default=None, description="Journal, checkpoints, images; private to the user."
    )


class CardSettings(Table):
    """One card that may be used."""

    device: DeviceName = "auto"
    headroom_bytes: Size | None = Field(
        default=None, description="Never given away; none: what the card needs."
    )


class RamSettings(Table):
    """Host memory."""

    limit_bytes: Size = Field(
        default=0, description="The most RAM to use; 0: what the machine and its groups allow."
    )
    headroom_bytes: Size = Field(default=256 * MIB, description="Never given away.")


class ModelSettings(Table):
    """One image model by name. `model` is a checkpoint, or `diffusion_model` its diffusion part alone.

    Files are paths, or names in the models folder; a VAE that is not named is looked for beside the model.
    """

    name: ModelName
    model: str = Field(default="", max_length=4_096)
    diffusion_model: str = Field(default="", max_length=4_096)
    vae: str = Field(default="", max_length=4_096)
    taesd: str = Field(default="", max_length=4_096)
    clip_l: str = Field(default="", max_length=4_096)
    clip_g: str = Field(default="", max_length=4_096)
    t5xxl: str = Field(default="", max_length=4_096)
    llm: str = Field(default="", max_length=4_096)
    aliases: tuple[ModelName, ...] = Field(default=(), max_length=32, description="Further names.")
    flash_attention: bool = True
    direct_convolution: bool = True
    threads: int = Field(default=0, ge=0, le=1_024, description="Threads of the CPU; 0: as many as cores.")

    @model_validator(mode="after")
    def _one_main_file(self) -> Self:
        if bool(self.model) == bool(self.diffusion_model):
            raise ValueError(f"{self.name}: give either model or diffusion_model")
        return self

    @property
    def companions(self) -> dict[str, str]:
        """Files by role, beside the main one."""
        roles = ("vae", "taesd", "clip_l", "clip_g", "t5xxl", "llm")
        return {role: getattr(self, role) for role in roles if getattr(self, role)}


class ImageDefaults(Table):
    """What a request gets that does not say otherwise."""

    model: str = Field(default="", description="Name of the default model; none: the first.")
    width: int = Field(default=512, ge=16, le=16_384)
    height: int = Field(default=512, ge=16, le=16_384)
    steps: int = Field(default=20, ge=1, le=1_000)
    cfg: float = Field(default=7.0, ge=0, le=100)
    sampler: str = ""
    scheduler: str = ""


class KeepSettings(Table):
    """How long what was made stays."""

    images_count_max: int = Field(default=10_000, ge=1, description="Oldest images go first.")
    images_bytes_max: Size = Field(default=20 * GIB, ge=MIB)
    embeddings_bytes_max: Size = Field(default=GIB, ge=MIB, description="Remembered prompts.")
    events_count_max: int = Field(default=100_000, ge=1_000, description="Events kept in the journal.")
    conversations_ram_bytes_max: Size = Field(
        default=GIB, ge=0, description="Saved state of idle conversations in RAM."
    )
    conversations_disk_bytes_max: Size = Field(
        default=4 * GIB, ge=0, description="Saved state of idle conversations on disk, over restarts."
    )


def _known_names(value: object) -> object:
    if isinstance(value, dict):
        known = {field.name for field in dataclasses.fields(Policy)}
        if unknown := sorted(str(name) for name in value if name not in known):
            raise ValueError(f"there is no {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return value


def _within_bounds(policy: Policy) -> Policy:
    for field in dataclasses.fields(Policy):
        value = getattr(policy, field.name)
        value_max = SIZE_MAX if field.name.endswith("_bytes") else DAY_MS
        if isinstance(value, int) and not 0 <= value <= value_max:
            raise ValueError(f"{field.name} is {value}; it goes from 0 to {value_max}")
    if sorted(policy.yield_order) != sorted(YieldClass):
        raise ValueError(f"yield_order names each of {', '.join(YieldClass)} once")
    return policy


# The core's own class, so that there is one place of names and defaults.
PolicySettings = Annotated[Policy, BeforeValidator(_known_names), AfterValidator(_within_bounds)]


class Settings(Table):
    """The whole file."""

    listen: ListenSettings = ListenSettings()
    paths: PathSettings = PathSettings()
    cards: tuple[CardSettings, ...] = Field(default=(CardSettings(),), min_length=1, max_length=1)
    ram: RamSettings = RamSettings()
    defaults: ImageDefaults = ImageDefaults()
    models: tuple[ModelSettings, ...] = Field(
        default=(), max_length=1_000, description="Image models; none: all that the models folder holds."
    )
    llm: LlmDefaults = LlmDefaults()
    llms: tuple[LlmSettings, ...] = Field(
        default=(), max_length=1_000, description="Language models; none: all that the models folder holds."
    )
    enhance: EnhanceSettings = EnhanceSettings()
    tag: TagSettings = TagSettings()
    keep: KeepSettings = KeepSettings()
    policy: PolicySettings = Policy()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        models: tuple[ModelSettings | LlmSettings, ...] = (*self.models, *self.llms)
        for name in (name for model in models for name in (model.name, *model.aliases)):
            if name.casefold() in seen:
                raise ValueError(f"two models are called {name!r}")
            seen.add(name.casefold())
        return self
