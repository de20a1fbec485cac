"""Tools: which models can call them, how a call is forced, and how calls are heard in a stream.

Every stream is heard in one piece, letter by letter and in pieces of other lengths; the outcome is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_layouts import ALTERNATING, THINKING
from front_samples import chat, turn
from tidegate.core.faults import ClientError
from tidegate.synth.chat_templates import CHATML, LLAMA3
from tidegate.wire import asks
from tidegate.workers.front import tools
from tidegate.workers.front.tools import Family, Listener

NAMES = ("weather", "time")
TOOLS = tuple(asks.Tool(name=name, parameters={"type": "object"}) for name in NAMES)

NAMED = asks.Chat(turns=(), tools=TOOLS, choice=asks.Choice.NAMED, choice_name="rm")


def heard(family: Family, text: str, *, step: int) -> tuple[str, list[tuple[str, str]]]:
    """Words, and calls with their arguments, put together as a client does."""
    numbers: Iterator[int] = iter(range(100))
    listener = Listener(family, NAMES, identify=lambda: f"call_{next(numbers)}")
    deltas: list[asks.Delta] = []
    for at in range(0, len(text), step):
        deltas += listener.feed(text[at : at + step])
    deltas += listener.end()
    calls: list[list[str]] = []
    for delta in deltas:
        for piece in delta.calls:
            if piece.id:
                assert piece.id == f"call_{len(calls)}" and piece.index == len(calls)
                calls.append([piece.name, ""])
            calls[piece.index][1] += piece.arguments
    words = "".join(delta.text for delta in deltas)
    return words, [(name, arguments) for name, arguments in calls]


CALL = '{"name": "weather", "arguments": {"city": "Ulm } \\" {"}}'
ARGUMENTS = '{"city": "Ulm } \\" {"}'
HERMES = [
    ("It rains.", "It rains.", []),
    (f"<tool_call>\n{CALL}\n</tool_call>", "", [("weather", ARGUMENTS)]),
    (f"Let me see.\n\n<tool_call>\n{CALL}\n</tool_call>\n", "Let me see.", [("weather", ARGUMENTS)]),
    (f"<tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", "", [("weather", ARGUMENTS)] * 2),
    ('<tool_call>{"arguments": {}, "name": "time"}</tool_call>', "", [("time", "{}")]),
    ('<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
    ('<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("time", '{"a": 1}')]),
    # No calls at all: another name, no JSON, cut off before its name was complete, a tag that is none.
    ('<tool_call>{"name": "rm", "arguments": {}}', '<tool_call>{"name": "rm", "arguments": {}}', []),
    ("<tool_call>soon</tool_call>", "<tool_call>soon</tool_call>", []),
    ('<tool_call>{"name": "wea', '<tool_call>{"name": "wea', []),
    ("a < b <tool b <tool_cal", "a < b <tool b <tool_cal", []),
    # Cut off among its arguments: what there was has been handed out.
    ('<tool_call>{"name": "time", "arguments": {"zone": "U', "", [("time", '{"zone": "U')]),
    ("lines  \n\n end  \n", "lines  \n\n end  \n", []),
]
LLAMA = [
    ("It rains.", "It rains.", []),
    ('{"name": "time", "parameters": {"zone": "UTC"}}', "", [("time", '{"zone": "UTC"}')]),
    ('<|python_tag|>{"name": "time", "parameters": {}}', "", [("time", "{}")]),
    ('{"type": "function", "name": "time", "parameters": {}}', "", [("time", "{}")]),
    ('{"name": "time", "parameters": {}}; {"name": "time", "parameters": {"a": [1]}}', "",
     [("time", "{}"), ("time", '{"a": [1]}')]),
    ('{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
    ('{"answer": 42}', '{"answer": 42}', []),
    ("{x} is a set", "{x} is a set", []),
    ("\n {x}", "\n {x}", []),
    ('I call {"name": "time", "parameters": {}}', 'I call {"name": "time", "parameters": {}}', []),
    ('{"name": "ti', '{"name": "ti', []),
]  # fmt: skip


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("text", "words", "calls"), HERMES)
def test_hermes_is_heard(text: str, words: str, calls: list[tuple[str, str]], step: int) -> None:
    assert heard(Family.HERMES, text, step=step) == (words, calls)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("text", "words", "calls"), LLAMA)
def test_llama3_is_heard(text: str, words: str, calls: list[tuple[str, str]], step: int) -> None:
    assert heard(Family.LLAMA3, text, step=step) == (words, calls)


BITS = st.lists(st.sampled_from(["<tool_", "call>", "<", "{", "}", '"name"', " ", "\n", "a", ";", "é"]))


@given(bits=BITS, family=st.sampled_from([Family.HERMES, Family.LLAMA3]))
def test_words_that_hold_no_call_come_out_as_they_went_in(bits: list[str], family: Family) -> None:
    listener = Listener(family, NAMES)
    deltas = [delta for bit in bits for delta in listener.feed(bit)] + listener.end()
    words = "".join(delta.text for delta in deltas)
    assert not listener.calls_count
    if family is Family.LLAMA3 or "<tool_call>" not in "".join(bits):
        assert words == "".join(bits)
    else:  # the space around a tag belongs to nobody
        assert "".join(words.split()) == "".join("".join(bits).split())


def test_what_is_certain_is_said_at_once() -> None:
    listener = Listener(Family.HERMES, NAMES)
    assert [delta.text for delta in listener.feed("Rain, then")] == ["Rain, then"]
    assert listener.feed(" \n<tool_ca") == []
    assert [delta.text for delta in listener.feed("ke>")] == [" \n<tool_cake>"]
    listener.feed('<tool_call>{"name": "time", "arguments": {"zone": ')
    assert [delta.calls[0].arguments for delta in listener.feed('"U')] == ['"U']


def test_families_are_told_by_their_templates() -> None:
    assert tools.family_of(CHATML) is Family.HERMES
    assert tools.family_of(LLAMA3) is Family.LLAMA3
    assert tools.family_of(ALTERNATING) is Family.NONE
    assert tools.family_of(THINKING) is Family.NONE
    assert tools.family_of(CHATML.replace('{"name"', "<function=")) is Family.NONE


@pytest.mark.parametrize(
    ("asked", "family", "code"),
    [
        (asks.Chat(turns=(), tools=TOOLS), Family.NONE, "tools_unsupported"),
        (asks.Chat(turns=(), tools=TOOLS + TOOLS), Family.HERMES, "bad_tools"),
        (asks.Chat(turns=(), choice=asks.Choice.REQUIRED), Family.HERMES, "bad_tools"),
        (NAMED, Family.HERMES, "bad_tools"),
    ],
)
def test_tools_that_cannot_be_called_are_refused(asked: asks.Chat, family: Family, code: str) -> None:
    with pytest.raises(ClientError) as refused:
        tools.check(asked, family)
    assert refused.value.code == code


def test_tools_that_shall_not_be_called_are_never_refused() -> None:
    tools.check(asks.Chat(turns=(turn("user", "x"),), tools=TOOLS, choice=asks.Choice.NONE), Family.NONE)
    tools.check(chat(turn("user", "x")), Family.NONE)


def test_what_a_schema_refers_to_moves_along() -> None:
    parameters = {
        "$defs": {"a": {"type": "null"}},
        "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"$ref": "#"}},
    }
    asked = asks.Chat(turns=(), tools=(TOOLS[0], asks.Tool(name="deep", parameters=parameters)))
    shape = json.loads(tools.shape_text(asked, Family.LLAMA3))
    moved = shape["anyOf"][1]["properties"]["parameters"]
    assert moved["properties"]["x"]["$ref"] == "#/anyOf/1/properties/parameters/$defs/a"
    assert moved["properties"]["y"]["$ref"] == "#/anyOf/1/properties/parameters"
    assert [one["properties"]["name"]["const"] for one in shape["anyOf"]] == ["weather", "deep"]


def test_a_named_tool_is_the_only_one_in_the_shape() -> None:
    asked = asks.Chat(turns=(), tools=TOOLS, choice=asks.Choice.NAMED, choice_name="time")
    shape = json.loads(tools.shape_text(asked, Family.HERMES))
    assert [one["properties"]["name"]["const"] for one in shape["anyOf"]] == ["time"]
