"""A keeper that hangs: the daemon starts without it, what is new goes to another one, and it goes on when it can."""

import os
import signal
import time

import pytest
from kit.crash import recovered
from kit.hung import served_in_time, stopped
from kit.node import Node, node, until

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

TRAP = "trap 'exit 3' TERM; > /ready; while :; do sleep 0.02; done"


def keeper_pid(one: Node) -> int:
    found = keeper._ask(one.state / keeper.SOCKET, "hello")
    assert found is not None
    return int(found["pid"])


def test_the_api_is_served_in_time_though_each_keeper_hangs() -> None:
    with node() as one:
        pod = one.run_pod()
        running = one.run(pod, TRAP)
        before = {container.id: container.state for container in one.containers()}
        with stopped() as stop:
            for _ in served_in_time(one, lambda: stop(keeper_pid(one))):
                assert {container.id: container.state for container in one.containers()} == before
            until(lambda: recovered(one), "recovery")
            another = one.run_pod()
            assert one.exited(one.run(another, "exit 8")).exit_code == 8
            assert one.works(running)
        one.remove_pod(pod)
        until(lambda: not list(one.state.glob("keeper.*.*")), "those that have hung to leave")
        assert one.exited(one.run(another, "exit 9", "later")).exit_code == 9
        one.remove_pod(another)


@pytest.mark.parametrize("tty", [False, True])
def test_what_only_a_hung_keeper_can_do_is_done_when_it_goes_on(tty: bool) -> None:
    """It alone has the terminals of a dead shim's containers: the pod waits, and runs."""
    with node() as one:
        pod, doomed = one.run_pod(), one.run_pod()
        running, ended = one.run(pod, TRAP, tty=tty), one.run(doomed, TRAP, tty=tty)
        shim = next(worker for worker in keeper.workers(one.state) if worker.id == doomed)
        pid, first = one.pid(ended), keeper_pid(one)
        until(lambda: os.path.exists(f"/proc/{one.pid(running)}/root/ready"), "the trap")
        with stopped(first):
            one.kill()
            os.kill(shim.pid, signal.SIGKILL)
            one.start()
            one.stop_container(running, 10)
            assert one.status(running).exit_code == 3
            until(lambda: recovered(one), "recovery")
            assert one.status(ended).state == pb.CONTAINER_RUNNING and process.state(pid) not in ("", "Z")
            assert not one.works(ended)
            assert one.exited(one.run(one.run_pod(), "exit 8")).exit_code == 8
            assert one.status(ended).state == pb.CONTAINER_RUNNING
        until(lambda: one.works(ended), "another shim")
        one.stop_container(ended, 10)
        assert one.status(ended).exit_code == 3
        for found in one.pods():
            one.remove_pod(found.id)
        until(lambda: not process.state(first), "the keeper that has hung to leave")


def test_a_keeper_that_was_set_aside_and_killed_leaves_nothing() -> None:
    with node() as one:
        pod = one.run_pod()
        running = one.run(pod, TRAP)
        first = keeper_pid(one)
        with stopped(first):
            one.restart()
        began = time.monotonic()
        os.kill(first, signal.SIGKILL)
        until(lambda: not list(one.state.glob("keeper.*.*")), "its socket to go")
        assert time.monotonic() - began < 30
        assert one.works(running)
        one.stop_container(running, 10)
        assert one.status(running).exit_code == 3
        one.remove_pod(pod)
