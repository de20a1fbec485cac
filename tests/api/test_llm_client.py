"""The official client against real language models: chat, stream, tools, JSON, pictures, embeddings, errors.

The models have random weights, so nothing is asserted about what they say; what a grammar asks for, they say.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any  # Any: tools and schemas are JSON of any shape

import openai
import pytest
from PIL import Image

from server_process import Running

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "$defs": {"city": {"type": "string", "enum": ["Ulm", 'Łódź "east"', "a\\b"]}},
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def client(llm_server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{llm_server.url}/v1", api_key="not-needed", timeout=300, max_retries=0
    ) as found:
        yield found


def data_url(side: int = 16, *, colour: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def shown(url: str, text: str = "What is this?") -> list[Any]:
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
    ]


def test_language_models_are_listed_beside_the_others(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"tiny", "hermes", "llama3"}
    assert client.models.retrieve("gpt-4o-mini").id == "hermes"


def test_a_chat_is_answered_and_streamed_alike(client: openai.OpenAI) -> None:
    asked: Any = {"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason == "length" and whole.model == "hermes"
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None and chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_seed_repeats_its_answer_and_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    def texts(seed: int, count: int) -> list[str | None]:
        made = client.chat.completions.create(
            model="hermes", messages=HELLO, seed=seed, n=count, max_tokens=8
        )
        assert [choice.index for choice in made.choices] == list(range(count))
        return [choice.message.content for choice in made.choices]

    three = texts(5, 3)
    assert len(set(three)) == 3
    assert texts(5, 1) == three[:1] and texts(6, 1) == three[1:2]


def test_choices_are_streamed_together(client: openai.OpenAI) -> None:
    said: dict[int, str] = {0: "", 1: ""}
    for chunk in client.chat.completions.create(
        model="hermes", messages=HELLO, seed=5, n=2, max_tokens=8, stream=True
    ):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert all(said.values()) and said[0] != said[1]


def test_probabilities_are_told(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="hermes", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0
    )
    told = made.choices[0].logprobs
    assert told is not None and told.content is not None and len(told.content) == 4
    for token in told.content:
        assert len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob <= 0
    assert "".join(token.token for token in told.content) == made.choices[0].message.content


def test_an_answer_stops_where_it_is_told(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="hermes", messages=HELLO, stop=["b"], extra_body={"grammar": 'root ::= "aabcc"'}
    )
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("aa", "stop")


@pytest.mark.parametrize("model", ["hermes", "llama3"])
def test_a_forced_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI, model: str) -> None:
    made = client.chat.completions.create(
        model=model, messages=HELLO, tools=[WEATHER, TIME], seed=3,
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )  # fmt: skip
    assert made.choices[0].finish_reason == "tool_calls"
    calls: Any = made.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["weather"]
    arguments = json.loads(calls[0].function.arguments)
    assert arguments["city"] in ("Ulm", 'Łódź "east"', "a\\b") and isinstance(arguments["days"], int)
    answered = client.chat.completions.create(
        model=model,
        messages=[
            *HELLO,
            made.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"},
        ],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=4,
    )
    assert answered.choices[0].message.content


@pytest.mark.parametrize("model", ["hermes", "llama3"])
def test_calls_are_streamed(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model,
        messages=HELLO,
        tools=[WEATHER],
        tool_choice="required",
        seed=4,
        parallel_tool_calls=False,
    ) as stream:
        for _ in stream:
            pass
        made = stream.get_final_completion()
    assert made.choices[0].finish_reason == "tool_calls"
    calls: Any = made.choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments).keys() == {"city", "days"}
    assert not made.choices[0].message.content


def test_a_tool_that_is_called_at_will_gets_arguments_of_its_schema(
    client: openai.OpenAI, llm_server: Running
) -> None:
    """A bias makes the model begin a call; from there on its grammar holds."""
    (opening,) = llm_server.client.post("/tokenize", json={"content": "<tool_call>"}).json()["tokens"]
    made = client.chat.completions.create(
        model="hermes", messages=HELLO, tools=[WEATHER], seed=5, logit_bias={str(opening): 100}
    )
    calls: Any = made.choices[0].message.tool_calls
    assert made.choices[0].finish_reason == "tool_calls" and not made.choices[0].message.content
    assert json.loads(calls[0].function.arguments).keys() == {"city", "days"}


def test_an_answer_keeps_to_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "paws": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["kind", "paws"],
        "additionalProperties": False,
    }  # fmt: skip
    for seed in range(3):
        made = client.chat.completions.create(
            model="hermes", messages=HELLO, seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}},
        )  # fmt: skip
        found = json.loads(made.choices[0].message.content or "")
        assert found["kind"] in ("cat", "dog") and 0 <= found["paws"] <= 9
    made = client.chat.completions.create(
        model="hermes", messages=HELLO, max_tokens=3, response_format={"type": "json_object"}
    )
    assert (made.choices[0].message.content or "").startswith("{")


def test_a_model_that_sees_is_shown_pictures(client: openai.OpenAI) -> None:
    def asked(url: str, text: str) -> tuple[str | None, int]:
        made = client.chat.completions.create(
            model="hermes", messages=shown(url, text), max_tokens=8, temperature=0
        )
        assert made.usage is not None
        return made.choices[0].message.content, made.usage.prompt_tokens

    red, red_count = asked(data_url(colour="red"), "What is this?")
    assert asked(data_url(colour="blue"), "What is this?")[0] != red
    assert asked(data_url(colour="red"), "What is this?") == (red, red_count)
    marked = asked(data_url(), "<__media__> <|im_end|>")
    assert marked[0] and marked[1] > 16


def test_texts_and_tokens_are_continued(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="hermes", prompt=["once", "upon"], n=2, max_tokens=3, echo=True, logprobs=2, seed=1
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert [choice.text[:4] for choice in made.choices] == ["once", "once", "upon", "upon"]
    for choice in made.choices:
        assert choice.logprobs is not None and choice.logprobs.text_offset == sorted(
            choice.logprobs.text_offset or []
        )
        assert (choice.logprobs.text_offset or [0])[0] == 4
    tokens = client.completions.create(model="hermes", prompt=[71, 68, 75], max_tokens=3, temperature=0)
    text = client.completions.create(model="hermes", prompt="hel", max_tokens=3, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in text) == tokens.choices[0].text


def test_texts_become_vectors(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="hermes", input=["a cat", "a dog", "a cat"])
    cat, dog, again = (one.embedding for one in made.data)
    assert cat == again != dog and len(cat) == len(dog) > 16
    plain = client.embeddings.create(model="hermes", input="a cat", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(cat, abs=1e-6)
    assert plain.usage.prompt_tokens > 0


def test_refusals_come_as_the_errors_of_that_client(client: openai.OpenAI) -> None:
    create = client.chat.completions.create

    def refused(**asked: Any) -> openai.BadRequestError:
        with pytest.raises(openai.BadRequestError) as found:
            create(**{"model": "hermes", "messages": HELLO, "max_tokens": 4, **asked})
        return found.value

    long = refused(messages=[{"role": "user", "content": "word " * 2_000}])
    assert long.code == "context_length_exceeded" and "1024 tokens" in str(long)
    huge = refused(messages=[{"role": "user", "content": "word " * 2_000_000}])
    assert huge.code == "context_length_exceeded"
    assert refused(extra_body={"grammar": "root ::= nothing"}).code == "bad_grammar"
    assert refused(response_format=schema_of({"$ref": "https://example.org/x"})).code == "bad_schema"
    assert refused(response_format=schema_of({"type": "wish"})).code == "bad_schema"
    assert refused(messages=shown("https://example.org/a.png")).code == "picture_refused"
    assert refused(messages=shown("data:image/png;base64,aGVsbG8=")).code == "picture_unreadable"
    assert refused(model="llama3", messages=shown(data_url())).code == "no_vision"
    assert refused(tools=[TIME, TIME]).code == "bad_tools"
    assert refused(temperature=-1).code == "bad_request"
    assert refused(extra_body={"logit_bias": {"99999999": 1}}).code == "bad_token"
    with pytest.raises(openai.APIStatusError) as bomb:
        create(model="hermes", messages=shown(data_url(3_000)))
    assert (bomb.value.status_code, bomb.value.code) == (413, "picture_too_large")
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="nope", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="hermes", input="a", dimensions=3)
    # Nothing of all that disturbed anybody.
    assert create(model="hermes", messages=HELLO, max_tokens=2).choices[0].message.content


def schema_of(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_too_many_requests_are_turned_away_together(client: openai.OpenAI, llm_server: Running) -> None:
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="hermes", messages=HELLO, n=9, max_tokens=200)
    assert refused.value.code == "rate_limit_exceeded" and "retry-after" in refused.value.response.headers
    # An image is made all the same, from the idea as it is.
    with client.chat.completions.create(
        model="hermes", messages=HELLO, n=8, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
        made = llm_server.client.post(
            "/v1/images/generations", json={"prompt": "a cat", "enhance": True, "steps": 1, "seed": 3}
        ).json()
    assert made["data"][0]["revised_prompt"] is None
    assert made["notices"][0].startswith("The prompt was taken as it is")


def test_fields_that_mean_nothing_here_are_named(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="hermes", messages=HELLO, max_tokens=2, user="me", extra_body={"temprature": 1}
    )
    assert (made.model_extra or {})["notices"] == [
        "These fields mean nothing here and were left alone: temprature."
    ]
