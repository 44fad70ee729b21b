"""F24: exits that cannot be cleaned up after hold up nobody else's, however many there are."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from kit.node import Node, node, until

from holdfast.linux import mount
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SICK, WELL = 20, 50  # more of the one than the daemon has threads for short calls


@pytest.fixture
def life() -> Iterator[Node]:
    with node(on_shim_death="cleanup", inject=True) as one:  # so that it is the daemon itself that unmounts
        yield one


def exited(life: Node) -> set[str]:
    return {one.id for one in life.containers() if one.state == pb.CONTAINER_EXITED}


def mounted(life: Node, container: str) -> bool:
    return any(entry.target.endswith(f"{container}/rootfs") for entry in mount.mountinfo())


def test_f24_fifty_exits_beside_twenty_that_are_blocked(life: Node) -> None:
    pods = {life.run_pod(): 0 for _ in range(SICK)}
    sick = [life.run(pod, ["/bin/sleep", "1000"]) for pod in pods]
    data = [pb.Mount(host_path=str(life.base), container_path="/data")]
    pod = life.run_pod()
    script = "while ! test -e /data/end; do sleep 0.1; done; exit {0}"
    well = {life.run(pod, script.format(code), f"well-{code}", mounts=data): code for code in range(WELL)}
    hang = life.inject / "hang-umount"
    hang.touch()
    try:
        for worker in keeper.workers(life.state):
            if worker.id in pods:
                os.kill(worker.pid, signal.SIGKILL)
        for one in sick:
            assert life.exited(one).exit_code == 137
        (life.base / "end").touch()
        began = time.monotonic()
        until(lambda: well.keys() <= exited(life), "all exits to be visible")  # what is blocked is so for ever
        print(f"{WELL} exits were visible after {time.monotonic() - began:.2f} s, beside {SICK} that were blocked")
        assert {one: life.status(one).exit_code for one in well} == well
        assert all(mounted(life, one) for one in sick), "they are blocked still"
        assert all(life.works(life.run(pod, ["/bin/sleep", "1000"], f"new-{number}")) for number in range(2))
    finally:
        hang.unlink()
    until(lambda: not any(mounted(life, one) for one in sick), "all to be cleaned up after", 60)
    for each in (*pods, pod):
        life.remove_pod(each)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")
