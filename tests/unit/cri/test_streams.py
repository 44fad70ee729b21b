"""Lists in parts, and that a part of a stream is what a list would have."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast.cri import streams
from holdfast.proto import runtime_v1_pb2 as pb


@given(st.lists(st.integers(0, streams.PART * 2), max_size=30))
def test_all_of_it_in_order_and_no_part_too_large(sizes: list[int]) -> None:
    entries = [bytes([number]) * min(size, 1 << 16) * (size // (1 << 16) + 1) for number, size in enumerate(sizes)]
    found = list(streams.parts(entries))
    assert b"".join(found) == b"".join(entries)
    largest = max(map(len, entries), default=0)
    assert all(0 < len(part) <= max(streams.PART, largest) for part in found if part)


def test_a_list_and_a_stream_have_the_same_elements_on_the_wire() -> None:
    for listed, streamed in [
        (pb.ListPodSandboxResponse, pb.StreamPodSandboxesResponse),
        (pb.ListContainersResponse, pb.StreamContainersResponse),
        (pb.ListContainerStatsResponse, pb.StreamContainerStatsResponse),
        (pb.ListPodSandboxStatsResponse, pb.StreamPodSandboxStatsResponse),
        (pb.ListImagesResponse, pb.StreamImagesResponse),
        (pb.ListPodSandboxMetricsResponse, pb.StreamPodSandboxMetricsResponse),
    ]:
        (one,), (other,) = listed.DESCRIPTOR.fields, streamed.DESCRIPTOR.fields
        assert (one.number, one.message_type, one.is_repeated) == (other.number, other.message_type, other.is_repeated)


def test_a_whole_list_is_made_once_for_what_it_shows() -> None:
    entries = [b"a", b"b"]
    made = []
    whole = streams.Whole(lambda: made.append(len(entries)) or entries)
    assert [whole.after(1), whole.after(1)] == [b"ab", b"ab"]
    entries.append(b"c")
    assert [whole.after(2), whole.after(1)] == [b"abc", b"abc"]
    assert made == [2, 3, 3]
    entries.append(b"d" * streams.PART)
    assert whole.after(3) == whole.after(3) == b"".join(entries)
    assert made == [2, 3, 3, 4, 4], "one that is long is not kept"
