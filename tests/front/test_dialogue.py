"""Dialogue: what the engine is given for a chat, and how its answer is heard; schemas and thoughts too."""

from __future__ import annotations

import json

import pytest

from chat_layouts import THINKING
from front_samples import NOW, SPECIALS, chat, turn
from tidegate.core.faults import ClientError
from tidegate.synth.chat_templates import CHATML, LLAMA3
from tidegate.wire import asks
from tidegate.workers.front.dialogue import Prepared, prepare
from tidegate.workers.front.schemas import converted, grammar_of
from tidegate.workers.front.templates import Template
from tidegate.workers.front.thoughts import Thoughts

ASKED = turn("user", "What is the weather?")
TOOLS = (asks.Tool(name="weather", parameters={"type": "object"}),)


def quoted(schema: str) -> str:
    """In place of the engine's converter: a grammar that says which schema it stands for."""
    return f"root ::= {json.dumps(schema)}"


def prepared(asked: asks.Chat, source: str = CHATML) -> Prepared:
    return prepare(Template(source), asked, specials=SPECIALS, now=NOW, convert=quoted)


def heard(found: Prepared, text: str) -> tuple[str, str]:
    parser = found.parser()
    deltas = [delta for letter in text for delta in parser.feed(letter)] + list(parser.end())
    return "".join(delta.reasoning for delta in deltas), "".join(delta.text for delta in deltas)


def test_a_plain_chat_has_no_grammar() -> None:
    found = prepared(chat(ASKED))
    assert (found.grammar, found.triggers, found.kept) == ("", (), ())
    assert heard(found, "<tool_call> is a tag") == ("", "<tool_call> is a tag")


def test_tools_at_will_are_held_to_their_shape_once_a_call_begins() -> None:
    found = prepared(asks.Chat(turns=(ASKED,), tools=TOOLS))
    assert found.triggers == ("<tool_call>",) and found.kept == ("<tool_call>", "</tool_call>")
    assert found.grammar.startswith("root ::= tool-call") and "\ntool-body ::= " in found.grammar
    parser = found.parser()
    parser.feed('<tool_call>{"name": "weather", "arguments": {}}</tool_call>')
    assert parser.has_calls is True


def test_a_forced_call_is_held_to_its_shape_from_the_start() -> None:
    asked = asks.Chat(turns=(ASKED,), tools=TOOLS, choice=asks.Choice.REQUIRED)
    assert prepared(asked).triggers == () and prepared(asked).grammar
    llama = prepared(asked, LLAMA3)
    assert llama.triggers == () and '"<tool_call>' not in llama.grammar


def test_tools_that_shall_not_be_called_are_not_shown() -> None:
    found = prepared(asks.Chat(turns=(ASKED,), tools=TOOLS, choice=asks.Choice.NONE))
    assert 'weather"' not in str(found.pieces) and not found.tool_names


def test_a_shape_and_tools_exclude_each_other() -> None:
    asked = asks.Chat(turns=(ASKED,), tools=TOOLS, format=asks.Format(shape=asks.Shape.JSON))
    with pytest.raises(ClientError) as refused:
        prepared(asked)
    assert refused.value.code == "bad_tools"


# ---------------------------------------------------------------- thoughts


@pytest.mark.parametrize(
    ("text", "is_open", "thought", "words"),
    [
        ("<think>\nwell</think>\n\nHello", False, "well", "Hello"),
        ("well\n</think>\n\nHello", True, "well\n", "Hello"),
        ("Hello <think>x</think>", False, "", "Hello <think>x</think>"),
        ("<thin", False, "", "<thin"),
        ("still at it </thi", True, "still at it </thi", ""),
        ("\n <think>a</think>b", False, "a", "b"),
    ],
)
@pytest.mark.parametrize("step", [1, 4, 100])
def test_thoughts_are_told_apart(text: str, is_open: bool, thought: str, words: str, step: int) -> None:
    thoughts = Thoughts(is_open=is_open)
    said = [thoughts.feed(text[at : at + step]) for at in range(0, len(text), step)] + [thoughts.end()]
    assert ("".join(one for one, _ in said), "".join(one for _, one in said)) == (thought, words)


def test_a_prompt_that_ends_in_thoughts_is_noticed() -> None:
    found = prepared(chat(ASKED), THINKING)
    assert found.is_thinking and heard(found, "hm</think>Rain.") == ("hm", "Rain.")


def test_a_grammar_leaves_no_room_for_thoughts() -> None:
    found = prepared(asks.Chat(turns=(ASKED,), format=asks.Format(shape=asks.Shape.JSON)), THINKING)
    assert heard(found, '{"a": 1}') == ("", '{"a": 1}')


# ---------------------------------------------------------------- schemas


def test_shapes_become_grammars() -> None:
    assert grammar_of(asks.Format(), convert=quoted) == ""
    assert '\\"object\\"' in grammar_of(asks.Format(shape=asks.Shape.JSON), convert=quoted)
    own = asks.Format(shape=asks.Shape.GRAMMAR, text='root ::= "a"')
    assert grammar_of(own, convert=quoted) == own.text


DEEP = '{"items": ' * 100 + "{}" + "}" * 100


@pytest.mark.parametrize(
    "schema",
    [
        "[]", "no", '{"$ref": "https://example.org/a.json"}', '{"items": [{"$ref": "file:///etc/passwd"}]}',
        '{"maxItems": 1000000}', '{"properties": {"a": {"maxLength": 99999999}}}', DEEP, "[" * 100_000,
        '{"a": "' + "x" * 300_000 + '"}',
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_used_are_refused(schema: str) -> None:
    with pytest.raises(ClientError) as refused:
        converted(schema, convert=quoted)
    assert refused.value.code == "bad_schema"


def test_what_the_converter_does_not_understand_is_told() -> None:
    def puzzled(schema: str) -> str:
        raise ValueError(f"what is\n{schema}?")

    with pytest.raises(ClientError, match="what is \\{\\}\\?"):
        converted("{}", convert=puzzled)
