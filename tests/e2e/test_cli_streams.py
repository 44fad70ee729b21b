"""The command line on a terminal: streams as they are used, across the death of the daemon; the terminal after it."""

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.node import IMAGE, SECONDS, Node, node, until
from kit.ports import check_forwarding
from kit.terminal import Terminal
from kit.tls import self_signed

LARGE = bytes(range(256)) * 4096 * 5  # 5 MiB
COUNT = "n=0; while :; do n=$((n+1)); echo n=$n; sleep 0.05; done"


@pytest.fixture(scope="module")
def one() -> Iterator[Node]:
    with node() as started:
        yield started


@pytest.fixture
def life(one: Node) -> Iterator[Node]:
    yield one
    for pod in one.pods():
        one.remove_pod(pod.id)
    until(lambda: not one.streamers(), "the streamers to end")


def test_stats_are_a_table_that_lives(life: Node) -> None:
    pod = life.run_pod(life.pod_config("tables"))
    for name in ("alpha", "beta"):
        life.run(pod, "sleep 1000", name)
    with Terminal(life.command("stats", "--interval", "1"), columns=120) as terminal:
        terminal.expect("\x1b[?1049h")
        terminal.expect("2 containers, by cpu")
        terminal.expect("CONTAINER ID")
        assert terminal.settings() != terminal.before
        life.run(pod, "while :; do :; done", "gamma")
        terminal.expect("3 containers")
        terminal.expect("CONTAINER ID")
        while "gamma" not in terminal.expect("alpha"):  # who uses most is first, once that is known
            terminal.expect("CONTAINER ID")
        terminal.type("n")
        terminal.expect("by name")
        assert "alpha" in terminal.expect("gamma")
        terminal.resize(30, 4)
        terminal.expect("\x1b[H")
        shown = terminal.expect("\x1b[J")
        while shown.count("\n") != 3:
            shown = terminal.expect("\x1b[J")
        assert max(len(line.removesuffix("\x1b[K")) for line in shown.split("\r\n")) <= 30 + len("\x1b[H")
        life.restart()
        terminal.resize(120, 20)
        terminal.expect("gamma")
        terminal.type("q")
        assert terminal.end() == 0
        assert terminal.settings() == terminal.before
        assert terminal.said.endswith(b"\x1b[?25h\x1b[?1049l")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 0), (signal.SIGHUP, 129)])
def test_the_terminal_is_as_it_was_when_stats_are_ended(life: Node, number: int, status: int) -> None:
    with Terminal(life.command("stats")) as terminal:
        terminal.expect("CONTAINER ID")
        terminal.process.send_signal(number)
        assert (terminal.end(), terminal.settings()) == (status, terminal.before)
        assert terminal.said.endswith(b"\x1b[?25h\x1b[?1049l")


def test_pods_are_watched_across_a_restart(life: Node) -> None:
    first = life.run_pod(life.pod_config("first"))
    command = life.command("pods", "--watch", "-o", "json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None

        def told() -> tuple[str, str, str]:
            found = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            return found["type"], found["object"]["metadata"]["name"], found["object"]["state"]

        def told_until(wanted: tuple[str, str, str]) -> None:
            while (found := told()) != wanted:
                assert found[1] == wanted[1], "a change of another pod"

        assert told() == ("ADDED", "first", "SANDBOX_READY")
        second = life.run_pod(life.pod_config("second"))
        assert told()[:2] == ("ADDED", "second")
        life.restart()
        life.run_pod(life.pod_config("third"))
        told_until(("ADDED", "third", "SANDBOX_READY"))
        life.remove_pod(first)
        told_until(("DELETED", "first", "SANDBOX_NOTREADY"))
        life.remove_pod(second)
        told_until(("DELETED", "second", "SANDBOX_NOTREADY"))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read().split("\n")[:2] == [
            "holdfast: the daemon does not answer; waiting for it", "holdfast: the daemon is back",
        ]  # fmt: skip


def test_watching_only_some_pods(life: Node) -> None:
    life.run_pod(life.pod_config("web-1"))
    with Terminal(life.command("pods", "--watch", "--state", "ready", "--name", "web")) as terminal:
        terminal.expect("RUNTIME")
        terminal.expect("web-1")
        other, mine = life.run_pod(life.pod_config("other")), life.run_pod(life.pod_config("web-2"))
        assert "Ready" in terminal.expect("web-2")
        for pod in (other, mine):
            life.remove_pod(pod)
        terminal.expect("Removed")
        terminal.expect("web-2")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert b"other" not in terminal.said
        assert terminal.said.count(b"POD ID") == 1


def test_logs_by_number_and_time(life: Node) -> None:
    container = life.cli("run", "-d", "--name", "count", IMAGE, "sh", "-c", "seq 100; sleep 1000").stdout.strip()
    until(lambda: life.cli("logs", "--tail", "1", "count").stdout == "100\n", "all to be written")
    assert life.cli("logs", "--since", "10m", "--tail", "2", "count").stdout == "99\n100\n"
    assert life.cli("logs", "--since", "2100-01-01T00:00:00Z", container).stdout == ""
    with subprocess.Popen(life.command("logs", "-f", "count"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as head:
        assert head.stdout is not None and head.stderr is not None
        assert head.stdout.readline() == b"1\n"
        head.stdout.close()
        life.cli("exec", "count", "sh", "-c", "echo more > /proc/1/fd/1")
        assert (head.wait(SECONDS), head.stderr.read()) == (1, b"")
    until(lambda: life.cli("logs", "--tail", "1", "count").stdout == "more\n", "what was said later to be written")
    moment, _, text = life.cli("logs", "--tail", "2", "-t", "count").stdout.splitlines()[0].partition(" ")
    assert text == "100"
    assert life.cli("logs", "--since", moment, "count").stdout.endswith("100\nmore\n")


# -- exec


def test_exec_has_the_commands_streams_and_status(life: Node, tmp_path: Path) -> None:
    life.cli("run", "-d", "--name", "web", IMAGE, "sleep", "1000")
    done = life.cli("exec", "web", "sh", "-c", "echo out; echo err >&2; exit 42", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")
    (tmp_path / "large").write_bytes(LARGE)
    with (tmp_path / "large").open("rb") as file:
        command = life.command("exec", "-i", "web", "sh", "-c", "tee /tmp/copy; sha256sum /tmp/copy >&2")
        found = subprocess.run(command, stdin=file, capture_output=True, timeout=SECONDS, check=True)
    assert found.stdout == LARGE
    assert found.stderr.split()[0].decode() == hashlib.sha256(LARGE).hexdigest()
    failed = life.cli("exec", "web", "/no/such/command", check=False)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert failed.stderr.startswith("holdfast: cannot exec in container web: ")
    assert "/no/such/command" in failed.stderr
    command = life.command("exec", "web", "yes")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(100) == b"y\n" * 50
        process.stdout.close()
        assert process.wait(SECONDS) == 141, "nobody reads it any more"


def test_a_shell_goes_on_when_the_daemon_is_killed(life: Node) -> None:
    """F39: and it has the terminal's size, and ctrl-c, and the terminal is as it was afterwards."""
    life.cli("run", "-d", "--name", "web", IMAGE, "sleep", "1000")
    with Terminal(life.command("exec", "-it", "web", "sh")) as terminal:
        terminal.expect("# ")
        assert terminal.settings() != terminal.before
        for columns, rows in ((80, 24), (132, 43)):
            terminal.resize(columns, rows)
            terminal.type(f"while [ \"$(stty size)\" != '{rows} {columns}' ]; do :; done; echo fi''ts\n")
            terminal.expect("fits")
        terminal.type(f"{COUNT}\n")
        terminal.expect("n=5\r\n")
        life.restart()
        numbers = [int(terminal.expect("\r\n").removeprefix("n=")) for _ in range(20)]
        assert numbers == list(range(6, 26))
        terminal.type("\x03")
        terminal.expect("# ")
        terminal.type("exit 7\n")
        assert terminal.end() == 7
        assert terminal.settings() == terminal.before


@pytest.mark.parametrize("how", ["terminated", "hung up", "server killed"])
def test_the_terminal_is_as_it_was_however_a_session_ends(life: Node, how: str) -> None:
    container = life.cli("run", "-d", "--name", "web", IMAGE, "sleep", "1000").stdout.strip()
    with Terminal(life.command("exec", "-it", "web", "sleep", "4321")) as terminal:
        until(lambda: terminal.settings() != terminal.before, "the session")
        until(lambda: "4321" in life.exec(container, ["ps"]).stdout.decode(), "the command")
        if how == "server killed":
            (streamer,) = life.streamers()
            os.kill(streamer, signal.SIGKILL)
            assert terminal.end() == 1
            assert (
                b"holdfast: cannot tell how the command in container web ended: the connection was lost"
                in terminal.said
            )
        else:
            number = signal.SIGTERM if how == "terminated" else signal.SIGHUP
            terminal.process.send_signal(number)
            assert terminal.end() == 128 + number
        assert terminal.settings() == terminal.before
    until(lambda: "4321" not in life.exec(container, ["ps"]).stdout.decode(), "the command to be ended")


def test_tls_is_checked_and_its_sessions_survive_the_daemon(tmp_path: Path) -> None:
    certificate = str(self_signed(tmp_path))
    with node(streaming_tls_cert=certificate, streaming_tls_key=certificate) as secured:
        secured.cli("run", "-d", "--name", "web", IMAGE, "sleep", "1000")
        refused = secured.cli("exec", "web", "true", check=False)
        assert (refused.returncode, "(hint: --streaming-ca FILE" in refused.stderr) == (1, True)
        assert secured.cli("exec", "--insecure-skip-tls-verify", "web", "echo", "hi").stdout == "hi\n"
        with Terminal(
            secured.command("exec", "-it", "--streaming-ca", certificate, "web", "sh", "-c", COUNT)
        ) as terminal:
            terminal.expect("n=3\r\n")
            secured.restart()
            assert [terminal.expect("\r\n") for _ in range(20)] == [f"n={number}" for number in range(4, 24)]
            terminal.type("\x03")
            assert terminal.end() == 130
        until(lambda: not secured.streamers(), "the streamer to end")


# -- attach


def test_attach_and_detach(life: Node) -> None:
    life.cli("run", "-d", "-it", "--name", "shell", IMAGE, "sh")
    with Terminal(life.command("attach", "-i", "shell")) as terminal:
        until(lambda: terminal.settings() != terminal.before, "the session")
        terminal.type("echo he''llo\n")
        terminal.expect("hello")
        life.restart()
        terminal.type("stty size; echo he''llo again\n")
        terminal.expect("24 80")
        terminal.expect("hello again")
        terminal.type("\x10\x11")
        assert terminal.end() == 0
        assert b"detached from container shell" in terminal.said
        assert terminal.settings() == terminal.before
    assert "shell" in life.cli("ps").stdout
    with Terminal(life.command("attach", "-i", "--detach-keys", "", "shell")) as terminal:
        until(lambda: terminal.settings() != terminal.before, "the session")
        terminal.type("exit 9\n")
        assert terminal.end() == 9
        assert terminal.settings() == terminal.before


def test_what_is_typed_may_come_from_a_pipe(life: Node) -> None:
    life.cli("run", "-d", "-it", "--name", "shell", IMAGE, "sh")
    command = life.command("attach", "-i", "shell")
    done = subprocess.run(command, input=b"echo he''llo; exit 5\n", capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, b"hello" in done.stdout, done.stderr) == (5, True, b"")


def test_attach_only_shows(life: Node) -> None:
    life.cli("run", "-d", "--name", "count", IMAGE, "sh", "-c", COUNT + "& wait")
    with Terminal(life.command("attach", "count")) as terminal:
        first = int(terminal.expect("\r\n").removeprefix("n="))
        assert int(terminal.expect("\r\n").removeprefix("n=")) == first + 1
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "count" in life.cli("ps").stdout


# -- port-forward


def test_ports_are_forwarded(life: Node) -> None:
    check_forwarding(life)
