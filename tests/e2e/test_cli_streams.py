"""The command line on a terminal: streams as they are used, across the death of the daemon; the terminal after it."""

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest
from kit.node import BIN, IMAGE, Node, node, until
from kit.terminal import Terminal


@pytest.fixture(scope="module")
def one() -> Iterator[Node]:
    with node() as started:
        yield started


@pytest.fixture
def life(one: Node) -> Iterator[Node]:
    yield one
    for pod in one.pods():
        one.remove_pod(pod.id)


def holdfast(life: Node, *arguments: str) -> list[str]:
    return [str(BIN / "holdfast"), "--socket", str(life.socket), *arguments]


def test_stats_are_a_table_that_lives(life: Node) -> None:
    pod = life.run_pod(life.pod_config("tables"))
    for name in ("alpha", "beta"):
        life.run(pod, "sleep 1000", name)
    with Terminal(holdfast(life, "stats", "--interval", "1"), columns=120) as terminal:
        terminal.expect("\x1b[?1049h")
        terminal.expect("2 containers, by cpu")
        terminal.expect("CONTAINER ID")
        assert terminal.settings() != terminal.before
        life.run(pod, "while :; do :; done", "gamma")
        terminal.expect("3 containers")
        while "gamma" not in terminal.expect("alpha"):  # who uses most is first, once that is known
            pass
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
    with Terminal(holdfast(life, "stats")) as terminal:
        terminal.expect("CONTAINER ID")
        terminal.process.send_signal(number)
        assert (terminal.end(), terminal.settings()) == (status, terminal.before)
        assert terminal.said.endswith(b"\x1b[?25h\x1b[?1049l")


def test_pods_are_watched_across_a_restart(life: Node) -> None:
    first = life.run_pod(life.pod_config("first"))
    command = holdfast(life, "pods", "--watch", "-o", "json")
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
    with Terminal(holdfast(life, "pods", "--watch", "--state", "ready", "--name", "web")) as terminal:
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
    moment, _, text = life.cli("logs", "--tail", "1", "-t", "count").stdout.partition(" ")
    assert text == "100\n"
    assert life.cli("logs", "--since", moment, "count").stdout.endswith("100\n")
