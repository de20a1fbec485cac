"""Models: those that asks may name, opened without their weights.

Owns opening and closing them, and what needs nothing else: tokens for a text, a text for tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tidegate.core.faults import ClientError
from tidegate.wire import llm_front
from tidegate.wire.messages import FaultKind, Message
from tidegate.workers.front import tools
from tidegate.workers.front.templates import Template
from tidegate.workers.front.vocabulary import UnreadableModel, Vocabulary

# Whoever asks for tokens waits on the same thread as everybody else's answers; and they travel in one frame.
LETTERS_MAX: Final = 1 << 20


@dataclass(slots=True, kw_only=True)
class Model:
    """A model that asks may name."""

    order: llm_front.OpenModel
    vocabulary: Vocabulary
    template: Template | None
    template_fault: ClientError | None = None

    @property
    def tools_family(self) -> str:
        """Which way of calling tools the template has; "" for none that we know."""
        return str(tools.family_of(self.template.source)) if self.template is not None else ""

    @property
    def context_count(self) -> int:
        """How many tokens a conversation can hold."""
        return self.order.context_tokens_count


class Models:
    """All of them, by name."""

    def __init__(self) -> None:
        self._open: dict[str, Model] = {}

    def named(self, name: str) -> Model:
        """One of them. Raises ClientError."""
        model = self._open.get(name)
        if model is None:
            raise ClientError(f"There is no language model {name}.", code="unknown_model")
        return model

    def open(self, order: llm_front.OpenModel) -> llm_front.ModelOpened | llm_front.FrontRefused:
        """Open one; a broken template is no reason not to."""
        try:
            vocabulary = Vocabulary(order.path)
        except UnreadableModel as error:
            told = f"{order.model} cannot be opened: {error}."
            return llm_front.FrontRefused(serial=order.serial, fault=FaultKind.INVALID_MODEL, message=told)
        model = Model(order=order, vocabulary=vocabulary, template=None)
        try:
            model.template = vocabulary.template(order.template)
        except ClientError as error:
            model.template_fault = error
        self._open[order.model] = model
        return llm_front.ModelOpened(
            serial=order.serial,
            model=order.model,
            vocabulary_count=vocabulary.count,
            context_trained_count=vocabulary.context_trained_count,
            name=vocabulary.name,
            architecture=vocabulary.architecture,
            has_template=model.template is not None,
            tools_family=model.tools_family,
            sees=bool(order.projector_path),
        )

    def close(self, name: str) -> None:
        """Forget one; nothing happens when it is not open."""
        model = self._open.pop(name, None)
        if model is not None:
            model.vocabulary.close()

    def translated(self, command: llm_front.Tokenize | llm_front.Detokenize) -> Message:
        """Tokens for a text, or the other way round."""
        try:
            vocabulary = self.named(command.model).vocabulary
            if isinstance(command, llm_front.Tokenize):
                if len(command.text) > LETTERS_MAX:
                    told = f"A text of {len(command.text)} letters; {LETTERS_MAX} are the most."
                    raise ClientError(told, remedy="Cut it into parts.", code="bad_messages")
                ids = vocabulary.tokens(
                    command.text, adds_special=command.adds_special, parses_special=command.parses_special
                )
                pieces = tuple(vocabulary.piece(token) for token in ids)
                return llm_front.Tokenized(serial=command.serial, ids=tuple(ids), pieces=pieces)
            vocabulary.check(command.ids)
        except ClientError as error:
            return llm_front.FrontRefused(
                serial=command.serial,
                fault=FaultKind.INVALID_REQUEST,
                message=error.message,
                code=error.code,
                remedy=error.remedy,
            )
        raw = b"".join(vocabulary.piece(token) for token in command.ids)
        return llm_front.Detokenized(serial=command.serial, text=raw.decode("utf-8", "replace"))
