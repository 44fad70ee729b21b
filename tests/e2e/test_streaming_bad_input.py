"""The stream server among strangers: whatever they send, or do not send, others are served."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from kit.node import Node, node, until
from kit.streams import execute

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SECONDS = 30.0
MANY = 1000
UPGRADE = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"


@pytest.fixture(scope="module")
def container(life: Node) -> Iterator[str]:
    pod = life.run_pod()
    yield life.run(pod, "sleep 1000")
    life.remove_pod(pod)


def url(life: Node, container: str) -> str:
    """Where an exec would begin; its token is left to expire."""
    return str(life.call("Exec", pb.ExecRequest(container_id=container, cmd=["true"], stdout=True)).url)


Door = tuple[str, int]


@pytest.fixture(scope="module")
def door(life: Node, container: str) -> Door:
    return place(url(life, container))


def place(found: str) -> Door:
    where = urlsplit(found)
    return where.hostname or "", where.port or 0


def connect(door: Door) -> socket.socket:
    return socket.create_connection(door, SECONDS)


def answer(connection: socket.socket) -> str:
    """All that is said until the other side has no more to say; "" when that is nothing."""
    said = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            said += data
    return said.decode()


def ask(door: Door, request: bytes) -> str:
    """The first line of the answer; "" if it was closed on us while we had more to say."""
    with connect(door) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        return answer(connection).partition("\r\n")[0]


def request(method: str = "GET", path: str = "/exec/x", headers: str = UPGRADE) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode("latin-1")


NOT_FOUND = "HTTP/1.1 404 Not Found"
BAD = "HTTP/1.1 400 Bad Request"
TOO_LARGE = "HTTP/1.1 431 Request Header Fields Too Large"
HEADS = {
    "no such path": (request(path="/"), NOT_FOUND),
    "no token": (request(path="/exec/"), NOT_FOUND),
    "a guess": (request(path="/exec/" + "A" * 43), NOT_FOUND),
    "another kind": (request(path="/cp/" + "A" * 43), NOT_FOUND),
    "a climb": (request(path="/exec/../exec/" + "A" * 43), NOT_FOUND),
    "an absolute target": (request(path="http://127.0.0.1/exec/" + "A" * 43), NOT_FOUND),
    "no upgrade": (request(headers=""), "HTTP/1.1 426 Upgrade Required"),
    "another method": (request("PUT"), "HTTP/1.1 405 Method Not Allowed"),
    "no method": (request(""), BAD),
    "garbage": (os.urandom(64).replace(b"\n", b"x") + b"\r\n\r\n", BAD),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n", BAD),
    "SPDY at once": (b"\x80\x03\x00\x01" + bytes(40) + b"\n\n", BAD),
    "a body": (request("POST", headers=f"{UPGRADE}Content-Length: 5\r\n") + b"hello", BAD),
    "chunks": (request("POST", headers=f"{UPGRADE}Transfer-Encoding: chunked\r\n"), BAD),
    "two lengths": (request("POST", headers=f"{UPGRADE}Content-Length: 0\r\nContent-Length: 5\r\n"), BAD),
    "a negative length": (request("POST", headers=f"{UPGRADE}Content-Length: -1\r\n"), BAD),
    "no host": (f"GET /exec/x HTTP/1.1\r\n{UPGRADE}\r\n".encode(), BAD),
    "NUL": (request(headers=f"{UPGRADE}X: a\0b\r\n"), BAD),
    "a folded line": (request(headers=f"{UPGRADE}X: a\r\n b\r\n"), NOT_FOUND),
    "a space in a name": (request(headers=f"{UPGRADE}X Y: a\r\n"), BAD),
    "a long line": (request(path="/exec/" + "A" * 20_000), TOO_LARGE),
    "a long header": (request(headers=f"{UPGRADE}X: {'a' * 20_000}\r\n"), TOO_LARGE),
    "many headers": (request(headers=UPGRADE + "X: a\r\n" * 4000), TOO_LARGE),
    "no end": (b"GET /exec/x HTTP/1.1\r\nX: " + b"a" * 500_000, TOO_LARGE),
}


@pytest.mark.parametrize("case", list(HEADS))
def test_a_head_that_is_none(door: Door, case: str) -> None:
    head, expected = HEADS[case]
    assert ask(door, head) in ((expected, "") if case == "no end" else (expected,))
    assert ask(door, request()) == NOT_FOUND


def test_unknown_used_and_too_old_is_all_the_same(life: Node, container: str, door: Door) -> None:
    """But for the token's own kind, for which it stays good."""
    path = urlsplit(url(life, container)).path
    answers = set()
    for wrong in (path.replace("/exec/", "/attach/"), path.replace("/exec/", "/forward/"), f"{path}x", path.lower()):
        with connect(door) as connection:
            connection.sendall(request(path=wrong))
            answers.add(answer(connection))
    assert len(answers) == 1
    assert answers.pop().startswith(NOT_FOUND)


def descriptors(life: Node) -> int:
    assert life.process is not None
    return len(os.listdir(f"/proc/{life.process.pid}/fd"))


def test_a_thousand_that_say_nothing_hold_up_nobody(life: Node, container: str, door: Door) -> None:
    """The one that has waited longest gives way to the next, so at most so many are there at a time."""
    assert ask(door, request()) == NOT_FOUND
    before = descriptors(life)
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(connect(door))
        began = time.monotonic()
        assert ask(door, request()) == NOT_FOUND
        assert time.monotonic() - began < 10  # before the first of them would have been given up
        assert execute(life, container, "echo here") == ("here\n", 0)
        assert descriptors(life) < before + 200
    until(lambda: descriptors(life) <= before + 1, f"no more descriptors than {before}, and one to the shim")


def test_those_that_are_slow_are_given_up(life: Node, door: Door) -> None:
    before = descriptors(life)
    with connect(door) as connection:
        connection.sendall(b"GET /exec/x HTTP/1.1\r\n")
        began = time.monotonic()
        connection.settimeout(1.0)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < SECONDS:
                connection.sendall(b"X: y\r\n")
                with contextlib.suppress(TimeoutError):
                    if connection.recv(1) == b"":
                        break
        assert 5 < time.monotonic() - began < SECONDS, "it was given up in ten seconds"
    until(lambda: descriptors(life) <= before, f"no more descriptors than {before}")


def test_a_storm_of_garbage(life: Node, container: str, door: Door) -> None:
    def storm(number: int) -> None:
        with contextlib.suppress(OSError), connect(door) as connection:
            connection.sendall(os.urandom(number * 37 % 9000))
            if number % 3:
                connection.shutdown(socket.SHUT_WR)
                answer(connection)

    before = descriptors(life)
    with ThreadPoolExecutor(20) as pool:
        for _ in pool.map(storm, range(300)):
            pass
    assert ask(door, request()) == NOT_FOUND
    assert life.exec(container, ["echo", "here"]).stdout == b"here\n"
    until(lambda: descriptors(life) <= before + 2, f"no more descriptors than {before}")
    assert "Traceback" not in life.log()
    sessions = lambda: [one for one in keeper.workers(life.state) if one.kind in ("streamer", "tls")]  # noqa: E731
    until(lambda: not sessions(), "no session to be there: here nobody has begun one")


# -- the CRI's side

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def refused(life: Node, method: str, message: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failure:
        life.call(method, message)
    return failure.value.code(), failure.value.details()


def test_what_cannot_be_executed(life: Node, container: str) -> None:
    def code(**fields: object) -> tuple[grpc.StatusCode, str]:
        return refused(life, "Exec", pb.ExecRequest(**({"container_id": container, "cmd": ["true"]} | fields)))

    assert code(stdout=True, cmd=[]) == (INVALID, "cmd: a command is needed")
    assert code() == (INVALID, "stdin, stdout, stderr: one of them must be asked for")
    assert code(tty=True, stdout=True, stderr=True) == (INVALID, "stderr: it cannot be had together with tty")
    assert code(container_id="", stdout=True) == (INVALID, "container_id: must not be empty")
    assert code(container_id="f" * 64, stdout=True)[0] is MISSING
    pod = life.run_pod()
    created = life.create(pod, life.container_config("true"))
    assert code(container_id=created, stdout=True)[0] is PRECONDITION
    life.start_container(created)
    life.exited(created)
    assert code(container_id=created, stdout=True)[0] is PRECONDITION
    life.remove_pod(pod)


def test_what_cannot_be_attached_to(life: Node, container: str) -> None:
    def code(**fields: object) -> tuple[grpc.StatusCode, str]:
        return refused(life, "Attach", pb.AttachRequest(**({"container_id": container} | fields)))

    assert code() == (INVALID, "stdin, stdout, stderr: one of them must be asked for")
    assert code(tty=True, stdout=True)[1].startswith("tty: ")
    assert code(stdin=True)[1].startswith("stdin: ")
    assert code(container_id="", stdout=True)[0] is INVALID
    assert code(container_id="f" * 64, stdout=True)[0] is MISSING
    pod = life.run_pod()
    terminal = life.run(pod, "sleep 1000", tty=True, stdin=True)
    assert code(container_id=terminal, stdout=True)[1].startswith("tty: ")
    assert life.call("Attach", pb.AttachRequest(container_id=terminal, stdout=True, stdin=True, tty=True)).url
    life.remove_pod(pod)


def test_what_cannot_be_forwarded_to(life: Node) -> None:
    def code(pod: str, *ports: int) -> tuple[grpc.StatusCode, str]:
        return refused(life, "PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=ports))

    pod = life.run_pod(life.pod_config(network=pb.POD))
    for port in (0, -1, 65536):
        assert code(pod, 80, port) == (INVALID, f"port[1]: {port} is not from 1 to 65535")
    assert code("")[0] is INVALID
    assert code("f" * 64)[0] is MISSING
    found = urlsplit(life.call("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=[65535])).url)
    assert (found.scheme, found.hostname, found.path.split("/")[1]) == ("http", "127.0.0.1", "forward")
    life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert code(pod, 80)[0] is PRECONDITION
    life.remove_pod(pod)


def test_a_token_of_what_has_ended_meanwhile(life: Node) -> None:
    pod = life.run_pod()
    container = life.run(pod, "sleep 1000")
    found = url(life, container)
    life.stop_container(container)
    with connect(place(found)) as connection:
        connection.sendall(request(path=urlsplit(found).path))
        said = answer(connection)
    assert said.startswith("HTTP/1.1 409 Conflict")
    assert container in said
    life.remove_pod(pod)


# -- where it listens


def test_an_address_that_is_not_loopback_is_warned_of(tmp_path: Path) -> None:
    with node(streaming_address="0.0.0.0:0") as one:
        assert "without TLS" in one.log()
        assert "without TLS" in one.cli("info").stdout
        pod = one.run_pod()
        found = urlsplit(url(one, one.run(pod, "sleep 1000")))
        assert found.hostname == "127.0.0.1"


def test_an_address_that_somebody_else_has_keeps_nobody_from_anything_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with node(streaming_address=f"127.0.0.1:{port}") as one:
            pod = one.run_pod()
            container = one.run(pod, "sleep 1000")
            request = pb.ExecRequest(container_id=container, cmd=["true"], stdout=True)
            code, why = refused(one, "Exec", request)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert str(port) in why
            taken.close()

            def served() -> bool:
                with contextlib.suppress(grpc.RpcError):
                    return str(one.call("Exec", request).url).startswith(f"http://127.0.0.1:{port}/exec/")
                return False

            until(served, "the address to be had")
