"""The codecs against kubectl, Debian's and what newer ones are at hand, and the Python client of Kubernetes."""

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from kit.standin import REFUSED_PORT, Standin, ask, exec_by_python, forward_by_python, forwarding, kubectl, kubectls

KUBECTLS = kubectls()
NO_WEBSOCKETS = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}
WEBSOCKETS = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "true", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "true"}
NEITHER = "there is no kubectl: `make setup` brings Debian's"


def choices() -> Iterator[ParameterSet]:
    """Debian's and the newest in both ways are tried always, all others in long runs."""
    for at, binary in enumerate(KUBECTLS):
        for name, env in {"default": {}, "spdy": NO_WEBSOCKETS, "websocket": WEBSOCKETS}.items():
            always = name == "default" if at == 0 else name != "default" and at == len(KUBECTLS) - 1
            yield pytest.param(binary, env, id=f"{Path(binary).name}-{name}", marks=[] if always else pytest.mark.soak)


EVERY_KUBECTL = pytest.mark.parametrize(("binary", "env"), list(choices()))


def test_there_is_a_kubectl() -> None:
    assert KUBECTLS, NEITHER


@EVERY_KUBECTL
def test_exec(binary: str, env: dict[str, str], tmp_path: Path) -> None:
    """Input to its end, output, exit codes, errors, and more than any window in both directions."""
    much = os.urandom(1_500_000)
    with Standin() as pod:
        went = kubectl(binary, pod.url, tmp_path, "exec", "-i", "p", "--", "cat", sends=much, **env)
        assert (went.returncode, went.stdout) == (0, much), went.stderr
        went = kubectl(binary, pod.url, tmp_path, "exec", "p", "--", "fail", **env)
        assert (went.returncode, went.stdout) == (3, b"out\n")
        assert went.stderr == b"err\ncommand terminated with exit code 3\n"
        went = kubectl(binary, pod.url, tmp_path, "exec", "p", "--", "missing", **env)
        assert (went.returncode, went.stdout) == (1, b"")
        assert b"Internal error occurred: no such command: missing" in went.stderr
        went = kubectl(binary, pod.url, tmp_path, "exec", "p", "--", "large", **env)
        assert (went.returncode, went.stdout) == (0, 80 * 64 * 1024 * b"x")
        went = kubectl(binary, pod.url, tmp_path, "exec", "-i", "p", "--", "head", sends=b"one\n", **env)
        assert (went.returncode, went.stdout) == (0, b"one\n"), "the command ends though its input has not"
    assert [one.problem for one in pod.sessions] == 5 * [""]
    assert all(one.finished for one in pod.sessions), "the client's goodbye was understood"


@EVERY_KUBECTL
def test_attach(binary: str, env: dict[str, str], tmp_path: Path) -> None:
    with Standin() as pod:
        went = kubectl(binary, pod.url, tmp_path, "attach", "-i", "p", sends=b"to the container\n", **env)
    assert (went.returncode, went.stdout) == (0, b"to the container\n"), went.stderr
    assert [(one.problem, one.finished) for one in pod.sessions] == [("", True)]


@EVERY_KUBECTL
def test_a_terminal(binary: str, env: dict[str, str], tmp_path: Path) -> None:
    """With its size, and without stderr."""
    here, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        with Standin() as pod:
            went = kubectl(binary, pod.url, tmp_path, "exec", "-it", "p", "--", "size", terminal=theirs, **env)
        shown = os.read(here, 1000)
    finally:
        os.close(here)
        os.close(theirs)
    assert (went.returncode, shown.split()) == (0, [b"99x33"]), went.stderr
    assert [(one.problem, one.finished) for one in pod.sessions] == [("", True)]


@EVERY_KUBECTL
def test_port_forward(binary: str, env: dict[str, str], tmp_path: Path) -> None:
    """Several connections to several ports, one after the other and at once, half-closed, and more than a window."""
    with Standin() as pod:
        with forwarding(binary, pod.url, tmp_path, 80, 81, **env) as (first, second):
            assert [ask(port, word) for port in (first, second) for word in (b"abc", b"")] == [b"ABC", b"", b"ABC", b""]
            assert ask(first, 600_000 * b"x") == 600_000 * b"X"
        (session,) = pod.sessions
    assert session.problem == ""


@EVERY_KUBECTL
def test_a_port_that_refuses(binary: str, env: dict[str, str], tmp_path: Path) -> None:
    """Newer ones end the whole forwarding for it; what matters is that the connection ends, and the words come."""
    with Standin() as pod, forwarding(binary, pod.url, tmp_path, REFUSED_PORT, **env) as (port,):
        assert ask(port, b"") == b""
    assert pod.sessions[0].problem == ""


@pytest.mark.skipif(not KUBECTLS, reason=NEITHER)
@pytest.mark.parametrize("version", ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", "none"])
def test_older_versions_over_spdy(version: str, tmp_path: Path) -> None:
    """Debian's kubectl still speaks all of them when the server knows no newer one.

    Version 1 is that of Kubernetes 1.0: its client neither tells the end of stdin nor waits for the error.
    """
    with Standin(versions=[version]) as pod:
        went = kubectl(KUBECTLS[0], pod.url, tmp_path, "exec", "p", "--", "large")
        assert (went.returncode, went.stdout) == (0, 80 * 64 * 1024 * b"x")
        went = kubectl(KUBECTLS[0], pod.url, tmp_path, "exec", "-i", "p", "--", "head", sends=b"abc\n")
        assert (went.returncode, went.stdout) == (0, b"abc\n")
        if version[0] == "v":
            went = kubectl(KUBECTLS[0], pod.url, tmp_path, "exec", "p", "--", "missing")
            assert went.returncode == 1
            assert b"no such command: missing" in went.stderr
            went = kubectl(KUBECTLS[0], pod.url, tmp_path, "exec", "-i", "p", "--", "cat", sends=b"abc")
            assert (went.returncode, went.stdout) == (0, b"abc")
    assert {one.problem for one in pod.sessions} == {""}


@pytest.mark.parametrize("protocols", [(), ("v5.channel.k8s.io",), ("v4.channel.k8s.io",)])
def test_exec_by_the_python_client(protocols: tuple[str, ...]) -> None:
    with Standin() as pod:
        went = exec_by_python(pod.url, "fail", "", *protocols)
        assert (went.read_stdout(), went.read_stderr(), went.returncode) == ("out\n", "err\n", 3)
        went = exec_by_python(pod.url, "head", "möre\n", *protocols)
        assert (went.read_stdout(), went.returncode) == ("möre\n", 0)
        if "v4.channel.k8s.io" not in protocols:
            went = exec_by_python(pod.url, "cat", "abc", *protocols)
            assert (went.read_stdout(), went.returncode) == ("abc", 0)
    assert {one.problem for one in pod.sessions} == {""}


def test_port_forward_by_the_python_client() -> None:
    with Standin() as pod:
        with forward_by_python(pod.url, 80, 81) as forward:
            for port in (80, 81):
                connection = forward.socket(port)
                connection.settimeout(20)
                connection.sendall(b"abc")
                assert connection.recv(100) == b"ABC"
            assert forward.error(80) is None
        with forward_by_python(pod.url, REFUSED_PORT) as forward:
            forward.socket(REFUSED_PORT).settimeout(20)
            assert forward.socket(REFUSED_PORT).recv(100) == b""
            assert "refused" in forward.error(REFUSED_PORT)
    assert [(one.codec, one.problem) for one in pod.sessions] == 2 * [("WebSocketForward", "")]
