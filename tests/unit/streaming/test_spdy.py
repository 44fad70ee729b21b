"""SPDY: what is written is read again, byte captures of the published protocol, and whatever a hostile peer sends."""

import contextlib
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.streaming import spdy
from holdfast.streaming.spdy import (
    Data,
    Decoder,
    Encoder,
    Frame,
    GoAway,
    Headers,
    Ping,
    ProtocolError,
    Reset,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)  # fmt: skip

STREAMS = st.integers(1, spdy.STREAM_MASK)
WORDS = st.text(st.characters(max_codepoint=255), max_size=30)
HEADERS = st.dictionaries(WORDS.filter(bool), WORDS, max_size=8)
NUMBERS = st.integers(0, (1 << 32) - 1)
FRAMES = st.one_of(
    st.builds(SynStream, STREAMS, HEADERS, st.booleans(), st.booleans()),
    st.builds(SynReply, STREAMS, HEADERS, st.booleans()),
    st.builds(Headers, STREAMS, HEADERS, st.booleans()),
    st.builds(Reset, STREAMS, NUMBERS),
    st.builds(Settings, st.dictionaries(st.integers(0, 0xFFFFFF), NUMBERS, max_size=5)),
    st.builds(Ping, NUMBERS),
    st.builds(GoAway, STREAMS, NUMBERS),
    st.builds(WindowUpdate, STREAMS, st.integers(0, spdy.STREAM_MASK)),
    st.builds(Data, STREAMS, st.binary(max_size=200), st.booleans()),
)


def joined(frames: Iterable[Frame]) -> list[Frame]:
    """With the data of each stream in one piece, as far as nothing comes between."""
    found: list[Frame] = []
    for frame in frames:
        before = found[-1] if found else None
        if isinstance(frame, Data) and isinstance(before, Data) and not before.fin and before.stream == frame.stream:
            found[-1] = Data(frame.stream, before.data + frame.data, frame.fin)
        else:
            found.append(frame)
    return found


def read(data: bytes, decoder: Decoder | None = None) -> list[Frame]:
    return list((decoder or Decoder()).receive(data))


def test_the_dictionary_is_that_of_the_protocol() -> None:
    """zlib names it by its checksum in the first bytes of every connection that uses it (RFC 1950, section 2.2)."""
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(FRAMES, max_size=20), st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_what_is_written_is_read_however_it_arrives(frames: list[Frame], cuts: list[int]) -> None:
    encoder, decoder = Encoder(), Decoder()
    data = b"".join(map(encoder.encode, frames))
    found: list[Frame] = []
    turn = 0
    while data:
        size = cuts[turn % len(cuts)]
        found += decoder.receive(data[:size])
        data, turn = data[size:], turn + 1
    assert joined(found) == joined(frames)


def test_frames_byte_by_byte() -> None:
    assert Encoder().encode(Ping(2)) == bytes.fromhex("80030006 00000004 00000002")
    assert Encoder().encode(Reset(5, spdy.CANCEL)) == bytes.fromhex("80030003 00000008 00000005 00000005")
    assert Encoder().encode(Data(3, b"hi", True)) == bytes.fromhex("00000003 01000002") + b"hi"
    assert Encoder().encode(GoAway(7)) == bytes.fromhex("80030007 00000008 00000007 00000000")
    assert Encoder().encode(WindowUpdate(1, 65536)) == bytes.fromhex("80030009 00000008 00000001 00010000")
    opened = Encoder().encode(SynStream(1, {"streamtype": "error"}))
    assert opened[:5] == bytes.fromhex("80030001 00")
    assert opened[18:24] == bytes.fromhex("38ac e3c6a7c2"), "compressed with the dictionary, in a window of 2 KiB"


def test_compression_remembers() -> None:
    encoder, decoder = Encoder(), Decoder()
    first, second = (encoder.encode(SynStream(number, {"streamtype": "stdout"})) for number in (1, 3))
    assert len(second) < len(first)
    assert [*decoder.receive(first), *decoder.receive(second)] == [
        SynStream(1, {"streamtype": "stdout"}),
        SynStream(3, {"streamtype": "stdout"}),
    ]


def block(text: bytes) -> bytes:
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    return deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)


def opening(compressed: bytes) -> bytes:
    body = bytes.fromhex("00000001 00000000 0000") + compressed
    return bytes.fromhex("80030001 00") + len(body).to_bytes(3) + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes.fromhex("80020006 00000004 00000002"), "version 2"),
        (bytes.fromhex("80030006 00000002 0000"), "too short"),
        (bytes.fromhex("80030006 00ffffff"), "too large"),
        (bytes.fromhex("80030001 00000004 00000001"), "too short"),
        (bytes.fromhex("80030004 00000004 00000001"), "settings"),
        (opening(b"garbage"), "cannot be decompressed"),
        (opening(block(bytes(200_000))), "more than"),
        (opening(block((1 << 31).to_bytes(4))), "too many"),
        (opening(block((1).to_bytes(4) + (9).to_bytes(4) + b"x")), "longer than all"),
        (opening(block((1).to_bytes(4) + bytes(8))), "is empty"),
        (opening(block((2).to_bytes(4) + 2 * ((1).to_bytes(4) + b"a" + bytes(4)))), "comes twice"),
    ],
)
def test_what_is_not_the_protocol_is_refused_in_words(data: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read(data)


def test_data_is_handed_on_before_its_frame_is_whole() -> None:
    """The longest frame there is takes no room: 16 MiB in pieces of what has arrived."""
    decoder = Decoder()
    assert read(bytes.fromhex("00000007 01ffffff") + b"abc", decoder) == [Data(7, b"abc")]
    assert read(b"def", decoder) == [Data(7, b"def")]
    tracemalloc.start()
    try:
        size = 6
        while size < 0xFFFFFF - 10_000:
            (piece,) = decoder.receive(bytes(10_000))
            assert isinstance(piece, Data)
            size += len(piece.data)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert read(bytes(0xFFFFFF - size), decoder) == [Data(7, bytes(0xFFFFFF - size), True)]
    assert read(Encoder().encode(Ping(3)), decoder) == [Ping(3)]


def test_a_small_block_does_not_become_a_large_one() -> None:
    """A bomb: 60 kB that would be 60 MB."""
    compressed = block(bytes(60_000_000))
    with pytest.raises(ProtocolError):
        read(opening(compressed[:60_000]))


def test_frames_that_are_not_known_are_passed_over() -> None:
    assert read(bytes.fromhex("8003 00ff 00000003 aabbcc 80030006 00000004 00000009")) == [Ping(9)]


@settings(max_examples=500)
@given(st.binary(max_size=400))
def test_whatever_arrives_is_frames_or_refused(data: bytes) -> None:
    hostile(data)


@settings(max_examples=500)
@given(st.sampled_from([1, 2, 3, 4, 6, 7, 8, 9, 200]), st.integers(0, 255), st.binary(max_size=200))
def test_whatever_is_in_a_frame(kind: int, flags: int, body: bytes) -> None:
    hostile(bytes.fromhex("8003") + kind.to_bytes(2) + bytes([flags]) + len(body).to_bytes(3) + body)


def hostile(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        read(data)
