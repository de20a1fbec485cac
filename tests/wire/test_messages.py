"""The wire format is what the golden file says: a worker and a parent of different days still agree.

A change of a line in golden.txt is a change of the language, and needs a new WIRE_VERSION unless it only adds
a field with a default.
"""

from __future__ import annotations

import typing
from pathlib import Path

import msgspec
import pytest

from tidegate.wire import frames, messages
from wire_samples import FROM_WORKER, REQUEST, TO_WORKER

GOLDEN = dict(
    line.split(" ", 1)
    for line in (Path(__file__).parent / "golden.txt").read_text(encoding="ascii").splitlines()
)


def name_of(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", TO_WORKER + FROM_WORKER, ids=name_of)
def test_a_message_is_the_bytes_of_the_golden_file(message: messages.ToWorker | messages.FromWorker) -> None:
    assert frames.encode_frame(messages.encode(message)).hex() == GOLDEN[name_of(message)]


@pytest.mark.parametrize("message", TO_WORKER, ids=name_of)
def test_the_golden_bytes_are_the_command(message: messages.ToWorker) -> None:
    (payload,) = frames.FrameDecoder().feed(bytes.fromhex(GOLDEN[name_of(message)]))
    assert messages.decode_to_worker(payload) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=name_of)
def test_the_golden_bytes_are_the_answer(message: messages.FromWorker) -> None:
    (payload,) = frames.FrameDecoder().feed(bytes.fromhex(GOLDEN[name_of(message)]))
    assert messages.decode_from_worker(payload) == message


def test_every_message_has_a_sample() -> None:
    known = {*typing.get_args(messages.ToWorker), *typing.get_args(messages.FromWorker)}
    assert {type(message) for message in TO_WORKER + FROM_WORKER} == known


def test_a_field_from_the_future_is_ignored() -> None:
    told = msgspec.msgpack.decode(messages.encode(messages.Ping(serial=3)))
    payload = msgspec.msgpack.encode({**told, "mood": "good"})
    assert messages.decode_to_worker(payload) == messages.Ping(serial=3)


@pytest.mark.parametrize(
    "payload",
    [
        msgspec.msgpack.encode({"kind": "dance", "serial": 1}),
        msgspec.msgpack.encode({"kind": "ping"}),
        msgspec.msgpack.encode({"kind": "ping", "serial": "one"}),
        msgspec.msgpack.encode([1, 2]),
        messages.encode(messages.Pong(serial=1)),
        b"\xc1",
    ],
    ids=["unknown kind", "missing field", "wrong type", "no message at all", "an answer", "not MessagePack"],
)
def test_what_is_no_command_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(frames.ProtocolError):
        messages.decode_to_worker(payload)


def test_an_execution_that_breaks_its_own_rules_is_a_protocol_error() -> None:
    sample = messages.Predict(
        serial=1, stage=TO_WORKER[2].stage, request=REQUEST, execution=TO_WORKER[2].execution
    )  # type: ignore[union-attr]  # the third sample is a Predict
    told = msgspec.msgpack.decode(messages.encode(sample))
    told["execution"]["tile"] = 0
    with pytest.raises(frames.ProtocolError):
        messages.decode_to_worker(msgspec.msgpack.encode(told))


@pytest.mark.parametrize(
    ("sample", "changed"),
    [
        ("StageFinished", {"sha256": "../../../somewhere"}),
        ("StageFinished", {"sha256": "ab" * 32 + "\n"}),
        ("StageFinished", {"card_peak_bytes": -1}),
        ("Loaded", {"ms": 1 << 60}),
        ("Progress", {"preview_width": 1_000_000}),
        ("StageFailed", {"message": "x" * 5_000}),
    ],
    ids=[
        "a path for a hash",
        "a hash and more",
        "less than nothing",
        "for ever",
        "no such picture",
        "a novel",
    ],
)
def test_an_answer_that_cannot_be_true_is_a_protocol_error(sample: str, changed: dict[str, object]) -> None:
    (honest,) = (message for message in FROM_WORKER if name_of(message) == sample)
    told = {**msgspec.msgpack.decode(messages.encode(honest)), **changed}
    with pytest.raises(frames.ProtocolError):
        messages.decode_from_worker(msgspec.msgpack.encode(told))
