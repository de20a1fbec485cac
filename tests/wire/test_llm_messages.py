"""The language models' conversations on the wire are what golden_llm.txt says, and open files travel along.

A change of a line there is a change of the language; fields with a default may be added at will.
"""

from __future__ import annotations

import os
import socket
import typing
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import llm_samples
from tidegate.wire import asks, channel, frames, llm_child, llm_front, llm_link, messages

GOLDEN = dict(
    line.split(" ", 1)
    for line in (Path(__file__).parent / "golden_llm.txt").read_text(encoding="ascii").splitlines()
)
CONVERSATIONS: dict[str, tuple[tuple[messages.Message, ...], Callable[[bytes], object], object]] = {
    "to_front": (llm_samples.TO_FRONT, llm_front.decode_to_front, llm_front.ToFront),
    "from_front": (llm_samples.FROM_FRONT, llm_front.decode_from_front, llm_front.FromFront),
    "to_child": (llm_samples.TO_CHILD, llm_child.decode_to_child, llm_child.ToChild),
    "from_child": (llm_samples.FROM_CHILD, llm_child.decode_from_child, llm_child.FromChild),
    "to_engine": (llm_samples.TO_ENGINE, llm_link.decode_to_engine, llm_link.ToEngine),
    "from_engine": (llm_samples.FROM_ENGINE, llm_link.decode_from_engine, llm_link.FromEngine),
}
SAMPLES = [(name, message) for name, (samples, _, _) in CONVERSATIONS.items() for message in samples]


def name_of(sample: object) -> str:
    return sample if isinstance(sample, str) else type(sample).__name__


@pytest.mark.parametrize(("way", "message"), SAMPLES, ids=name_of)
def test_a_message_is_the_bytes_of_the_golden_file(way: str, message: messages.Message) -> None:
    golden = GOLDEN[f"{way}.{type(message).__name__}"]
    assert frames.encode_frame(messages.encode(message)).hex() == golden
    (payload,) = frames.FrameDecoder().feed(bytes.fromhex(golden))
    assert CONVERSATIONS[way][1](payload) == message


@pytest.mark.parametrize("way", CONVERSATIONS)
def test_every_message_has_a_sample(way: str) -> None:
    samples, _, union = CONVERSATIONS[way]
    assert {type(message) for message in samples} == set(typing.get_args(union))


@pytest.mark.parametrize("way", CONVERSATIONS)
def test_what_is_no_message_is_a_protocol_error(way: str) -> None:
    decode = CONVERSATIONS[way][1]
    for payload in (msgspec.msgpack.encode({"kind": "dance"}), b"\xc1", msgspec.msgpack.encode([1])):
        with pytest.raises(frames.ProtocolError):
            decode(payload)


def test_open_files_arrive_with_their_message_in_order() -> None:
    ours, theirs = socket.socketpair()
    sending, receiving = channel.engine_front_end(ours), channel.engine_end(theirs)
    files = [os.memfd_create(f"state-{n}") for n in range(3)]
    for n, file in enumerate(files):
        os.write(file, b"%d" % n)
    begin = llm_samples.TO_ENGINE[0]
    sending.send(llm_link.Leave(stream=1))
    sending.send(begin, files[:2])
    sending.send(begin, files[2:])
    heard = [receiving.receive(1000) for _ in range(3)]
    assert heard == [llm_link.Leave(stream=1), begin, begin]
    taken = [receiving.take_descriptor() for _ in range(3)]
    assert [os.pread(file, 10, 0) for file in taken] == [b"0", b"1", b"2"]
    with pytest.raises(frames.ProtocolError):
        receiving.take_descriptor()
    for file in files + taken:
        os.close(file)
    sending.close()
    receiving.close()


def test_descriptors_that_nobody_took_are_closed_with_the_channel() -> None:
    ours, theirs = socket.socketpair()
    sending, receiving = channel.engine_front_end(ours), channel.engine_end(theirs)
    file = os.memfd_create("state")
    sending.send(llm_link.Kept(handover=1), [file])
    receiving.receive(1000)
    os.close(file)
    sending.close()
    receiving.close()  # the fixture `nothing_left_behind` fails the test when a descriptor is open


@pytest.mark.parametrize("text", ["short", "long " * 100_000])
def test_a_body_of_any_length_is_packed_and_unpacked(text: str) -> None:
    body = asks.Completion(prompt=text)
    payload, descriptor = llm_front.pack(body)
    assert (descriptor is None) == (text == "short")
    assert llm_front.unpack(payload, descriptor) == body
    if descriptor is not None:
        os.close(descriptor)


def test_tokens_travel_as_they_are() -> None:
    assert llm_link.to_tokens(llm_link.to_bytes([0, 1, -5, 2**31 - 1])) == [0, 1, -5, 2**31 - 1]
