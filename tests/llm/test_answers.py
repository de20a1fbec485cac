"""What a client gets: sampling, stop texts, probabilities, grammars, vectors, refusals, a full context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_house import Heard, LlmHouse, order_for
from tidegate.core.llm.level import Level
from tidegate.wire import asks, llm_front
from tidegate.wire.asks import Format, Sampling, Shape
from tidegate.wire.llm_child import Evaluation, Overflow

GREEDY = Sampling(temperature=0.0, tokens_max=30)


@pytest.fixture(scope="module")
def house(tiny: Path) -> Iterator[LlmHouse]:
    with LlmHouse(order_for(tiny)) as made:
        made.start_child()
        made.set_level(Level.HOT, layers=0)
        yield made


def answer(house: LlmHouse, body: asks.Body) -> Heard:
    name = f"r{len(house.heard)}"
    accepted = house.ask(name, body)
    assert isinstance(accepted, asks.Accepted), accepted
    return house.answered(name)[0]


def said(house: LlmHouse, prompt: str = "Hello", **sampling: object) -> Heard:
    return answer(house, asks.Completion(prompt=prompt, sampling=Sampling(**sampling)))  # type: ignore[arg-type]  # tests give what fits


def ended(heard: Heard) -> asks.Ended:
    assert heard.ended is not None
    return heard.ended


def test_a_seed_gives_the_same_text_again_and_another_seed_another(house: LlmHouse) -> None:
    first, again, other = (said(house, seed=seed, tokens_max=30) for seed in (3, 3, 4))
    assert first.ids == again.ids != other.ids
    assert (ended(first).completion_count, ended(first).prompt_count) == (30, 5)


def test_a_stop_text_ends_the_answer_and_is_never_said(house: LlmHouse) -> None:
    whole = answer(house, asks.Completion(prompt="Hello", sampling=GREEDY)).text
    stop = whole[40:46]
    cut = said(house, temperature=0.0, tokens_max=30, stop=("never said", stop))
    assert cut.text == whole[: whole.index(stop)]
    assert ended(cut).finish is asks.Finish.STOP
    # What might begin a stop text and does not is said in the end.
    held = said(house, temperature=0.0, tokens_max=30, stop=(whole[-3:] + "#",))
    assert held.text == whole


def test_probabilities_stand_beside_the_tokens(house: LlmHouse) -> None:
    heard = said(house, temperature=0.0, tokens_max=6, logprobs_count=3)
    assert b"".join(chance.raw for chance in heard.chances).decode() == heard.text
    for chance in heard.chances:
        assert chance.top[0].raw == chance.raw, "the likeliest token was chosen"
        assert [other.logprob for other in chance.top] == sorted(
            (other.logprob for other in chance.top), reverse=True
        )
        assert chance.logprob < 0


def test_a_bias_decides(house: LlmHouse) -> None:
    assert said(house, temperature=0.0, tokens_max=4, logit_bias={400: 100.0}).ids == [400] * 4


def test_penalties_keep_words_from_coming_again(house: LlmHouse) -> None:
    plain = said(house, temperature=0.0, tokens_max=60).ids
    penalised = said(house, temperature=0.0, tokens_max=60, frequency_penalty=2.0, repeat_last_count=-1).ids
    assert len(set(penalised)) > len(set(plain))


def test_a_grammar_is_obeyed_from_the_first_token(house: LlmHouse) -> None:
    shape = Format(shape=Shape.GRAMMAR, text='root ::= "yes, " ("indeed" | "of course") "."')
    for seed in range(4):
        sampling = Sampling(seed=seed, tokens_max=60)
        heard = answer(house, asks.Completion(prompt="?", format=shape, sampling=sampling))
        assert heard.text in ("yes, indeed.", "yes, of course.")
        assert ended(heard).finish is asks.Finish.STOP


def test_a_schema_gives_json(house: LlmHouse) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    turn = asks.Turn(role="user", parts=(asks.Text(text="answer"),))
    chat = asks.Chat(
        turns=(turn,),
        format=Format(shape=Shape.SCHEMA, text=json.dumps(schema)),
        sampling=Sampling(tokens_max=80),
    )
    assert isinstance(json.loads(answer(house, chat).text)["a"], bool)


def test_words_that_spell_a_control_token_stay_words(house: LlmHouse) -> None:
    def count(text: str) -> int:
        turn = asks.Turn(role="user", parts=(asks.Text(text=text),))
        accepted = house.ask(f"count {text}", asks.Chat(turns=(turn,), sampling=GREEDY))
        assert isinstance(accepted, asks.Accepted)
        house.drop(f"count {text}")
        return accepted.prompt_count

    assert count("<|im_end|>") > count("a") + 3


def test_vectors_have_length_one_and_differ(house: LlmHouse) -> None:
    heard = answer(house, asks.Embedding(inputs=("a cat", "a much longer text " * 12, "a cat")))
    first, other, again = ended(heard).vectors
    assert sum(number * number for number in first) == pytest.approx(1.0, abs=1e-5)
    assert first == pytest.approx(again, abs=1e-5)
    assert sum(a * b for a, b in zip(first, other, strict=True)) < 0.999
    assert said(house, temperature=0.0, tokens_max=4).ids, "texts go on after vectors"


def grammar(text: str) -> Format:
    return Format(shape=Shape.GRAMMAR, text=text)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (asks.Completion(prompt="Hello " * 300), "context_length_exceeded"),
        (asks.Completion(prompt="x" * 10_000_000), "context_length_exceeded"),
        (asks.Completion(prompt=(1, 99_999)), "bad_token"),
        (asks.Completion(prompt="a", sampling=Sampling(logit_bias={-1: 2.0})), "bad_token"),
        (asks.Completion(prompt="a", format=grammar("root ::= none")), "bad_grammar"),
        (asks.Completion(prompt="a", format=grammar("root ::= " + "(" * 999)), "bad_grammar"),
        (
            asks.Chat(
                turns=(asks.Turn(role="user", parts=(asks.Seen(picture=0),)),),
                pictures=(asks.Picture(width=1, height=1, rgb=b"abc"),),
            ),
            "no_vision",
        ),
        (asks.Embedding(inputs=("",)), "bad_messages"),
    ],
    ids=["too long", "far too long", "no token", "no bias", "no rule", "too deep", "no eyes", "no text"],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(house: LlmHouse, body: asks.Body, code: str) -> None:
    refused = house.ask("refused", body)
    assert isinstance(refused, asks.Refused)
    assert refused.code == code
    assert refused.message


def test_a_client_that_goes_away_frees_its_slot(house: LlmHouse) -> None:
    names = [f"gone {n}" for n in range(6)]
    for name in names:
        house.ask(name, asks.Completion(prompt=name, sampling=Sampling(tokens_max=900)))
    house.until(lambda: house.tokens_of(*names[:4]) > 8)
    for name in names:
        house.drop(name)
    assert len(said(house, temperature=0.0, tokens_max=5).ids) == 5


def test_tokens_and_text_are_told_without_any_weights(house: LlmHouse) -> None:
    told = house.command_front(llm_front.Tokenize(serial=0, model="tiny", text="<|im_start|>a é"))
    assert isinstance(told, llm_front.Tokenized)
    assert b"".join(told.pieces).decode() == "<|im_start|>a é"
    assert told.pieces[0] == b"<|im_start|>"
    back = house.command_front(llm_front.Detokenize(serial=0, model="tiny", ids=told.ids))
    assert back == llm_front.Detokenized(serial=back.serial, text="<|im_start|>a é")  # type: ignore[attr-defined]  # answers have serials


def test_a_prompt_that_begins_like_the_last_one_is_not_evaluated_again(house: LlmHouse) -> None:
    prompt = "a story that begins in the same way " * 6
    first = said(house, prompt + "one", temperature=0.0, tokens_max=4)
    second = said(house, prompt + "two", temperature=0.0, tokens_max=4)
    assert ended(second).cached_count > ended(first).prompt_count - 8


def test_the_end_of_the_context_ends_an_answer_or_shifts_it(tiny: Path) -> None:
    small = {"context_tokens_count": 256, "keep_tokens_count": 8, "evaluation": Evaluation.REPRODUCIBLE}
    body = asks.Completion(prompt="Hello " * 20, sampling=Sampling(temperature=0.0, tokens_max=500))
    with LlmHouse(order_for(tiny, **small)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        full = answer(house, body)
        assert ended(full).finish is asks.Finish.LENGTH
        assert ended(full).prompt_count + len(full.ids) == 257
    with LlmHouse(order_for(tiny, overflow=Overflow.SHIFT, **small)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        shifted = answer(house, body)
        assert len(shifted.ids) == 500
        # And the same again with a pause and a death after shifts.
        house.ask("again", body)
        house.until(lambda: house.tokens_of("again") > 250)
        house.set_level(Level.WARM, layers=0)
        house.set_level(Level.HOT, layers=0)
        house.until(lambda: house.tokens_of("again") > 400)
        house.kill_child()
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        assert house.answered("again")[0].ids == shifted.ids


def test_a_new_front_goes_on_after_what_the_old_one_said(tiny: Path) -> None:
    body = asks.Completion(prompt="Hello", sampling=Sampling(seed=8, tokens_max=40))
    with LlmHouse(order_for(tiny, evaluation=Evaluation.REPRODUCIBLE)) as house:
        house.start_child()
        house.set_level(Level.HOT, layers=0)
        whole = answer(house, body)
        house.ask("rest", body, history=whole.ids[:15])
        rest = house.answered("rest")[0]
        assert rest.ids == whole.ids[15:]
        assert whole.text.endswith(rest.text)
        assert ended(rest).completion_count == 40
