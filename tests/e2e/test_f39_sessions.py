"""F39: sessions of exec, attach and port-forward go on while the daemon is away, and leave nothing when they end."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kit import crash, invariants
from kit.node import Node, node, until
from kit.resources import keeper_pid
from kit.streams import ERROR, FORWARD, SECONDS, Rejected, Stream, attach_url, exec_url, execute, forward_url

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper
from holdfast.streaming.tokens import SECONDS as TOKEN_SECONDS

FOREIGN = "runc-v2"
COUNT = "n=0; while [ ! $stop ]; do n=$((n+1)); echo n$n; sleep 0.05; done"
NUMBER = re.compile(r"n(\d+)\r?\n")
# Answers in capitals, one connection after the other; each ends when its client has no more to say.
SHOUT = "while :; do nc -l -p 7000 -e tr a-z A-Z; done"


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(runtimes={FOREIGN: {"shim": "containerd-shim-runc-v2"}}) as one:
        yield one


@pytest.fixture(params=["crun", FOREIGN])
def container(life: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    pod = life.run_pod(handler=request.param)
    yield life.run(pod, "while :; do sleep 1; done")
    life.remove_pod(pod)
    invariants.check(life)


def streamers(one: Node) -> list[int]:
    return [worker.pid for worker in keeper.workers(one.state) if worker.kind in ("streamer", "tls")]


def traces(one: Node) -> Counter[str]:
    """What sessions could leave: processes, files, and descriptors of those who live on."""
    lasting = [worker for worker in keeper.workers(one.state) if worker.kind in ("shim", "logger")]
    found = Counter({f"{worker.kind} descriptors": descriptors(worker.pid) for worker in lasting})
    state = str(one.state).encode()
    for pid in crash.pids():
        if crash.read(pid, "comm") in (b"hf-streamer\n", b"hf-tls\n") and state in crash.read(pid, "cmdline"):
            found["processes"] += 1
        if crash.read(pid, "comm") == b"hf-keeper\n" and state in crash.read(pid, "cmdline"):
            found["keeper's descriptors"] += descriptors(pid)
    for place in ("*/*/exec/*", "*/*/attach/*", "*/sessions/*", "*/*/exec.*"):
        found["files"] += len(list((one.state / "pods").glob(place)))
    return found


def descriptors(pid: int) -> int:
    """How many a process has; none when it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


@contextlib.contextmanager
def nothing_left(one: Node) -> Iterator[None]:
    until(lambda: not streamers(one), "earlier sessions to be over")
    before = traces(one)
    yield
    try:
        until(lambda: traces(one) <= before, "nothing to be left")
    except AssertionError:
        raise AssertionError(f"{traces(one)} is left, before there was {before}") from None
    invariants.check(one)


def last(stream: Stream) -> int:
    """The last number that a counter has said."""
    return int(([0, *NUMBER.findall(stream.out())])[-1])


def count_on(stream: Stream, by: int = 5) -> None:
    """Wait until it has said so many numbers more; no number may be missing."""
    aim = last(stream) + by
    stream.until(lambda: last(stream) >= aim, f"n{aim}")


def no_gap(stream: Stream) -> None:
    numbers = [int(one) for one in NUMBER.findall(stream.out())]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


# -- the daemon's death


def test_f39_an_interactive_exec_goes_on(life: Node, container: str) -> None:
    with nothing_left(life), Stream(exec_url(life, container, ["/bin/sh"], tty=True)) as stream:
        stream.resize(97, 31)
        stream.type("trap 'stop=1; echo st''opped' INT\n")
        stream.type(f"{COUNT}\n")
        count_on(stream)
        for _ in range(2):
            life.kill()
            count_on(stream)
            life.start()
            count_on(stream)
        until(lambda: crash.recovered(life), "recovery to end")
        count_on(stream)
        stream.type("\x03")
        stream.until_out("stopped")
        stream.type("stty size; exit 7\n")
        stream.until_out("31 97")
        assert stream.outcome() == 7
        no_gap(stream)


def test_f39_it_ends_while_the_daemon_is_away(life: Node, container: str) -> None:
    """The client hears how it ended, then and there."""
    with nothing_left(life), Stream(exec_url(life, container, ["/bin/sh"])) as stream:
        stream.type("echo he''re\n")
        stream.until_out("here")
        life.kill()
        stream.type("echo err >&2; exit 9\n")
        assert stream.outcome() == 9
        assert stream.out(2) == "err\n"
        life.start()


def test_f39_a_client_that_goes_while_the_daemon_is_away(life: Node, container: str) -> None:
    with nothing_left(life), Stream(exec_url(life, container, ["sleep", "4001"])) as stream:
        until(lambda: "sleep 4001" in listed(life, container), "it to run")
        life.kill()
        stream.close()
        until(lambda: not streamers(life), "its streamer to end")
        life.start()
        until(lambda: "sleep 4001" not in listed(life, container), "it to be ended")


def test_f39_daemon_and_keeper_die_together(life: Node, container: str) -> None:
    """The session is known by its record then, to a keeper that did not fork its streamer."""
    with Stream(exec_url(life, container, ["/bin/sh"], tty=True)) as stream:
        stream.type(f"{COUNT}\n")
        count_on(stream)
        old = keeper_pid(life)
        assert life.process is not None
        life.process.kill()
        os.kill(old, signal.SIGKILL)
        life.end(signal.SIGKILL)
        count_on(stream)
        life.start()
        until(lambda: crash.recovered(life), "recovery to end")
        invariants.check(life)
        count_on(stream)
        no_gap(stream)
    until(lambda: not list((life.state / "pods").glob("*/sessions/*")), "the session to be over")


@pytest.mark.parametrize("handler", ["crun", FOREIGN])
@pytest.mark.parametrize("tty", [False, True])
def test_f39_an_attach_goes_on(life: Node, tty: bool, handler: str) -> None:
    pod = life.run_pod(handler=handler)
    script = "while read line; do echo said $line; done"
    container = life.run(pod, script, tty=tty, stdin=True)
    with nothing_left(life):
        with Stream(attach_url(life, container, tty=tty)) as stream:
            stream.type("one\n")
            stream.until_out("said one")
            life.kill()
            stream.type("two\n")
            stream.until_out("said two")
            life.start()
            until(lambda: crash.recovered(life), "recovery to end")
            stream.type("three\n")
            stream.until_out("said three")
        until(lambda: not streamers(life), "the session to end")
        assert life.status(container).state == pb.CONTAINER_RUNNING
    life.remove_pod(pod)
    invariants.check(life)


def test_f39_a_port_forward_goes_on(life: Node) -> None:
    pod = life.run_pod(life.pod_config(network=pb.POD))
    container = life.run(pod, SHOUT, network=pb.POD)
    until(lambda: b":1B58 " in life.exec(container, ["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout, "the port")
    with nothing_left(life), Stream(forward_url(life, pod, 7000), FORWARD) as stream:
        stream.send(0, b"hello\n")
        stream.until_out("HELLO", 0)
        life.kill()
        stream.send(0, b"alone\n")
        stream.until_out("ALONE", 0)
        life.start()
        until(lambda: crash.recovered(life), "recovery to end")
        stream.send(0, b"again\n")
        stream.until_out("AGAIN", 0)
    life.remove_pod(pod)
    invariants.check(life)


# -- tokens


def test_f39_a_token_begins_one_session(life: Node, container: str) -> None:
    url = exec_url(life, container, ["cat"])
    with nothing_left(life), Stream(url) as stream:
        stream.type("mine\n")
        stream.until_out("mine")
        with pytest.raises(Rejected, match="404"):
            Stream(url)
        stream.end_input()
        assert stream.outcome() == 0
    with pytest.raises(Rejected, match="404"):
        Stream(url)


def test_f39_a_token_of_another_kind_is_not_used_up(life: Node, container: str) -> None:
    url = exec_url(life, container, ["true"])
    for kind in ("attach", "forward"):
        with pytest.raises(Rejected, match="404"):
            Stream(url.replace("/exec/", f"/{kind}/"))
    with Stream(url) as stream:
        assert stream.outcome() == 0


def test_f39_a_guess_opens_nothing_and_a_restart_ends_all_tokens(life: Node, container: str) -> None:
    until(lambda: not streamers(life), "earlier sessions to be over")
    url = exec_url(life, container, ["true"])
    with pytest.raises(Rejected, match="404"):
        Stream(url[:-1] + ("A" if url[-1] != "A" else "B"))
    life.restart()
    door = urlsplit(exec_url(life, container, ["true"]))
    with pytest.raises(Rejected, match="404"):
        Stream(door._replace(path=urlsplit(url).path).geturl())
    assert not streamers(life)


@pytest.mark.soak
def test_f39_a_token_expires(life: Node) -> None:
    pod = life.run_pod()
    url = exec_url(life, life.run(pod, "sleep 1000"), ["true"])
    time.sleep(TOKEN_SECONDS + 1)  # the only thing to wait for is the time itself
    with pytest.raises(Rejected, match="404"):
        Stream(url)
    life.remove_pod(pod)


# -- ends


def test_f39_the_end_of_the_container_ends_its_sessions(life: Node) -> None:
    pod = life.run_pod()
    container = life.run(pod, "sleep 1000", stdin=True)
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(Stream(exec_url(life, container, ["sleep", "4002"]))),
            stack.enter_context(Stream(exec_url(life, container, ["/bin/sh"], tty=True))),
            stack.enter_context(Stream(attach_url(life, container))),
        ]
        running[1].type("echo he''re\n")
        running[1].until_out("here")
        until(lambda: "sleep 4002" in listed(life, container), "it to run")
        until(lambda: len(streamers(life)) == 3, "three sessions")
        life.stop_container(container)
        for stream in running:
            stream.until(lambda stream=stream: stream.ended, "the end")  # type: ignore[misc]
        assert running[0].outcome() == 137
    until(lambda: not streamers(life), "the sessions to be over")
    life.remove_pod(pod)
    invariants.check(life)


@pytest.mark.parametrize("restarted", [False, True])
def test_f39_the_stop_of_the_pod_ends_its_sessions(life: Node, restarted: bool) -> None:
    """Also those that an earlier daemon has begun; and none of them holds it up."""
    pod = life.run_pod(life.pod_config(network=pb.POD))
    container = life.run(pod, SHOUT, network=pb.POD)
    until(lambda: b":1B58 " in life.exec(container, ["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout, "the port")
    with contextlib.ExitStack() as stack:
        forward = stack.enter_context(Stream(forward_url(life, pod, 7000), FORWARD))
        forward.send(0, b"hello\n")
        forward.until_out("HELLO", 0)
        shell = stack.enter_context(Stream(exec_url(life, container, ["/bin/sh"], tty=True)))
        # One whose client takes nothing of what there is for him.
        deaf = stack.enter_context(Stream(exec_url(life, container, ["cat", "/dev/zero"])))
        deaf.until(lambda: len(deaf.out()) > 100_000, "zeros")
        if restarted:
            life.restart()
            until(lambda: crash.recovered(life), "recovery to end")
        began = time.monotonic()
        life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert time.monotonic() - began < 15
        until(lambda: not streamers(life), "the sessions to be over")
        for stream in (forward, shell):
            stream.until(lambda stream=stream: stream.ended, "the end")  # type: ignore[misc]
        life.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    until(lambda: not [one for one in life.leftovers() if pod in one], "nothing to be left")
    invariants.check(life)


def test_f39_a_client_that_vanishes_leaves_nothing(life: Node, container: str) -> None:
    """Nor does what he has started; a foreign shim knows no more of that than the process itself."""
    (pod,) = [one.pod_sandbox_id for one in life.containers() if one.id == container]
    foreign = FOREIGN in [one.runtime_handler for one in life.pods() if one.id == pod]
    script = "trap '' HUP; exec sleep 4005" if foreign else "trap '' HUP; sleep 4003 & (sleep 4004 &) ; sleep 4005"
    with nothing_left(life):
        for tty in (False, True):
            stream = Stream(exec_url(life, container, ["/bin/sh", "-c", script], tty=tty))
            until(lambda: "sleep 4005" in listed(life, container), "it to run")
            stream.close()
            until(lambda: not streamers(life), "its streamer to end")
            until(lambda: "sleep 400" not in listed(life, container), "all of it to be ended")


def listed(one: Node, container: str) -> str:
    """The command lines of all that there is in a container."""
    return str(one.exec(container, ["ps", "-o", "args"]).stdout.decode())


@pytest.mark.parametrize("down", [False, True])
def test_f39_the_death_of_a_streamer_ends_what_it_has_begun(life: Node, container: str, down: bool) -> None:
    with nothing_left(life), Stream(exec_url(life, container, ["sleep", "4006"])) as stream:
        until(lambda: "sleep 4006" in listed(life, container), "it to run")
        (pid,) = streamers(life)
        if down:
            life.kill()
        os.kill(pid, signal.SIGKILL)
        stream.until(lambda: stream.ended, "the connection to be closed")
        if down:
            life.start()
        until(lambda: "sleep 4006" not in listed(life, container), "it to be ended")


def test_f39_many_sessions_leave_nothing(life: Node, container: str) -> None:
    execute(life, container, "true")
    with nothing_left(life):
        before = daemon(life)
        for number in range(20):
            assert execute(life, container, f"echo {number}; exit {number}") == (f"{number}\n", number)
        until(lambda: daemon(life) <= before, f"the daemon to have as many descriptors as before, {before}")


def daemon(one: Node) -> int:
    assert one.process is not None
    return len(os.listdir(f"/proc/{one.process.pid}/fd"))


def test_f39_the_death_of_the_shim(life: Node) -> None:
    """Who is attached goes on under the next one; what is executed ends with it, and that is said."""
    pod = life.run_pod()
    container = life.run(pod, "while read line; do echo said $line; done", stdin=True)
    with Stream(attach_url(life, container)) as attached, Stream(exec_url(life, container, ["sleep", "4008"])) as run:
        attached.type("one\n")
        attached.until_out("said one")
        until(lambda: "sleep 4008" in listed(life, container), "it to run")
        (shim,) = [worker.pid for worker in keeper.workers(life.state) if worker.id == pod]
        os.kill(shim, signal.SIGKILL)
        until(lambda: life.works(container), "the pod to be adopted")
        attached.type("two\n")
        attached.until_out("said two")
        run.until(lambda: run.ended, "the end")
        assert "shim" in run.out(ERROR)
        until(lambda: "sleep 4008" not in listed(life, container), "it to be ended")
    until(lambda: not streamers(life), "the sessions to be over")
    life.remove_pod(pod)
    invariants.check(life)


def test_f39_a_session_in_which_nothing_passes_is_ended() -> None:
    with node(streaming_idle_timeout=5) as one:  # longer than a machine stands still
        pod = one.run_pod()
        container = one.run(pod, "sleep 1000")
        with (
            Stream(exec_url(one, container, ["sleep", "4007"])) as idle,
            Stream(exec_url(one, container, ["/bin/sh", "-c", COUNT])) as busy,
        ):
            idle.until(lambda: idle.ended, "the end of the idle one")
            until(lambda: "sleep 4007" not in listed(one, container), "what it has begun to be ended")
            count_on(busy)
        until(lambda: not streamers(one), "the sessions to be over")
        one.remove_pod(pod)
        invariants.check(one)


# -- TLS


def test_f39_behind_tls_too(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=str(certificate))

    def secured(connection: socket.socket) -> socket.socket:
        return trust.wrap_socket(connection, server_hostname="127.0.0.1")

    with node(streaming_tls_cert=str(certificate), streaming_tls_key=str(key)) as one:
        pod = one.run_pod()
        container = one.run(pod, "sleep 1000")
        url = exec_url(one, container, ["/bin/sh"], tty=True)
        assert url.startswith("https://127.0.0.1:")
        with Stream(url, wrap=secured) as stream:
            stream.type(f"{COUNT}\n")
            count_on(stream)
            one.kill()
            count_on(stream)
            one.start()
            until(lambda: crash.recovered(one), "recovery to end")
            count_on(stream)
            no_gap(stream)
        until(lambda: not streamers(one), "the session to end")
        where = urlsplit(exec_url(one, container, ["true"]))
        with socket.create_connection((where.hostname or "", where.port or 0), SECONDS) as plain:
            plain.sendall(f"GET {where.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert plain.recv(100).startswith(b"HTTP/1.1 400 ")
        until(lambda: not streamers(one), "that one's end")
        one.remove_pod(pod)
        invariants.check(one)
