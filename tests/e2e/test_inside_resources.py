"""Limits as processes inside see them, and as the cgroup files say, under each OCI runtime and a foreign shim.

The host of these tests has cgroup v1 with an empty v2 beside it. What is special to v2 and to systemd is in tests/unit.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.node import Node, node, until

from holdfast.linux import cgroup
from holdfast.proto import runtime_v1_pb2 as pb

MIB = 1 << 20
FOREIGN = "runc-v2"
HANDLERS = ("crun", "runc", FOREIGN)
TOP = cgroup.hierarchies()
pytestmark = pytest.mark.skipif("memory" not in TOP, reason="the files that are looked at are those of cgroup v1")


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    with node(runtimes={FOREIGN: {"shim": "containerd-shim-runc-v2"}}) as one:
        yield one


@pytest.fixture(autouse=True)
def no_pods_are_left(host: Node) -> Iterator[None]:
    yield
    for one in host.pods():
        host.remove_pod(one.id)
    assert not host.leftovers()


def limits(**fields: Any) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(**fields)


def limited(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(resources=limits(**fields))


def update(host: Node, container: str, seconds: float = 30.0, **fields: Any) -> None:
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=limits(**fields))
    host.call("UpdateContainerResources", request, seconds)


def update_pod(host: Node, pod: str, **given: pb.LinuxContainerResources) -> None:
    host.call("UpdatePodSandboxResources", pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, **given))


def refused(call: Any, code: grpc.StatusCode, text: str) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    assert (failure.value.code(), text in failure.value.details()) == (code, True), failure.value.details()


def value(path: str, controller: str, name: str) -> str:
    return (TOP[controller] / path.strip("/") / name).read_text().strip()


def place(host: Node, pod: str, container: str = "") -> str:
    return f"{host.cgroup}/{pod}/{container}".rstrip("/")


def in_force(host: Node, container: str) -> pb.LinuxContainerResources:
    return host.status(container).resources.linux


def pod_info(host: Node, pod: str) -> dict[str, Any]:
    reply = host.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    found: dict[str, Any] = json.loads(reply.info["info"])
    return found


INSIDE = {
    "cpu/cpu.shares": "200",
    "cpu/cpu.cfs_period_us": "50000",
    "cpu/cpu.cfs_quota_us": "25000",
    "cpuset/cpuset.cpus": "0",
    "cpuset/cpuset.mems": "0",
    "memory/memory.limit_in_bytes": str(64 * MIB),
    "memory/memory.memsw.limit_in_bytes": str(96 * MIB),
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_limits_from_inside(host: Node, handler: str) -> None:
    pod = host.run_pod(handler=handler)
    linux = limited(
        cpu_shares=200, cpu_period=50000, cpu_quota=25000, cpuset_cpus="0", cpuset_mems="0",
        memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB, oom_score_adj=300,
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)],
    )  # fmt: skip
    container = host.run(pod, "sleep 1000", linux=linux)
    script = "; ".join(f"cat /sys/fs/cgroup/{name}" for name in INSIDE)
    assert host.exec(container, ["/bin/sh", "-c", script]).stdout.decode().split() == list(INSIDE.values())
    assert host.exec(container, ["/bin/cat", "/proc/1/oom_score_adj"]).stdout == b"300\n"
    allowed = host.exec(container, ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"]).stdout
    assert allowed.split()[1] == b"0"
    for name, expected in INSIDE.items():
        controller, _, file = name.partition("/")
        assert value(place(host, pod, container), controller, file) == expected
    told = in_force(host, container)
    assert (told.cpu_shares, told.memory_swap_limit_in_bytes, told.oom_score_adj) == (200, 96 * MIB, 300)
    if "hugetlb" not in TOP:
        assert not told.hugepage_limits, "told is what is in force, and the controller is missing"


@pytest.mark.parametrize("handler", HANDLERS)
def test_no_limits_may_be_said(host: Node, handler: str) -> None:
    pod = host.run_pod(handler=handler)
    linux = limited(cpu_quota=-1, memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=-1, cpu_shares=1)
    container = host.run(pod, "sleep 1000", linux=linux)
    where = place(host, pod, container)
    assert value(where, "cpu", "cpu.cfs_quota_us") == "-1"
    assert value(where, "cpu", "cpu.shares") == "2", "the least there is"
    assert value(where, "memory", "memory.limit_in_bytes") == value("/", "memory", "memory.limit_in_bytes")
    told = in_force(host, container)
    assert (told.cpu_quota, told.memory_limit_in_bytes, told.cpu_shares) == (-1, -1, 2)


@pytest.mark.parametrize("handler", HANDLERS)
def test_memory_without_a_word_on_swap_gets_none(host: Node, handler: str) -> None:
    container = host.run(
        pod := host.run_pod(handler=handler), "sleep 1000", linux=limited(memory_limit_in_bytes=64 * MIB)
    )
    where = place(host, pod, container)
    assert value(where, "memory", "memory.memsw.limit_in_bytes") == str(64 * MIB)
    assert in_force(host, container).memory_swap_limit_in_bytes == 64 * MIB


def test_an_oom_score_that_may_not_be_set_is_told_as_it_is(host: Node) -> None:
    container = host.run(host.run_pod(), "sleep 1000", linux=limited(oom_score_adj=-999))
    real = int(Path(f"/proc/{host.pid(container)}/oom_score_adj").read_text())
    assert in_force(host, container).oom_score_adj == real >= -999


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_update_of_a_running_container(host: Node, handler: str) -> None:
    pod = host.run_pod(handler=handler)
    linux = limited(cpu_shares=200, cpu_quota=50000, memory_limit_in_bytes=64 * MIB)
    container = host.run(pod, "sleep 1000", linux=linux)
    where = place(host, pod, container)
    for memory in (96, 32):  # up and down, and the limit on swap with it
        update(host, container, memory_limit_in_bytes=memory * MIB, oom_score_adj=500)
        both = [value(where, "memory", f"memory.{name}limit_in_bytes") for name in ("", "memsw.")]
        assert both == [str(memory * MIB)] * 2
        told = in_force(host, container)
        assert (told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes) == (memory * MIB, memory * MIB)
    update(host, container, cpu_shares=512, cpu_quota=-1, cpuset_cpus="0", memory_swap_limit_in_bytes=48 * MIB)
    assert value(where, "cpu", "cpu.shares") == "512"
    assert value(where, "cpu", "cpu.cfs_quota_us") == "-1"
    assert value(where, "cpuset", "cpuset.cpus") == "0"
    assert value(where, "memory", "memory.memsw.limit_in_bytes") == str(48 * MIB)
    told = in_force(host, container)
    assert (told.cpu_shares, told.cpu_quota, told.memory_limit_in_bytes) == (512, -1, 32 * MIB)
    update(host, container, memory_limit_in_bytes=-1)
    both = [value(where, "memory", f"memory.{name}limit_in_bytes") for name in ("", "memsw.")]
    assert both == [value("/", "memory", "memory.limit_in_bytes")] * 2
    assert told.oom_score_adj == 0 == int(Path(f"/proc/{host.pid(container)}/oom_score_adj").read_text())


def test_updates_of_a_created_container_are_those_with_which_it_starts(host: Node) -> None:
    """Also when the daemon is killed, and when the bundle is lost: the row has them."""
    pod = host.run_pod()
    one, two = (
        host.create(pod, host.container_config("sleep 1000", name, linux=limited(cpu_shares=100, cpu_quota=20000)))
        for name in ("one", "two")
    )
    for container in (one, two):
        update(host, container, cpu_shares=300, memory_limit_in_bytes=48 * MIB)
    (host.state / "pods" / pod / two / "config.json").unlink()
    host.restart()
    for container in (one, two):
        assert in_force(host, container).cpu_shares == 300
        host.start_container(container)
        where = place(host, pod, container)
        assert value(where, "cpu", "cpu.shares") == "300"
        assert value(where, "cpu", "cpu.cfs_quota_us") == "20000"
        assert value(where, "memory", "memory.limit_in_bytes") == str(48 * MIB)


def test_updates_survive_the_daemon(host: Node) -> None:
    container = host.run(host.run_pod(), "sleep 1000", linux=limited(cpu_shares=100))
    update(host, container, cpu_shares=300)
    host.restart()
    assert in_force(host, container).cpu_shares == 300


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_update_that_fails_changes_nothing(host: Node, handler: str) -> None:
    pod = host.run_pod(handler=handler)
    container = host.run(pod, "sleep 1000", linux=limited(cpu_shares=200, cpuset_cpus="0"))
    where = place(host, pod, container)
    refused(
        lambda: update(host, container, cpu_shares=700, cpuset_cpus="4000"),
        grpc.StatusCode.UNKNOWN,
        "limits that it had",
    )
    assert value(where, "cpu", "cpu.shares") == "200"
    assert value(where, "cpuset", "cpuset.cpus") == "0"
    told = in_force(host, container)
    assert (told.cpu_shares, told.cpuset_cpus) == (200, "0")
    assert "update" not in host.info(container)["underWay"]


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_was_never_limited_is_not_limited_by_an_update_that_fails(host: Node, handler: str) -> None:
    pod = host.run_pod(handler=handler)
    container = host.run(pod, "sleep 1000")
    names = [name.partition("/")[::2] for name in INSIDE]
    before = [value(place(host, pod, container), *name) for name in names]
    wrong = {"cpu_shares": 700, "cpu_quota": 20000, "memory_limit_in_bytes": 64 * MIB, "cpuset_cpus": "4000"}
    refused(lambda: update(host, container, **wrong), grpc.StatusCode.UNKNOWN, "it has the limits that it had")
    assert [value(place(host, pod, container), *name) for name in names] == before
    assert in_force(host, container) == limits(oom_score_adj=in_force(host, container).oom_score_adj)


def test_what_cannot_be_is_refused_by_field(host: Node) -> None:
    pod = host.run_pod()
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    container = host.run(pod, "exit 0", "short", linux=limited(memory_limit_in_bytes=64 * MIB))
    host.exited(container)
    refused(lambda: update(host, container, cpu_shares=3), grpc.StatusCode.FAILED_PRECONDITION, "it is EXITED")
    assert in_force(host, container).cpu_shares == 0
    running = host.run(pod, "sleep 1000", linux=limited(memory_limit_in_bytes=64 * MIB))
    refused(lambda: update(host, running, memory_swap_limit_in_bytes=MIB), invalid, "linux.memory_swap_limit_in_bytes")
    refused(lambda: update(host, running, cpu_quota=5), invalid, "linux.cpu_quota: 5")
    refused(lambda: update(host, running, unified={"memory.high": "1"}), invalid, "linux.unified: 'memory.high' is of")
    refused(
        lambda: host.create(pod, host.container_config("true", "u", linux=limited(unified={"pids.max": "9"}))),
        invalid,
        "config.linux.resources.unified: 'pids.max' is of cgroup v2, and this host is",
    )
    refused(lambda: update_pod(host, pod, overhead=limits(cpu_quota=5)), invalid, "overhead.cpu_quota: 5")
    refused(lambda: update_pod(host, "nobody", overhead=limits()), grpc.StatusCode.NOT_FOUND, "nobody")
    config = host.pod_config()
    config.linux.cgroup_parent = "kubepods.slice"
    refused(lambda: host.run_pod(config), invalid, "config.linux.cgroup_parent: 'kubepods.slice' is not a path")


def test_annotations_of_an_update_are_nobodys_command(host: Node) -> None:
    container = host.run(host.run_pod(), "sleep 1000")
    Path(host.status(container).log_path).unlink()
    request = pb.UpdateContainerResourcesRequest(
        container_id=container, linux=limits(cpu_shares=99), annotations={"holdfast.io/reopen-log": "1"}
    )
    host.call("UpdateContainerResources", request)
    assert in_force(host, container).cpu_shares == 99
    assert not Path(host.status(container).log_path).exists()


def test_an_update_whose_shim_hangs_is_given_up_and_taken_back(host: Node) -> None:
    """A foreign one as well. Others are updated meanwhile; the daemon is killed before the shims answer again."""
    pods = [host.run_pod(handler=handler) for handler in ("crun", FOREIGN)]
    containers = [host.run(pod, "sleep 1000", linux=limited(cpu_shares=200)) for pod in pods]
    neighbour = host.run(host.run_pod(), "sleep 1000")
    under_way = lambda one: "update" in host.info(one)["underWay"]  # noqa: E731
    shims = [pod_info(host, pod)["pid"] for pod in pods]
    failures: list[grpc.RpcError] = []

    def ask(container: str) -> None:
        try:
            update(host, container, seconds=40, cpu_shares=700)
        except grpc.RpcError as exc:
            failures.append(exc)

    for shim in shims:
        os.kill(shim, signal.SIGSTOP)
    try:
        asking = [threading.Thread(target=ask, args=(container,)) for container in containers]
        for one in asking:
            one.start()
        until(lambda: all(map(under_way, containers)), "the updates to be under way")
        update(host, neighbour, cpu_shares=300)
        assert all(one.is_alive() for one in asking)
        for one in asking:
            one.join()
        assert [one.code() for one in failures] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
        assert all("put back as soon as" in one.details() for one in failures)
        assert [in_force(host, container).cpu_shares for container in containers] == [200, 200]
        host.restart()
        assert all(map(under_way, containers))
    finally:
        for shim in shims:
            os.kill(shim, signal.SIGCONT)
    until(lambda: not any(map(under_way, containers)), "the limits to be put back")
    for pod, container in zip(pods, containers, strict=True):
        assert value(place(host, pod, container), "cpu", "cpu.shares") == "200"
        update(host, container, cpu_shares=400)
        assert value(place(host, pod, container), "cpu", "cpu.shares") == "400"


# -- whole pods


def shaped(host: Node, parent: str = "") -> pb.PodSandboxConfig:
    config = host.pod_config()
    config.linux.cgroup_parent = parent
    config.linux.resources.CopyFrom(limits(cpu_shares=100, cpu_quota=50000, memory_limit_in_bytes=64 * MIB))
    config.linux.overhead.CopyFrom(limits(cpu_shares=10, cpu_quota=10000, memory_limit_in_bytes=16 * MIB))
    return config


def of_pod(path: str) -> list[str]:
    names = (("cpu", "cpu.shares"), ("cpu", "cpu.cfs_quota_us"), ("memory", "memory.limit_in_bytes"))
    return [value(path, controller, name) for controller, name in names]


@pytest.mark.parametrize("handler", ["crun", FOREIGN])
def test_a_pods_own_cgroup_has_the_limits_of_all_of_it(host: Node, handler: str) -> None:
    pod = host.run_pod(shaped(host), handler)
    assert of_pod(place(host, pod)) == ["110", "60000", str(80 * MIB)]
    if handler == FOREIGN:
        with (host.state / "pods" / pod / pod / "config.json").open() as file:
            sizes = json.load(file)["annotations"]
        assert sizes["io.kubernetes.cri.sandbox-memory"] == str(64 * MIB)
        assert sizes["io.kubernetes.cri.sandbox-cpu-quota"] == "50000"
    container = host.run(pod, "sleep 1000")
    given = limits(cpu_shares=200, cpu_quota=80000, memory_limit_in_bytes=128 * MIB)
    for _ in range(2):  # asked twice, it is so
        update_pod(host, pod, resources=given)
        assert of_pod(place(host, pod)) == ["210", "90000", str(144 * MIB)]
    info = pod_info(host, pod)
    assert info["resources"]["memoryLimitInBytes"] == str(128 * MIB)
    assert info["overhead"]["memoryLimitInBytes"] == str(16 * MIB)
    host.restart()
    assert pod_info(host, pod)["resources"] == info["resources"]
    update_pod(host, pod, resources=limits(cpu_shares=200), overhead=limits())
    unlimited = value("/", "memory", "memory.limit_in_bytes")
    assert of_pod(place(host, pod)) == ["200", "-1", unlimited]
    assert host.works(container)


def test_all_limits_of_a_pod(host: Node) -> None:
    config = host.pod_config()
    config.linux.resources.CopyFrom(
        limits(
            cpu_period=50000, cpu_quota=25000, cpuset_cpus="0", cpuset_mems="0", memory_limit_in_bytes=64 * MIB,
            memory_swap_limit_in_bytes=96 * MIB,
        )
    )  # fmt: skip
    pod = host.run_pod(config)
    found = [value(place(host, pod), *name.partition("/")[::2]) for name in INSIDE if name != "cpu/cpu.shares"]
    assert found == ["50000", "25000", "0", "0", str(64 * MIB), str(96 * MIB)]
    container = host.run(pod, "sleep 1000")
    allowed = host.exec(container, ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"]).stdout
    assert allowed.split()[1] == b"0", "its containers are below it"


def test_a_limit_of_a_pod_holds_its_containers(host: Node) -> None:
    pod = host.run_pod()
    update_pod(host, pod, resources=limits(memory_limit_in_bytes=24 * MIB))
    container = host.run(pod, "head -c 64m /dev/zero | tail -c 48m > /dev/null & wait; sleep 1000")
    until(lambda: int(value(place(host, pod), "memory", "memory.failcnt")) > 0, "the pod's limit to be felt")
    assert host.status(container).state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)


def test_a_pods_limit_that_cannot_be_leaves_the_old_ones(host: Node) -> None:
    pod = host.run_pod(shaped(host))
    wrong = limits(cpu_shares=500, cpuset_cpus="4000")
    refused(lambda: update_pod(host, pod, resources=wrong), grpc.StatusCode.FAILED_PRECONDITION, "cpuset.cpus: ")
    until(lambda: not pod_info(host, pod)["underWay"], "the old ones to be seen to")
    assert of_pod(place(host, pod)) == ["110", "60000", str(80 * MIB)]
    assert pod_info(host, pod)["resources"]["cpuShares"] == "100"
    host.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    refused(lambda: update_pod(host, pod, resources=limits()), grpc.StatusCode.FAILED_PRECONDITION, "it is not ready")


def test_a_cgroup_that_is_the_clients_is_left_to_it(host: Node) -> None:
    """A kubelet has made it, has limited it, and tells of it afterwards."""
    parent = f"{host.cgroup}-kubelet/pod1"
    cgroup.create(parent)
    try:
        before = of_pod(parent)
        pod = host.run_pod(shaped(host, parent))
        container = host.run(pod, "sleep 1000", linux=limited(cpu_shares=77))
        assert value(f"{parent}/{container}", "cpu", "cpu.shares") == "77"
        update_pod(host, pod, resources=limits(cpu_shares=300))
        info = pod_info(host, pod)
        assert (info["ownsCgroup"], info["resources"]["cpuShares"], info["cgroupParent"]) == (False, "300", parent)
        assert of_pod(parent) == before
        host.remove_pod(pod)
        assert cgroup.exists(parent)
        assert not cgroup.children(parent)
    finally:
        cgroup.remove(f"{host.cgroup}-kubelet")


def test_pods_that_share_a_cgroup_are_not_limited_by_each_other(host: Node) -> None:
    parent = f"{host.cgroup}/shared"
    one = host.run_pod(shaped(host, parent))
    assert of_pod(parent) == ["110", "60000", str(80 * MIB)]
    two = host.run_pod(shaped(host, parent))
    update_pod(host, two, resources=limits(cpu_shares=500))
    assert pod_info(host, two)["resources"]["cpuShares"] == "500"
    assert of_pod(parent) == ["110", "60000", str(80 * MIB)]
    host.remove_pod(one)
    update_pod(host, two, resources=limits(cpu_shares=600))
    assert of_pod(parent)[0] == "610"


def test_the_driver_is_told(host: Node) -> None:
    reply = host.call("RuntimeConfig", pb.RuntimeConfigRequest())
    assert reply.linux.cgroup_driver == pb.CGROUPFS
