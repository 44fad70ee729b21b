"""The daemon itself: notification, logs, flags, and what it refuses."""

import json
import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import grpc
import pytest
from kit.node import BIN, Node, node, until

from holdfast.runtime import keeper


def test_it_tells_the_service_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with node() as one:
            assert manager.recv(64) == b"READY=1"
            assert one.process is not None
            one.process.send_signal(signal.SIGHUP)
            assert [manager.recv(64), manager.recv(64)] == [b"RELOADING=1", b"READY=1"]
            one.end(signal.SIGTERM)
            assert manager.recv(64) == b"STOPPING=1"


def test_json_logs_carry_ids() -> None:
    with node(log_format="json") as one:
        pod_id = one.run_pod()
        container_id = one.run(pod_id, "exit 0")
        one.exited(container_id)
        entries = [json.loads(line) for line in one.log().splitlines()]
        assert {"time", "level", "module", "message"} <= entries[0].keys()
        assert pod_id in {entry.get("pod") for entry in entries}
        assert container_id in {entry.get("container") for entry in entries}


def test_the_log_level_flag() -> None:
    one = Node()
    try:
        one.start("--log-level", "error")
        assert "serving" not in one.log()
    finally:
        one.purge()


def test_settings_are_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("rooot = 1\n")
    done = subprocess.run([BIN / "holdfastd", "--config", config], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "holdfastd: rooot: there is no such setting; did you mean root?\n")


def test_daemons_run_side_by_side() -> None:
    with node() as one, node() as two:
        first, second = one.run_pod(), two.run_pod()
        one.run(first, "sleep 1000")
        two.run(second, "sleep 1000")
        assert ([len(one.pods()), len(two.pods())]) == [1, 1]
        one.remove_pod(first)
        assert len(two.containers()) == 1
        assert not os.path.exists("/run/holdfast")


def test_a_socket_elsewhere_leaves_that_directory_as_it_is(tmp_path: Path) -> None:
    shared, fresh = tmp_path / "shared", tmp_path / "fresh"
    shared.mkdir(mode=0o755)
    one = Node()
    try:
        for directory, mode in ((shared, 0o755), (fresh, 0o700)):
            one.socket = directory / "cri.sock"
            one.start("--socket", str(one.socket))
            assert one.socket.stat().st_mode & 0o777 == 0o600
            assert directory.stat().st_mode & 0o777 == mode
            one.end(signal.SIGTERM)
    finally:
        one.socket = one.state / "holdfast.sock"
        one.purge()


def file_limits(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


def run_pod(one: Node) -> str:
    """Its id, or "" while the daemon has no keeper."""
    try:
        return one.run_pod()
    except grpc.RpcError as exc:
        assert exc.code() is grpc.StatusCode.UNAVAILABLE
        return ""


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_limit_on_open_files_is_raised_for_daemon_and_keeper_alone(runtime: str) -> None:
    def look(pod: str) -> tuple[int, int]:
        """In a container, at its start and when something is executed in it."""
        container_id = one.run(pod, "ulimit -Sn; ulimit -Hn; sleep 1000")
        until(lambda: len(one.container_log(container_id).split()) == 8, "its log")
        said = [int(line.split()[3]) for line in one.container_log(container_id).splitlines()]
        executed = one.exec(container_id, ["/bin/sh", "-c", "ulimit -Sn; ulimit -Hn"]).stdout.split()
        soft, hard = map(int, executed)
        # runc before 1.2 races with its own Go runtime, which raises the soft limit of `runc init` when it is executed.
        assert [soft, hard] == said or (runtime == "runc" and soft == hard == said[1])
        return said[0], said[1]

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = (1000, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, low)
    try:
        with node(runtime) as one:
            assert one.process is not None
            assert file_limits(one.process.pid) == (low[1], low[1])
            pod = one.run_pod()
            shim = next(worker.pid for worker in keeper.workers(one.state) if worker.id == pod)
            assert file_limits(shim) == low and look(pod) == low
            found = keeper._ask(one.state / keeper.SOCKET, "hello")
            assert found is not None and file_limits(found["pid"]) == (low[1], low[1])
            os.kill(found["pid"], signal.SIGKILL)
            until(lambda: (now := keeper._ask(one.state / keeper.SOCKET, "hello")) and now != found, "another keeper")
            assert look(until(lambda: run_pod(one), "the daemon to know it")) == low, (
                "the daemon has started that keeper"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
