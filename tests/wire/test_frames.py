"""The decoder gives frames or a ProtocolError, whatever it is fed and however it is sliced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.wire import frames, messages
from wire_samples import FROM_WORKER, TO_WORKER

SAMPLES = [frames.encode_frame(messages.encode(message)) for message in TO_WORKER + FROM_WORKER]


@given(st.lists(st.sampled_from(SAMPLES), max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_any_slicing_gives_the_same_frames(stream: list[bytes], cuts: list[int]) -> None:
    whole, decoder, found, at, turn = b"".join(stream), frames.FrameDecoder(), [], 0, 0
    while at < len(whole):
        size = cuts[turn % len(cuts)]
        found += decoder.feed(whole[at : at + size])
        at, turn = at + size, turn + 1
    assert found == [frame[frames.LENGTH_BYTES :] for frame in stream]
    assert decoder.pending_bytes == 0
    decoder.end()


@given(st.binary(max_size=300))
def test_random_bytes_give_frames_or_a_protocol_error(data: bytes) -> None:
    decoder = frames.FrameDecoder()
    try:
        for payload in decoder.feed(data):
            messages.decode_to_worker(payload)
    except frames.ProtocolError:
        return
    assert decoder.pending_bytes <= len(data)


@given(st.sampled_from(SAMPLES), st.data())
def test_a_damaged_frame_gives_a_message_or_a_protocol_error(sample: bytes, data: st.DataObject) -> None:
    damaged = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for decode in (messages.decode_to_worker, messages.decode_from_worker):
        try:
            for payload in frames.FrameDecoder().feed(bytes(damaged)):
                decode(payload)
        except frames.ProtocolError:
            continue


@pytest.mark.parametrize("length", [0, frames.FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_an_impossible_length_ends_the_conversation(length: int) -> None:
    decoder = frames.FrameDecoder()
    with pytest.raises(frames.ProtocolError):
        decoder.feed(length.to_bytes(4, "little") + b"x" * 10)
    assert decoder.pending_bytes == 0
    with pytest.raises(frames.ProtocolError):
        decoder.feed(SAMPLES[0])


def test_memory_is_bounded_by_one_frame() -> None:
    decoder = frames.FrameDecoder()
    decoder.feed((frames.FRAME_BYTES_MAX).to_bytes(4, "little"))
    decoder.feed(b"x" * (frames.FRAME_BYTES_MAX - 1))
    assert decoder.pending_bytes == frames.FRAME_BYTES_MAX + 3
    assert [len(payload) for payload in decoder.feed(b"x")] == [frames.FRAME_BYTES_MAX]
    assert decoder.pending_bytes == 0


def test_an_end_inside_a_frame_is_an_error() -> None:
    decoder = frames.FrameDecoder()
    decoder.feed(SAMPLES[0][:-1])
    with pytest.raises(frames.ProtocolError):
        decoder.end()


@pytest.mark.parametrize("payload", [b"", b"x" * (frames.FRAME_BYTES_MAX + 1)])
def test_we_never_send_what_we_would_not_read(payload: bytes) -> None:
    with pytest.raises(frames.ProtocolError):
        frames.encode_frame(payload)
