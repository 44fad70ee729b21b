"""The answer to a delete, which is put together by hand."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast.proto import task_pb2
from holdfast.workers.containerd.delete import encode_response


@given(st.integers(0, 2**22), st.integers(0, 255), st.integers(0, 2**62))
def test_it_is_the_message(pid: int, code: int, at: int) -> None:
    reply = task_pb2.DeleteResponse.FromString(encode_response(pid, code, at))
    assert (reply.pid, reply.exit_status, reply.exited_at.ToNanoseconds()) == (pid, code, at)
