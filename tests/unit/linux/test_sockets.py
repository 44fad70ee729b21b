"""linux.sockets: paths of any length, modes, descriptors, and messages that do not fit."""

import errno
import gc
import os
import socket
import stat
from pathlib import Path

import pytest

from holdfast.linux import sockets


@pytest.mark.parametrize("length", [1, 200])
def test_listen_and_connect_by_a_path_of_any_length(tmp_path: Path, length: int) -> None:
    directory = tmp_path / ("d" * length)
    directory.mkdir()
    path = directory / "a.sock"
    before = os.umask(0)
    try:
        listener = sockets.listen(path, socket.SOCK_SEQPACKET)
    finally:
        os.umask(before)
    with listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with sockets.connect(path, socket.SOCK_SEQPACKET) as client:
            server, _ = listener.accept()
            with server:
                assert sockets.peer_uid(server) == os.geteuid()
                assert not client.get_inheritable()
                sockets.send(client, b"hello")
                assert sockets.receive(server, 100) == (b"hello", [])


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    sockets.listen(tmp_path / "a.sock").close()
    sockets.listen(tmp_path / "a.sock").close()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError) as caught:
        sockets.listen(tmp_path / "file")
    assert caught.value.errno == errno.EADDRINUSE
    assert (tmp_path / "file").read_text() == "kept"


def test_connect_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sockets.connect(tmp_path / "none")
    sockets.listen(tmp_path / "stale").close()
    with pytest.raises(ConnectionRefusedError):
        sockets.connect(tmp_path / "stale")


def test_descriptors_come_along_and_close_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        sockets.send(ours, b"x", [0, 1])
        data, fds = sockets.receive(theirs, 10)
        assert data == b"x"
        assert len(fds) == 2
        for fd in fds:
            assert not os.get_inheritable(fd)
            os.close(fd)


@pytest.mark.parametrize(("size", "descriptors"), [(11, 0), (1, 3)])
def test_what_does_not_fit_is_refused_and_leaks_nothing(size: int, descriptors: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        gc.collect()  # what earlier tests have left goes now, and not in between
        before = len(os.listdir("/proc/self/fd"))
        sockets.send(ours, b"x" * size, [0] * descriptors)
        with pytest.raises(OSError) as caught:
            sockets.receive(theirs, 10, 2)
        assert caught.value.errno == errno.EMSGSIZE
        assert len(os.listdir("/proc/self/fd")) == before
