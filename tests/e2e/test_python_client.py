"""The Python package `kubernetes`: its stream module, by WebSockets with channels, against the real daemon."""

import contextlib
import gc
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit.apiserver import Api
from kit.node import SECONDS, Node, until
from kubernetes.client import ApiClient, Configuration, CoreV1Api
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream

from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = pytest.mark.usefixtures("sessions_end")

LARGE = b"0123456789abcdef" * 65536 * 3  # 3 MiB
ECHO = 'while :; do echo tick; sleep 0.1; done & while read line; do echo "heard $line"; done'
SERVERS = "nc -ll -p 7001 -e cat & nc -ll -p 7002 -e hostname & sleep 100000"
STREAMS = {"stdin": False, "stdout": True, "stderr": True, "tty": False}


@pytest.fixture(scope="module")
def core(life: Node, api: Api) -> Iterator[CoreV1Api]:
    pod = life.run_pod(life.pod_config("web", network=pb.POD, hostname="web"))
    life.run(pod, "sleep 100000", "main", network=pb.POD)
    life.run(pod, ECHO, "echo", network=pb.POD, stdin=True)
    life.run(pod, SERVERS, "server", network=pb.POD)
    with ApiClient(Configuration(host=api.url)) as client:
        yield CoreV1Api(client)
        client.rest_client.pool_manager.clear()


@contextlib.contextmanager
def begun(method: Callable[..., Any], container: str, **more: Any) -> Iterator[Any]:
    """A session to be read from and written to."""
    session = stream(method, "web", "test", container=container, _preload_content=False, **STREAMS | more)
    try:
        yield session
    finally:
        session.close()
        session.sock.shutdown()  # which it leaves to the garbage collector where the server has ended the session


def until_closed(session: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while session.is_open():
        assert time.monotonic() < deadline
        session.update(timeout=1)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # there is nothing to close it by
def test_exec_in_one_call(core: CoreV1Api) -> None:
    execute = core.connect_get_namespaced_pod_exec
    assert stream(execute, "web", "test", container="main", command=["hostname"], **STREAMS) == "web\n"
    gc.collect()


def test_exec_has_the_commands_streams_and_status(core: CoreV1Api) -> None:
    script = ["sh", "-c", "echo out; echo err >&2; exit 42"]
    with begun(core.connect_get_namespaced_pod_exec, "main", command=script) as session:
        until_closed(session)
        assert (session.read_stdout(), session.read_stderr(), session.returncode) == ("out\n", "err\n", 42)


def test_input_goes_through(core: CoreV1Api) -> None:
    script = ["sh", "-c", f"head -c {len(LARGE)} | sha256sum"]
    with begun(core.connect_get_namespaced_pod_exec, "main", command=script, stdin=True) as session:
        for at in range(0, len(LARGE), 32768):
            session.write_stdin(LARGE[at : at + 32768].decode())
        until_closed(session)
        assert session.read_stdout().split()[0] == hashlib.sha256(LARGE).hexdigest()
        assert session.returncode == 0


def test_input_has_an_end(core: CoreV1Api) -> None:
    with begun(core.connect_get_namespaced_pod_exec, "main", command=["wc", "-c"], stdin=True) as session:
        assert session.subprotocol == "v5.channel.k8s.io"
        session.write_stdin("12345")
        session.close_channel(0)
        until_closed(session)
        assert (session.read_stdout(), session.returncode) == ("5\n", 0)


def test_output_is_whole(core: CoreV1Api) -> None:
    script = ["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"]
    with begun(core.connect_get_namespaced_pod_exec, "main", command=script) as session:
        until_closed(session)
        assert session.read_stdout() == "x" * 5_000_000


def expect(session: Any, wanted: str, typed: str = "") -> None:
    """Read until it comes; what is typed is typed until then."""
    said, deadline = "", time.monotonic() + SECONDS
    while wanted not in said:
        assert time.monotonic() < deadline, said
        if typed:
            session.write_stdin(typed)
        said += session.read_stdout(timeout=1) or ""


def test_a_terminal_and_its_size(core: CoreV1Api) -> None:
    options = {"command": ["sh"], "stdin": True, "tty": True, "stderr": False}
    with begun(core.connect_get_namespaced_pod_exec, "main", **options) as session:
        session.write_channel(4, '{"Width": 132, "Height": 43}')
        expect(session, "43 132", typed="stty size\n")
        session.write_stdin("exit 3\n")
        until_closed(session)
        assert session.returncode == 3


def test_attach_types_and_shows(core: CoreV1Api) -> None:
    with begun(core.connect_get_namespaced_pod_attach, "echo", stdin=True) as session:
        session.write_stdin("one\n")
        expect(session, "heard one\n")
        session.write_stdin("two\n")
        expect(session, "heard two\n")


def test_ports_are_forwarded(core: CoreV1Api) -> None:
    forward = portforward(core.connect_get_namespaced_pod_portforward, "web", "test", ports="7001,7002,7999")
    echo, named = forward.socket(7001), forward.socket(7002)
    for one in (echo, named):
        one.setblocking(True)
        one.settimeout(SECONDS)
    sent, found = LARGE[: 1 << 18], b""
    for at in range(0, len(sent), 4096):  # both ways by turns: the package has one thread for both
        echo.sendall(sent[at : at + 4096])
        while len(found) < at + 4096:
            found += echo.recv(65536)
    assert found == sent
    assert named.recv(100) == b"web\n"
    assert "refused" in until(lambda: forward.error(7999), "the error of a port where nobody listens")
    assert forward.error(7001) is None
    forward.close()
    until(lambda: not forward.connected, "its thread to close the connection")
    forward.websocket.shutdown()


def test_what_is_not_there_is_told(core: CoreV1Api) -> None:
    with pytest.raises(ApiException) as failure:
        core.read_namespaced_pod("nobody", "test")
    assert failure.value.status == 404
    with begun(core.connect_get_namespaced_pod_exec, "main", command=["/no/such/command"]) as session:
        until_closed(session)
        assert "/no/such/command" in session.read_channel(3)


def test_logs(core: CoreV1Api) -> None:
    found = core.read_namespaced_pod_log("web", "test", container="echo", tail_lines=2)
    assert set(found.split("\n")) <= {"tick", "heard one", "heard two", ""}
    assert found.count("\n") == 2
