"""Frames survive any cutting, and bytes from anybody never do worse than ProtocolError."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.ttrpc.codec import DATA, HEADER, MAX_PAYLOAD, REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode

frames = st.builds(
    Frame,
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([REQUEST, RESPONSE, DATA]),
    st.binary(max_size=200),
    st.integers(0, 255),
)


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_frames_come_back_however_the_stream_is_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode(frame) for frame in sent)
    decoder, received, start = Decoder(), [], 0
    while start < len(stream):
        size = cuts[start % len(cuts)]
        received += decoder.feed(stream[start : start + size])
        start += size
    assert received == sent


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes_are_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    decoder, fed = Decoder(), 0
    try:
        for piece in pieces:
            fed += len(piece)
            for frame in decoder.feed(piece):
                assert len(frame.payload) <= fed
    except ProtocolError:
        return


def test_the_published_layout() -> None:
    assert encode(Frame(0x01020304, REQUEST, b"abc", 2)) == b"\0\0\0\x03\x01\x02\x03\x04\x01\x02abc"
    assert HEADER.size == 10


def test_a_payload_of_the_limit_passes_and_one_more_byte_does_not() -> None:
    (frame,) = Decoder().feed(encode(Frame(1, REQUEST, bytes(MAX_PAYLOAD))))
    assert len(frame.payload) == MAX_PAYLOAD
    with pytest.raises(ProtocolError):
        encode(Frame(1, REQUEST, bytes(MAX_PAYLOAD + 1)))


@pytest.mark.parametrize(
    "header", [struct.pack(">IIBB", MAX_PAYLOAD + 1, 1, REQUEST, 0), struct.pack(">IIBB", 0, 1, 4, 0)]
)
def test_what_will_be_refused_is_refused_by_its_header(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(header)
