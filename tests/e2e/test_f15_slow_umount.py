"""F15: an unmount that takes 12 s hides no exit, holds up nobody else and leaks no shim."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from kit import invariants
from kit.node import Node, node, until

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SECONDS = 12.0


@contextlib.contextmanager
def slow_unmounts(pid: int) -> Iterator[None]:
    """Each umount2(2) of this process and its children takes 12 s."""
    inject = f"inject=umount2:delay_enter={int(SECONDS * 1e6)}"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=umount2", "-e", inject, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: traced(pid), "strace")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()


def traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("TracerPid:")) > 0


def shim(life: Node, pod: str) -> int:
    return next(one.pid for one in keeper.workers(life.state) if (one.kind, one.id) == ("shim", pod))


def mounted(container: str) -> bool:
    return any(entry.target.endswith(f"{container}/rootfs") for entry in mount.mountinfo())


def test_f15_a_slow_unmount_hides_no_exit_and_leaks_no_shim() -> None:
    """The delete times out, and the next one finds nothing to delete: that is no reason to think that all is done."""
    with node() as life:
        pod, other = life.run_pod(), life.run_pod()
        data = [pb.Mount(host_path=str(life.base), container_path="/data")]
        one = life.run(pod, "while ! test -e /data/end; do sleep 0.02; done; exit 7", mounts=data)
        worker = shim(life, pod)
        begun = process.start_time(worker)
        with slow_unmounts(worker):
            began = time.monotonic()
            (life.base / "end").touch()
            status = life.exited(one)
            print(f"visible after {time.monotonic() - began:.2f} s")
            assert (status.exit_code, status.reason) == (7, "Error")
            assert mounted(one), "nothing has been unmounted yet"
            bystander = life.run(other, ["/bin/sleep", "1000"])
            assert life.works(bystander)
            life.remove_pod(other)
            assert mounted(one), "and all that in less than 12 s"
            until(lambda: f"cannot finish task-delete {one}" in life.log(), "the delete to time out")
            life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one), 40)
            assert not mounted(one)
        life.remove_pod(pod)
        until(lambda: process.start_time(worker) != begun, "the shim to be gone")
        until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")
        invariants.check(life)


@pytest.mark.soak
def test_f15_a_pod_is_removed_while_its_unmount_is_slow() -> None:
    with node() as life:
        pod = life.run_pod()
        one = life.run(pod, ["/bin/sleep", "1000"])
        worker = shim(life, pod)
        with slow_unmounts(worker):
            life.call("StopContainer", pb.StopContainerRequest(container_id=one, timeout=0))
            life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), 40)
            assert not mounted(one)
        life.remove_pod(pod)
        assert process.state(worker) == ""
        until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")
