"""F27: the grace period is what was asked for: nobody is killed early, nobody is spared, and SIGKILL is sent once."""

import concurrent.futures
import signal
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from kit.hung import hung
from kit.node import Node, until

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub

LATE = 15.0  # seconds after its deadline by which even a busy machine has ended it
STUBBORN = "trap 'echo asked' TERM; echo up; while :; do sleep 0.02; done"
SLOW = "trap 'echo asked; sleep 2; exit 7' TERM; echo up; while :; do sleep 0.02; done"


def up(life: Node, pod: str, script: str) -> str:
    container = life.run(pod, script)
    until(lambda: b"up" in life.container_log(container), "its trap to be set")
    return container


def asked(life: Node, container: str) -> int:
    """How often the container has heard its stop signal."""
    return life.container_log(container).count(b" asked\n")


def sent(life: Node, container: str, number: int) -> int:
    return life.log().count(f"sent signal {int(number)} to container {container}")


def ask_and_leave(life: Node, container: str, seconds: int) -> float:
    """Ask for a stop and go away when it has begun, which is much earlier; returns when that was asked."""
    began = time.monotonic()
    request = pb.StopContainerRequest(container_id=container, timeout=seconds)
    client = RuntimeServiceStub(life.channel).StopContainer.future(request)
    until(lambda: asked(life, container) == 1, "the stop signal")
    client.cancel()
    return began


def test_f27_a_client_that_goes_away_has_nobody_killed_early(life: Node, pod: str) -> None:
    container = up(life, pod, SLOW)
    ask_and_leave(life, container, 60)
    assert life.exited(container).exit_code == 7
    assert (asked(life, container), sent(life, container, signal.SIGKILL)) == (1, 0)


def test_f27_a_second_stop_shortens_the_first(life: Node, pod: str, clients: concurrent.futures.Executor) -> None:
    container = up(life, pod, STUBBORN)
    first = clients.submit(life.stop_container, container, 60)
    until(lambda: asked(life, container) == 1, "the stop signal")
    began = time.monotonic()
    life.stop_container(container, 1)
    first.result()
    assert 1 <= time.monotonic() - began < 1 + LATE
    assert life.status(container).exit_code == 137
    assert (asked(life, container), sent(life, container, signal.SIGKILL)) == (1, 1)


def test_f27_a_second_stop_lengthens_nothing(life: Node, pod: str) -> None:
    container = up(life, pod, STUBBORN)
    began = ask_and_leave(life, container, 2)
    life.stop_container(container, 60)
    assert 2 <= time.monotonic() - began < 2 + LATE
    assert life.status(container).exit_code == 137
    assert sent(life, container, signal.SIGKILL) == 1


def test_f27_a_restart_neither_begins_anew_nor_kills_early(life: Node, pod: str) -> None:
    container = up(life, pod, STUBBORN)
    began = ask_and_leave(life, container, 5)
    life.restart()
    assert life.status(container).state == pb.CONTAINER_RUNNING or time.monotonic() - began > 5
    life.restart(signal.SIGTERM)
    assert life.exited(container).exit_code == 137
    assert 5 <= time.monotonic() - began < 5 + LATE
    assert (asked(life, container), sent(life, container, signal.SIGKILL)) == (1, 1)


def test_f27_a_deadline_that_passes_while_the_daemon_is_down_is_kept_at_its_start(life: Node, pod: str) -> None:
    container = up(life, pod, STUBBORN)
    began = ask_and_leave(life, container, 1)
    life.kill()
    until(lambda: time.monotonic() - began > 1, "the deadline to be over")
    life.start()
    assert life.exited(container).exit_code == 137
    assert (asked(life, container), sent(life, container, signal.SIGKILL)) == (1, 1)


def test_f27_what_ends_by_itself_while_the_daemon_is_down_has_its_own_exit_code(life: Node, pod: str) -> None:
    container = up(life, pod, SLOW)
    pid, started = life.pid(container), life.status(container).started_at
    ask_and_leave(life, container, 60)
    life.kill()
    until(lambda: process.state(pid) in ("", "Z"), "it to end")
    life.start()
    found = life.exited(container)
    assert (found.exit_code, sent(life, container, signal.SIGKILL)) == (7, 0)
    assert found.finished_at > started


def test_f27_a_real_time_signal_is_a_stop_signal(life: Node, pod: str) -> None:
    script = f"trap 'exit 9' {signal.SIGRTMIN + 3}; echo up; while :; do sleep 0.02; done"
    container = life.create(pod, life.container_config(script, stop_signal=pb.SIGRTMINPLUS3))
    life.start_container(container)
    until(lambda: b"up" in life.container_log(container), "its trap to be set")
    life.stop_container(container, 60)
    assert life.status(container).exit_code == 9
    assert sent(life, container, signal.SIGRTMIN + 3) == 1


def test_f27_what_even_sigkill_does_not_end_is_said_to_be_so(life: Node, pod: str) -> None:
    """Its init waits uninterruptibly for a filesystem that never answers; the others have nothing to do with that."""
    place = life.base / "data"
    place.mkdir()
    mount.mount("data", place, "tmpfs")
    mount.set_propagation(place, mount.MS_SHARED)
    try:
        (place / "hung").mkdir()
        volume = pb.Mount(host_path=str(place), container_path="/data", propagation=pb.PROPAGATION_HOST_TO_CONTAINER)
        script = "echo up; while [ ! -e /data/go ]; do sleep 0.02; done; exec cat /data/hung/file"
        config = life.container_config(script, "stuck", mounts=[volume])
        stuck = life.create(pod, config)
        life.start_container(stuck)
        until(lambda: b"up" in life.container_log(stuck), "it to run")
        with hung(place / "hung") as nobody:
            (place / "go").touch()
            pid = life.pid(stuck)
            until(lambda: nobody.waiting, "it to wait for an answer")
            with pytest.raises(grpc.RpcError) as refused:
                life.call("StopContainer", pb.StopContainerRequest(container_id=stuck, timeout=1), 60)
            assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert f"process {pid} is in state D, waiting in " in str(refused.value.details())
            assert life.status(stuck).state == pb.CONTAINER_RUNNING
            other = up(life, pod, SLOW)
            life.stop_container(other, 60)
            assert life.status(other).exit_code == 7
            life.restart()
            assert life.status(stuck).state == pb.CONTAINER_RUNNING
        assert life.exited(stuck).exit_code == 137
    finally:
        _unmount(place)


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-R", "-l", place], check=True)
