"""on_shim_death = "cleanup": a pod whose shim has died is ended with it, at once, and nothing of it is left running."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from kit.crash import recovered
from kit.node import Node, node, until

from holdfast.linux import cgroup, mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SLEEP = ["/bin/sleep", "100000"]


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(on_shim_death="cleanup") as one:
        yield one


def shim(life: Node, pod: str) -> int:
    return next(worker.pid for worker in keeper.workers(life.state) if (worker.kind, worker.id) == ("shim", pod))


def state(life: Node, pod: str) -> int:
    status = life.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    return int(status.state)


def shared_pid_pod(life: Node) -> tuple[str, dict[str, object]]:
    """A pod with an init of its own, which must not outlive it either."""
    linux = pb.LinuxContainerConfig()
    linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(network=pb.NODE, pid=pb.POD))
    return life.run_pod(life.pod_config(pid=pb.POD)), {"linux": linux}


def traces(life: Node, pod: str) -> list[str]:
    """What would keep something of the pod alive; what it is known by is not meant."""
    found = [f"mount {one.target}" for one in mount.mountinfo() if pod in one.target]
    found += [f"worker {one.kind}" for one in keeper.workers(life.state) if one.id == pod]
    found += [f"cgroup {name}" for name in cgroup.children(life.cgroup) if name == pod]
    return found


def told(life: Node, kind: str, name: str) -> list[str]:
    """What has become of it, in a word each."""
    lines = life.cli("events", "--since", "0", "--no-follow").stdout.splitlines()
    return [word for of, word, whose in (line.split()[2:5] for line in lines) if (of, whose) == (kind, name)]


@pytest.mark.parametrize("shared", [False, True], ids=["own pids", "shared pids"])
@pytest.mark.parametrize("daemon", ["up", "down"])
def test_the_pod_is_ended_with_its_shim(life: Node, daemon: str, shared: bool) -> None:
    pod, more = shared_pid_pod(life) if shared else (life.run_pod(), {})
    bystander = life.run_pod()
    other = life.run(bystander, SLEEP)
    one, two = life.run(pod, SLEEP, "one", **more), life.run(pod, SLEEP, "two", **more)
    over = life.run(pod, "exit 42", "over", **more)
    assert life.exited(over).exit_code == 42
    pids = {name: life.pid(name) for name in (one, two, other)}
    begun = {name: process.start_time(pids[name]) for name in (one, two)}
    victim = shim(life, pod)
    if daemon == "down":
        life.kill()
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    if daemon == "down":
        assert process.state(pids[one]) == "S"
        life.start()
        began = time.monotonic()
    until(lambda: state(life, pod) == pb.SANDBOX_NOTREADY and not traces(life, pod), "the pod to be ended")
    print(f"ended {time.monotonic() - began:.3f} s after its shim (daemon {daemon})")
    for name in (one, two):
        status = life.exited(name)
        assert (status.exit_code, status.reason) == (137, "Error")
    until(lambda: all(process.start_time(pids[name]) != begun[name] for name in (one, two)), "them to be reaped")
    assert life.status(over).exit_code == 42
    until(lambda: recovered(life), "recovery")
    assert (life.pid(other), life.status(other).state) == (pids[other], pb.CONTAINER_RUNNING)
    with pytest.raises(Exception, match="not ready"):
        life.create(pod, life.container_config(SLEEP, "late"))
    name = next(each.metadata.name for each in life.pods() if each.id == pod)
    until(lambda: "stopped" in told(life, "pod", name), "the end of the pod to be told")
    if daemon == "up":
        until(lambda: told(life, "container", "two")[-2:] == ["stopped", "cleaned"], "the end of the container, too")
    for gone in (pod, bystander):
        life.remove_pod(gone)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")


def test_a_shim_that_only_lost_its_connection_is_not_killed(life: Node) -> None:
    pod = life.run_pod()
    one = life.run(pod, SLEEP)
    before = shim(life, pod), life.pid(one)
    life.kill()
    life.start()
    until(lambda: recovered(life), "recovery")
    assert life.works(one)
    assert (shim(life, pod), life.pid(one)) == before
    assert state(life, pod) == pb.SANDBOX_READY
    life.remove_pod(pod)
