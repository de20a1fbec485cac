"""Schemas of chats and completions in this dialect: what may be asked.

Owns the field names and bounds of OpenAI's API, and of llama-server's further ones that people use. Fields
that mean nothing to a local model are taken and left alone; those that nobody knows are named in a notice.
What is answered is the neighbour `chat_answers`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self  # Any: JSON schemas are JSON of any shape

from pydantic import ConfigDict, Field, model_validator

from tidegate.api.openai.schemas import UNKNOWN_MAX, UNKNOWN_NAME_MAX
from tidegate.api.wishes import PICTURE_TEXT_MAX, Body, Name
from tidegate.runtime.order import SEED_MAX
from tidegate.wire import asks

MESSAGES_MAX: Final = 4_096
PARTS_MAX: Final = 256
TOOLS_MAX: Final = 128
STOPS_MAX: Final = 16
CHOICES_MAX: Final = 16
TOKENS_MAX: Final = 1 << 22
# Beyond this no context holds it, whatever the model; the body's own bound comes first.
TEXT_MAX: Final = 48 * 2**20
# Known to that API, and nothing that a model on this machine could follow.
LEFT_ALONE: Final = frozenset(
    "user metadata store service_tier prompt_cache_key prompt_cache_retention safety_identifier".split()
)

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
LongText = Annotated[str, Field(max_length=TEXT_MAX)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
Json = dict[str, Any]  # Any: see the import


class Asked(Body):
    """Base of what may carry fields of other servers."""

    model_config = ConfigDict(extra="allow")


class LlmSampling(Asked):
    """How tokens are chosen; what is left out is llama.cpp's default."""

    model: Name = Field(default="", description="A language model from /v1/models; empty: the default.")
    temperature: float | None = Field(default=None, ge=0, le=100, description="0: the likeliest token.")
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1 << 20, description="0: off.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-100, le=100)
    frequency_penalty: float | None = Field(default=None, ge=-100, le=100)
    repeat_penalty: float | None = Field(default=None, ge=0, le=100)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=TOKENS_MAX)
    dry_multiplier: float | None = Field(default=None, ge=0, le=100)
    dry_base: float | None = Field(default=None, ge=0, le=100)
    dry_allowed_length: int | None = Field(default=None, ge=0, le=TOKENS_MAX)
    dry_penalty_last_n: int | None = Field(default=None, ge=-1, le=TOKENS_MAX)
    dry_sequence_breakers: list[Annotated[str, Field(max_length=100)]] | None = Field(
        default=None, max_length=64
    )
    logit_bias: dict[str, float] | None = Field(
        default=None, max_length=1_024, description="Token ids, as texts, with what is added to each."
    )
    ignore_eos: bool = False
    seed: int | None = Field(default=None, ge=-1, le=SEED_MAX, description="-1 or none: one by chance.")
    stop: str | list[str] | None = Field(default=None, max_length=STOPS_MAX * 256)
    n: int | None = Field(default=1, ge=1, le=CHOICES_MAX)
    max_tokens: int | None = Field(default=None, ge=1, le=TOKENS_MAX)
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first; waiting counts too.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    grammar: str = Field(default="", max_length=1 << 20, description="A grammar in GBNF with the rule root.")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if len(self.stops) > STOPS_MAX or any(not text or len(text) > 256 for text in self.stops):
            raise ValueError(f"up to {STOPS_MAX} stop texts of 1 to 256 characters")
        for name in self.logit_bias or {}:
            if not name.isdecimal() or len(name) > 10:
                raise ValueError("logit_bias names tokens by their ids")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def notices(self) -> list[str]:
        """A notice about the fields that mean nothing here, or none."""
        names = [name[:UNKNOWN_NAME_MAX] for name in self.model_extra or {} if name not in LEFT_ALONE]
        if not names:
            return []
        more = f" and {len(names) - UNKNOWN_MAX} more" if len(names) > UNKNOWN_MAX else ""
        return [
            f"These fields mean nothing here and were left alone: {', '.join(names[:UNKNOWN_MAX])}{more}."
        ]


class StreamOptions(Asked):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class TextPart(Asked):
    """Words."""

    type: Literal["text"]
    text: LongText


class ImageUrl(Asked):
    """A picture as a `data:` URL; nothing is fetched."""

    url: Annotated[str, Field(max_length=PICTURE_TEXT_MAX)]
    detail: Name = "auto"


class ImagePart(Asked):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = LongText | Annotated[list[Part], Field(max_length=PARTS_MAX)]


class FunctionCall(Asked):
    """What was called; `arguments` is JSON text."""

    name: ToolName
    arguments: LongText


class ToolCall(Asked):
    """A call that the model made."""

    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Asked):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=TOOLS_MAX)
    tool_call_id: Name | None = None
    reasoning_content: LongText | None = None


class Function(Asked):
    """A function that may be called."""

    name: ToolName
    description: LongText | None = ""
    parameters: Json | None = None


class ToolEntry(Asked):
    """A tool; functions are the only kind here."""

    type: Literal["function"]
    function: Function


class NamedFunction(Asked):
    """A function by name."""

    name: ToolName


class NamedTool(Asked):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class PlainFormat(Asked):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaText(Asked):
    """A JSON schema with its name."""

    name: Name = ""
    schema_: Json | None = Field(default=None, alias="schema")
    strict: bool | None = None


class SchemaFormat(Asked):
    """JSON of a shape; it is always kept to, `strict` or not."""

    type: Literal["json_schema"]
    json_schema: SchemaText


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(LlmSampling):
    """A conversation to be continued."""

    messages: list[Message] = Field(min_length=1, max_length=MESSAGES_MAX)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=TOKENS_MAX)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=asks.TOP_LOGPROBS_MAX)
    tools: list[ToolEntry] | None = Field(default=None, max_length=TOOLS_MAX)
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Json | None = Field(default=None, description="Further values for the template.")


class CompletionRequest(LlmSampling):
    """Texts, or tokens, to be continued as they are."""

    prompt: LongText | list[LongText] | list[TokenId] | list[list[TokenId]] = Field(
        default="", description="A text, tokens, or a list of either."
    )
    logprobs: int | None = Field(default=None, ge=0, le=asks.TOP_LOGPROBS_MAX)
    echo: bool | None = False
    suffix: Name | None = None
    best_of: int | None = Field(default=None, ge=1, le=CHOICES_MAX)


LlmSampling.model_rebuild()
