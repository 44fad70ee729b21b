"""exec and attach against a server made of the server's codecs, whose other end is a script of the test."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import h11
import pytest
from kit.tls import self_signed

from holdfast.cli.errors import CommandError
from holdfast.cli.forward import Pair, pair_of
from holdfast.cli.terminal import DetachKeys, key_sequence
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.streaming import upgrade
from holdfast.streaming.session import STDERR, STDOUT, Gone, Input, InputEnded, Outcome, Ready, Request, Wanted

Run = Callable[..., tuple[int, str, str]]
Script = Callable[[Any, Any], None]
ALL = Wanted(stdin=True, stdout=True, stderr=True, tty=False)


class Streams:
    """Serves one connection: `script(codec, event)` is called for each event, and once more, with None, at the end."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.script: Script | None = None  # without one, what is asked for is refused
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._listener.getsockname()[1]}/exec/token"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes it up
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as connection:
            if self._context is None:
                self._converse(connection)
                return
            with self._context.wrap_socket(connection, server_side=True) as secured:
                self._converse(secured)

    def _converse(self, connection: socket.socket) -> None:
        http = h11.Connection(h11.SERVER)
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(connection.recv(65536))
        assert isinstance(event, h11.Request)
        headers = [(name.decode(), value.decode()) for name, value in event.headers]
        if self.script is None:
            connection.sendall(upgrade.Refused(404, "cannot find the session: it was begun").answer())
            return
        codec, answer = upgrade.accept(Request("GET", event.target.decode(), headers), "exec", ALL)
        connection.sendall(answer)
        for one in codec.begin():
            self.script(codec, one)
        while not codec.finished:
            connection.sendall(codec.outgoing())
            data = connection.recv(65536)
            for one in codec.receive(data):
                self.script(codec, one)
            if not data:
                return


@pytest.fixture
def streams() -> Iterator[Streams]:
    one = Streams()
    yield one
    one.close()


@pytest.fixture
def web(fake: Any, streams: Streams) -> Streams:
    fake.add("1", "web")
    fake.url = streams.url
    return streams


@contextlib.contextmanager
def stdin(data: bytes) -> Iterator[None]:
    """Our own, from a pipe."""
    ours, (read, write) = os.dup(0), os.pipe()
    os.write(write, data)
    os.close(write)
    os.dup2(read, 0)
    try:
        yield
    finally:
        os.dup2(ours, 0)
        os.close(ours)
        os.close(read)


def test_output_comes_by_stream_with_the_commands_status(fake: Any, web: Streams, holdfast: Run) -> None:
    def script(codec: Any, event: Any) -> None:
        if event == Ready():
            codec.send(STDOUT, b"out\n" * 50_000)
            codec.send(STDERR, b"err\n")
            codec.finish(Outcome(7))

    web.script = script
    assert holdfast("exec", "web", "ls", "-l", "--all") == (7, "out\n" * 50_000, "err\n")
    asked = fake.last(pb.ExecRequest)
    assert (list(asked.cmd), asked.tty, asked.stdin, asked.stdout, asked.stderr) == (
        ["ls", "-l", "--all"], False, False, True, True,
    )  # fmt: skip


@pytest.mark.parametrize("regular", [False, True])
def test_input_goes_through_and_has_an_end(
    fake: Any, web: Streams, holdfast: Run, tmp_path: Path, regular: bool
) -> None:
    def script(codec: Any, event: Any) -> None:
        if isinstance(event, Input):
            codec.send(STDOUT, event.data.upper())
        if isinstance(event, InputEnded):
            codec.finish(Outcome())

    web.script = script
    if regular:
        (tmp_path / "in").write_bytes(b"abc" * 100_000)
        ours = os.dup(0)
        file = os.open(tmp_path / "in", os.O_RDONLY)
        os.dup2(file, 0)
        try:
            assert holdfast("exec", "-i", "web", "tr") == (0, "ABC" * 100_000, "")
        finally:
            os.dup2(ours, 0)
            os.close(ours)
            os.close(file)
    else:
        with stdin(b"hello"):
            assert holdfast("exec", "-i", "web", "tr") == (0, "HELLO", "")
    assert fake.last(pb.ExecRequest).stdin


def test_what_could_not_be_started_is_told(web: Streams, holdfast: Run) -> None:
    web.script = lambda codec, event: codec.finish(Outcome(error="there is no /bin/zsh")) if event == Ready() else None
    assert holdfast("exec", "web", "zsh") == (1, "", "holdfast: cannot exec in container web: there is no /bin/zsh\n")


def test_a_connection_that_is_lost(web: Streams, holdfast: Run) -> None:
    def script(codec: Any, event: Any) -> None:
        codec.send(STDOUT, b"half a li")
        codec._channels.connection.close()

    web.script = script
    status, out, err = holdfast("exec", "web", "ls")
    assert (status, out, err.count("\n")) == (1, "half a li", 1)
    assert err.startswith("holdfast: cannot tell how the command in container web ended: the connection was lost (hint")


def test_a_refusal_is_told(web: Streams, holdfast: Run) -> None:
    text = "cannot exec in container web: the daemon refuses: cannot find the session: it was begun"
    assert holdfast("exec", "web", "ls") == (1, "", f"holdfast: {text}\n")


def test_what_the_daemon_does_not_do(fake: Any, web: Streams, holdfast: Run) -> None:
    fake.fail["Exec"] = (grpc.StatusCode.FAILED_PRECONDITION, "cannot exec in container c1: it is not running")
    assert holdfast("exec", "web", "ls") == (1, "", "holdfast: cannot exec in container c1: it is not running\n")


def test_nobody_at_the_url(fake: Any, web: Streams, holdfast: Run) -> None:
    fake.url = "http://127.0.0.1:1/exec/x"
    status, _, err = holdfast("exec", "web", "ls")
    assert (status, err.startswith("holdfast: cannot reach the streaming server at http://127.0.0.1:1: ")) == (1, True)


def test_a_terminal_without_one_is_refused(web: Streams, holdfast: Run) -> None:
    with stdin(b""):
        status, _, err = holdfast("exec", "-it", "web", "sh")
    assert (status, err) == (1, "holdfast: cannot use a terminal: stdin is none (hint: leave out -t)\n")


def test_detach_keys_end_attach(fake: Any, web: Streams, holdfast: Run) -> None:
    typed: list[bytes] = []
    gone = threading.Event()

    def script(codec: Any, event: Any) -> None:
        if isinstance(event, Input):
            typed.append(event.data)
        if event == Gone():
            gone.set()

    web.script = script
    with stdin(b"ab\x10c\x10\x11never"):
        status, out, err = holdfast("attach", "-i", "web")
    assert (status, out, err) == (0, "", "holdfast: detached from container web, which runs on\n")
    assert gone.wait(30)
    assert b"".join(typed) == b"ab\x10c"
    asked = fake.last(pb.AttachRequest)
    assert (asked.stdin, asked.stdout, asked.stderr, asked.tty) == (True, True, True, False)


def test_attach_ends_as_the_container_does(fake: Any, web: Streams, holdfast: Run) -> None:
    def script(codec: Any, event: Any) -> None:
        if event == Ready():
            next(iter(fake.containers.values())).state = pb.CONTAINER_EXITED
            fake.exit_on_start = 5
            codec.finish(Outcome())

    web.script = script
    assert holdfast("attach", "web") == (5, "", "")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("how", ["ca", "insecure", "neither", "no file"])
def test_tls(fake: Any, holdfast: Run, certificate: Path, how: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    secured = Streams(context)
    secured.script = lambda codec, event: codec.finish(Outcome(3)) if event == Ready() else None
    fake.add("1", "web")
    fake.url = secured.url
    options = {
        "ca": ["--streaming-ca", str(certificate)],
        "insecure": ["--insecure-skip-tls-verify"],
        "no file": ["--streaming-ca", "/nonexistent.pem"],
    }
    status, _, err = holdfast("exec", *options.get(how, []), "web", "ls")
    secured.close()
    if how in ("ca", "insecure"):
        assert (status, err) == (3, "")
    elif how == "neither":
        assert (status, err.count("\n"), "--streaming-ca FILE" in err) == (1, 1, True)
    else:
        assert (status, err) == (1, "holdfast: cannot use --streaming-ca /nonexistent.pem: No such file or directory\n")


@pytest.mark.parametrize(
    ("text", "pair"), [("80", (80, 80)), ("8080:80", (8080, 80)), (":80", (0, 80)), ("0:80", (0, 80))]
)
def test_ports(text: str, pair: tuple[int, int]) -> None:
    assert pair_of(text) == Pair(*pair)


@pytest.mark.parametrize("text", ["", ":", "80:", "http", "1:2:3", "80:0", "65536", "70000:80", "-1", "80:-1"])
def test_what_is_no_port(fake: Any, holdfast: Run, text: str) -> None:
    status, _, err = holdfast("port-forward", "--", "web", text)
    assert (status, err) == (
        1, f"holdfast: cannot forward {text!r}: it is not [LOCAL:]REMOTE (hint: as in 8080:80)\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "keys"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-],x", b"\x1dx"), ("CTRL-A", b"\x01"), ("", b"")]
)
def test_key_names(text: str, keys: bytes) -> None:
    assert key_sequence(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "p q", "ctrl-1", "é"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(CommandError, match="is no key"):
        key_sequence(text)


@pytest.mark.parametrize(
    ("typed", "through", "found"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x10", b"\x10", b"x"], b"\x10\x10x", False),
        ([b"\x11\x10"], b"\x11\x10", False),
    ],
)
def test_detach_keys_are_found_wherever_they_are_cut(typed: list[bytes], through: bytes, found: bool) -> None:
    keys = DetachKeys(b"\x10\x11")
    seen = [keys.typed(piece) for piece in typed]
    assert (b"".join(data for data, _ in seen) + keys.rest(), seen[-1][1]) == (through, found)
