"""A daemon whose cgroups systemd makes: a small one of the tests, on a real socket, that makes real cgroups.

No real one runs here, and the OCI runtimes would not talk to this one. So the runtime is a script that does with
--systemd-cgroup what they would, by way of runc: slice:prefix:name becomes the place of that scope.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit import invariants
from kit.agent import Agent
from kit.node import Node, until
from kit.systemd import Systemd, systemd

from holdfast.linux import cgroup
from holdfast.model.cgroups import slice_path
from holdfast.model.spec import new_id
from holdfast.proto import runtime_v1_pb2 as pb

MIB = 1 << 20
TOP = cgroup.hierarchies()
pytestmark = pytest.mark.skipif("memory" not in TOP, reason="the files that are looked at are those of cgroup v1")

RUNTIME = f"""#!{sys.executable}
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parents[2] / "src")!r})
from holdfast.model.cgroups import from_oci
arguments = [one for one in sys.argv[1:] if one != "--systemd-cgroup"]
if len(arguments) == len(sys.argv[1:]) and "delete" not in arguments:
    sys.exit("it was not told that systemd makes the cgroups")
if "create" in arguments:
    at = arguments.index("--bundle") + 1
    bundle = arguments[at]
    with open(bundle + "/config.json") as file:
        spec = json.load(file)
    spec["linux"]["cgroupsPath"] = from_oci(spec["linux"]["cgroupsPath"])
    spec["root"]["path"] = bundle + "/rootfs"
    arguments[at] = bundle + "/shadow"
    os.makedirs(arguments[at], exist_ok=True)
    with open(arguments[at] + "/config.json", "w") as file:
        json.dump(spec, file)
os.execv({shutil.which("runc")!r}, ["runc", *arguments])
"""


class Place:
    """A node and its systemd."""

    def __init__(self, manager: Systemd, base: Path) -> None:
        self.manager = manager
        self.root = f"{base.name.replace('-', '_')}.slice"
        script = base / "runtime"
        script.write_text(RUNTIME)
        script.chmod(0o755)
        self.node = Node(
            "unit", base, cgroup_driver="systemd", cgroup_root=self.root, runtimes={"unit": {"binary": str(script)}}
        )
        self.node.cgroup = slice_path(self.root)
        self.node.set_environment(DBUS_SYSTEM_BUS_ADDRESS=manager.address)

    def slice(self, pod: str) -> str:
        return f"{self.root.removesuffix('.slice')}-{pod}.slice"

    def value(self, unit: str, controller: str, name: str) -> str:
        where = slice_path(unit) if unit.endswith(".slice") else unit
        return (TOP[controller] / where.strip("/") / name).read_text().strip()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
    with systemd(base / "bus", cgroups=True) as manager:
        one = Place(manager, base)
        try:
            one.node.start()
            one.node.busybox()
            yield one
        except BaseException:
            sys.stderr.write(one.node.log()[-4000:])
            raise
        finally:
            one.node.purge()


@pytest.fixture(autouse=True)
def nothing_is_left(place: Place) -> Iterator[None]:
    yield
    for one in place.node.pods():
        place.node.remove_pod(one.id)
    assert not place.node.leftovers()
    assert not place.manager.units
    until(lambda: not cgroup.exists(place.node.cgroup), "the parent to go with the last pod")


def test_the_driver_is_told(place: Place) -> None:
    reply = place.node.call("RuntimeConfig", pb.RuntimeConfigRequest())
    assert reply.linux.cgroup_driver == pb.SYSTEMD


def test_a_pod_is_a_slice_and_containers_are_scopes(place: Place) -> None:
    node, manager = place.node, place.manager
    config = node.pod_config(pid=pb.POD)
    config.linux.resources.CopyFrom(pb.LinuxContainerResources(cpu_shares=100, memory_limit_in_bytes=64 * MIB))
    pod = node.run_pod(config)
    unit = place.slice(pod)
    where = slice_path(unit)
    assert where == f"/{place.root}/{unit}"
    assert manager.units[unit]["CPUShares"] == 100
    assert place.value(unit, "memory", "memory.limit_in_bytes") == str(64 * MIB)
    scope = f"holdfast-{pod}.scope"
    assert manager.units[scope]["Slice"] == unit
    init = cgroup.pids(f"{where}/{scope}")
    assert len(init) == 1, "the init of the shared pid namespace"
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=32 * MIB))
    container = node.run(pod, "sleep 1000", linux=linux, pid=pb.POD)
    inner = f"{where}/holdfast-{container}.scope"
    assert cgroup.of_process(node.pid(container)) == inner
    assert node.info(container)["runtimeSpec"]["linux"]["cgroupsPath"] == f"{unit}:holdfast:{container}"
    assert cgroup.pids(inner) >= {node.pid(container)}
    assert place.value(inner, "memory", "memory.limit_in_bytes") == str(32 * MIB)
    request = pb.UpdateContainerResourcesRequest(
        container_id=container, linux=pb.LinuxContainerResources(memory_limit_in_bytes=48 * MIB)
    )
    node.call("UpdateContainerResources", request)
    assert place.value(inner, "memory", "memory.limit_in_bytes") == str(48 * MIB)
    given = pb.LinuxContainerResources(cpu_shares=300)
    node.call("UpdatePodSandboxResources", pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=given))
    assert manager.units[unit]["CPUShares"] == 300
    assert place.value(unit, "cpu", "cpu.shares") == "300"
    node.remove_pod(pod)
    assert not cgroup.exists(where)


def test_daemon_and_shim_may_die(place: Place) -> None:
    node = place.node
    pod = node.run_pod(node.pod_config(pid=pb.POD))
    container = node.run(pod, "sleep 1000", pid=pb.POD)
    init = cgroup.pids(f"{slice_path(place.slice(pod))}/holdfast-{pod}.scope")
    reply = node.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True))
    pid, shim = node.pid(container), json.loads(reply.info["info"])["pid"]
    node.kill()
    os.kill(shim, signal.SIGKILL)
    node.start()
    until(lambda: node.works(container), "the pod to be adopted")
    assert node.pid(container) == pid
    assert cgroup.pids(f"{slice_path(place.slice(pod))}/holdfast-{pod}.scope") == init
    invariants.check(node)
    node.run(pod, "sleep 1000", "two", pid=pb.POD)


def test_what_nobody_owns_is_swept(place: Place) -> None:
    node, manager, stranger = place.node, place.manager, new_id()
    pod = node.run_pod()
    unit = place.slice(stranger)
    scope = f"{slice_path(unit)}/holdfast-{new_id()}.scope"
    manager.units[unit] = {}
    cgroup.create(scope)
    sleeper = subprocess.Popen(["sleep", "1000"])
    cgroup.enter(scope, sleeper.pid)
    inside = f"{slice_path(place.slice(pod))}/holdfast-{new_id()}.scope"
    cgroup.create(inside)
    node.restart()
    until(lambda: not cgroup.exists(slice_path(unit)), "the slice of nobody to be swept")
    until(lambda: not cgroup.exists(inside), "the scope of nobody to be swept")
    assert sleeper.wait(10) == -signal.SIGKILL
    assert unit not in manager.units


def test_a_slice_of_a_kubelet_is_left_to_it(place: Place) -> None:
    node = place.node
    top = place.root.replace(".slice", "k.slice")
    unit = top.replace(".slice", "-besteffort-pod1.slice")
    cgroup.create(slice_path(unit))
    try:
        for parent in (unit, slice_path(unit)):
            config = node.pod_config()
            config.linux.cgroup_parent = parent
            config.linux.resources.cpu_shares = 99
            pod = node.run_pod(config)
            container = node.run(pod, "sleep 1000")
            assert cgroup.of_process(node.pid(container)) == f"{slice_path(unit)}/holdfast-{container}.scope"
            assert unit not in place.manager.units
            assert place.value(unit, "cpu", "cpu.shares") == "1024"
            node.remove_pod(pod)
            assert cgroup.exists(slice_path(unit))
            assert not cgroup.children(slice_path(unit))
    finally:
        cgroup.remove(slice_path(top))


@pytest.mark.parametrize("parent", ["/kubepods/pod1", "pod1", "/wrong.slice/a-b.slice"])
def test_a_parent_of_the_wrong_form_is_refused(place: Place, parent: str) -> None:
    config = place.node.pod_config()
    config.linux.cgroup_parent = parent
    with pytest.raises(grpc.RpcError, match=f"config.linux.cgroup_parent: '{parent}' is not") as failure:
        place.node.run_pod(config)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_systemd_may_refuse(place: Place) -> None:
    place.manager.refuse = {"StartTransientUnit": ("org.freedesktop.DBus.Error.AccessDenied", "Not today.")}
    try:
        with pytest.raises(grpc.RpcError, match="systemd says: Not today"):
            place.node.run_pod()
    finally:
        place.manager.refuse = {}
    assert not place.node.pods()


def test_pods_keep_their_driver(place: Place) -> None:
    """The daemon comes back with the other one: what is there goes on, and goes as it came."""
    node = place.node
    pod = node.run_pod(node.pod_config(pid=pb.POD))
    container = node.run(pod, "sleep 1000", pid=pb.POD)
    with changed(node, {'"systemd"': '"cgroupfs"', f'"{place.root}"': f'"/{node.base.name}-fs"'}):
        node.restart()
        assert node.works(container)
        node.remove_pod(pod)
        assert not cgroup.exists(slice_path(place.slice(pod)))
    node.restart()


@pytest.fixture
def agent(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """With a root of its own for the slices of its pods, which stay."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", place.manager.address)
    one = Agent(place.node)
    one.cgroup = f"/{place.root.removesuffix('.slice')}agent"
    one.start()
    try:
        yield one
    finally:
        one.end()
        for unit in [unit for unit in place.manager.units if unit.startswith(one.cgroup[1:])]:
            del place.manager.units[unit]
        cgroup.remove(f"{one.cgroup}.slice")
        cgroup.remove(one.cgroup)


POD = """
apiVersion: v1
kind: Pod
metadata: {name: a, uid: u-1}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: test/busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sleep, "1000"]
    resources: {requests: {cpu: 100m}, limits: {cpu: 500m, memory: 64Mi}}
"""


def test_pods_of_the_agent_are_slices_too(place: Place, agent: Agent) -> None:
    agent.write("a.yaml", POD)
    container = agent.until(lambda: agent.running("a"), "the pod to run")
    top = agent.cgroup[1:]
    unit, middle = f"{top}-burstable-podu_1.slice", f"{top}-burstable.slice"
    inner = f"/{top}.slice/{middle}/{unit}/holdfast-{container}.scope"
    assert cgroup.of_process(place.node.pid(container)) == inner
    assert place.manager.units[unit]["CPUShares"] == 102
    assert place.manager.units[unit]["MemoryLimit"] == 64 * MIB
    assert place.value(unit, "cpu", "cpu.cfs_quota_us") == "50000"
    agent.until(lambda: place.manager.units.get(middle, {}).get("CPUShares") == 102, "its class to have its weight")
    agent.until(lambda: place.value(middle, "cpu", "cpu.shares") == "102", "it to be written by the agent as well")
    agent.restart()
    places = [f"/{top}.slice/{top}-besteffort.slice/{top}-besteffort-podu_1.slice", f"{agent.cgroup}/podu-1"]
    sleepers = [subprocess.Popen(["sleep", "1000"]) for _ in places]
    try:
        for where, sleeper in zip(places, sleepers, strict=True):
            cgroup.create(where)
            cgroup.enter(where, sleeper.pid)
        (agent.manifests / "a.yaml").unlink()
        for where, sleeper in reversed([*zip(places, sleepers, strict=True)]):
            told = f"processes are in its cgroup {where}: {sleeper.pid}"
            agent.until(lambda told=told: told in agent.cli("describe", "pod", "a", check=False).stdout, told)
            assert (agent.root / "pods" / "u-1").exists(), "it is not dead"
            sleeper.kill()
            sleeper.wait()
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    agent.until(lambda: not agent.left(), "nothing to be left")
    assert unit not in place.manager.units


@contextlib.contextmanager
def changed(node: Node, words: dict[str, str]) -> Iterator[Any]:
    before = node.config.read_text()
    after = before
    for old, new in words.items():
        assert old in after
        after = after.replace(old, new)
    node.config.write_text(after)
    try:
        yield
    finally:
        node.config.write_text(before)
