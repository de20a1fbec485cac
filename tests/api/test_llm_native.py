"""Enhancing, tagging, levels, tokens and the command line, against real language models."""

from __future__ import annotations

import base64
import io
import json
from typing import Any  # Any: answers are JSON of any shape

import pytest
from PIL import Image

from server_process import Running
from tidegate.api import tagging
from tidegate.api.enhancing import Style, style_of
from tidegate.api.tagging import Rating, TagStyle
from tidegate.cli.main import run


def picture(colour: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def events_of(text: str) -> list[tuple[str, dict[str, object]]]:
    """Names and data of the events of a stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


@pytest.mark.parametrize("value", ['"\\ud83e"', "1" * 400, "[" * 900 + "]" * 900])
def test_json_that_is_none_is_refused(llm_server: Running, value: str) -> None:
    """Halves of characters, numbers of any length, and a thousand brackets: Python reads them all."""
    body = (
        '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "tools": [{"type": "function", '
        '"function": {"name": "f", "parameters": {"type": "object", "x": ' + value + "}}}]}"
    )
    answer = llm_server.client.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert llm_server.client.post("/tokenize", json={"content": "a"}).status_code == 200


def test_an_idea_becomes_a_prompt_on_one_line(llm_server: Running) -> None:
    wish = {"idea": "a cat", "seed": 1, "max_tokens": 24}
    made = llm_server.client.post("/api/enhance", json=wish).json()
    assert made["idea"] == "a cat" and made["style"] == "tags" and made["language_model"] == "hermes"
    assert made["prompt"] and "\n" not in made["prompt"]
    streamed = llm_server.client.post("/api/enhance", json={**wish, "stream": True})
    events = events_of(streamed.text)
    assert "".join(str(data["text"]) for name, data in events if name == "text").strip() == made["prompt"]
    assert events[-1] == ("done", made)


def test_an_image_is_made_from_an_enhanced_idea(llm_server: Running) -> None:
    wish = {"prompt": "a cat, a hat", "enhance": True, "steps": 1, "seed": 3, "model": "gpt-image-1"}
    made = llm_server.client.post("/v1/images/generations", json=wish).json()["data"][0]
    assert made["revised_prompt"] and made["revised_prompt"] != "a cat, a hat"
    kept = llm_server.client.get(f"/api/images/{made['image']}/metadata").json()
    assert kept["recipe"]["request"]["idea"] == "a cat, a hat"
    assert kept["recipe"]["request"]["prompt"] == made["revised_prompt"]
    assert (
        kept["parameters"].startswith(made["revised_prompt"]) and 'Idea: "a cat, a hat"' in kept["parameters"]
    )


def test_without_a_language_model_nothing_can_be_enhanced(server: Running) -> None:
    refused = server.client.post("/api/jobs", json={"prompt": "a cat", "enhance": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_model")


@pytest.mark.parametrize("style", ["booru", "natural"])
def test_pictures_are_tagged(llm_server: Running, style: str) -> None:
    wish = {"images": [picture(), f"data:image/png;base64,{picture('blue')}"], "tags_max": 5, "seed": 1}
    results = llm_server.client.post("/api/tag", json={**wish, "style": style}).json()["results"]
    assert [one["image"] for one in results] == ["", ""]
    for one in results:
        check_tagged(one)
        assert style == "natural" or not any(" " in tag for tag in one["tags"])


def test_an_image_of_the_gallery_is_tagged(llm_server: Running) -> None:
    wish = {"prompt": "a", "steps": 1, "seed": 3}
    image = llm_server.client.post("/v1/images/generations", json=wish).json()["data"][0]["image"]
    answer = llm_server.client.post("/api/tag", json={"gallery": [image], "tags_max": 5}).json()
    assert [one["image"] for one in answer["results"]] == [image] and answer["language_model"] == "hermes"
    check_tagged(answer["results"][0])


def check_tagged(one: dict[str, Any]) -> None:
    assert one["rating"] in set(Rating) and one["caption"] and not one["is_cut"]
    assert 1 <= len(one["tags"]) <= 5
    assert all(tag == tag.lower() for tag in one["tags"])


def test_what_cannot_be_tagged_is_refused(llm_server: Running) -> None:
    def refused(**wish: object) -> tuple[int, str]:
        answer = llm_server.client.post("/api/tag", json=wish)
        return answer.status_code, answer.json()["error"]["code"]

    assert refused() == (400, "too_many_pictures")
    assert refused(images=["!"]) == (400, "picture_unreadable")
    assert refused(gallery=["none"]) == (404, "unknown_image")
    assert refused(images=[picture()], language_model="llama3") == (400, "no_vision")


def test_an_answer_that_was_cut_off_is_read_as_far_as_it_goes() -> None:
    whole = '{"rating": "sensitive", "caption": "A cat.", "tags": ["cat", "hat", "cat"]}'
    found = tagging.read(whole)
    assert found == tagging.Tagged(rating=Rating.SENSITIVE, caption="A cat.", tags=("cat", "hat"))
    for length in range(len(whole)):
        cut = tagging.read(whole[:length])
        assert cut.is_cut and set(cut.tags) <= {"cat", "hat"} and "A cat.".startswith(cut.caption)


def test_families_have_their_styles() -> None:
    assert style_of("SD 1.x Tiny UNet") is Style.TAGS
    assert style_of("SDXL Inpaint") is Style.PHRASES
    assert style_of("Flux") is style_of("SD3.x") is style_of("Z-Image") is Style.SENTENCES


def test_grammars_name_the_style_of_tags() -> None:
    assert "[a-z0-9_():'-]" in tagging.grammar_for(TagStyle.BOORU, tags_max=3)
    assert "{0,2}" in tagging.grammar_for(TagStyle.NATURAL, tags_max=3)


def test_texts_are_taken_apart_and_put_together(llm_server: Running) -> None:
    text = "Łódź <|im_end|>"
    spelt = llm_server.client.post("/tokenize", json={"content": text, "parse_special": False}).json()[
        "tokens"
    ]
    meant = llm_server.client.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert len(meant) < len(spelt) and meant[-1]["piece"] == "<|im_end|>"
    again = llm_server.client.post("/detokenize", json={"tokens": spelt}).json()
    assert again == {"content": text}


def test_a_model_is_held_at_a_level_and_given_back(llm_server: Running) -> None:
    def levels(**wish: object) -> tuple[int, dict[str, object]]:
        answer = llm_server.client.put("/api/models/hermes/level", json=wish)
        return answer.status_code, answer.json()

    try:
        status, view = levels(level="cold")
        assert status == 200 and view["language"]["wish"] == "cold"  # type: ignore[index]  # JSON of a view
        status, view = levels(level="partial", layers=2)
        assert view["language"]["wish"] == "partial"  # type: ignore[index]  # JSON of a view
    finally:
        status, view = levels(level="auto")
    assert view["language"]["wish"] == ""  # type: ignore[index]  # JSON of a view
    assert levels(level="partial")[0] == 422 and levels(level="hot", layers=3)[0] == 422
    assert llm_server.client.put("/api/models/nope/level", json={"level": "hot"}).status_code == 404
    assert llm_server.client.post("/api/intent", json={"kind": "typing"}).json() == {"noted": True}
    assert llm_server.client.post("/api/intent", json={"kind": "open", "model": "nope"}).status_code == 404


def test_chat_answers_an_argument(llm_server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "chat",
        "Hello",
        "--model",
        "hermes",
        "--max-tokens",
        "6",
        "--seed",
        "1",
        "--server",
        llm_server.url,
    ]
    assert run(words) == 0
    first = capsys.readouterr().out
    assert first.strip() and first.endswith("\n")
    assert run(words) == 0
    assert capsys.readouterr().out == first


def test_chat_answers_what_comes_from_a_pipe(
    llm_server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run(["chat", "--max-tokens", "4", "--server", llm_server.url]) == 0
    assert capsys.readouterr().out.strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["chat", "--server", llm_server.url]) == 2
    assert run(["chat", "Hello", "--model", "nope", "--server", llm_server.url]) == 2
    assert "There are: hermes, llama3" in capsys.readouterr().err
