"""The OCI runtimes accept the specs that are built here, and a process finds what was asked for."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shim_kit import APPLETS, BUSYBOX, UNIFIED

from holdfast.lifecycle import facts
from holdfast.lifecycle.devices import Devices
from holdfast.lifecycle.pods import set_sysctls
from holdfast.linux import cgroup, mount, namespace
from holdfast.model.image import Image
from holdfast.oci import sysctls
from holdfast.oci.build import build
from holdfast.oci.request import SpecRequest
from holdfast.oci.users import resolve_user
from holdfast.oci.validate import validate_container, validate_pod
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handler
from holdfast.workers.shim.spawn import hidden

COMMANDS = (*APPLETS, "id", "env", "hostname", "pwd", "ls", "mount", "grep", "touch", "stat", "mkdir")
SECONDS = 20


class Runner:
    """One OCI runtime and a busybox to run in it."""

    def __init__(self, binary: str, base: Path) -> None:
        self.binary, self.base = binary, base
        self.parent = f"/hf-spec-{os.getpid()}-{time.monotonic_ns()}"
        self.facts = facts.detect(1024)
        self.rootfs = base / "rootfs"
        for name in ("bin", "proc", "dev", "sys", "tmp", "etc", "data"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin/busybox")
        for command in COMMANDS:
            (self.rootfs / "bin" / command).symlink_to("busybox")
        (self.rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:100::/home/app:/bin/sh\n")
        (self.rootfs / "etc/group").write_text("root:x:0:\nvideo:x:44:app\n")
        cgroup.create(self.parent)

    def request(self, config: pb.ContainerConfig, pod: pb.PodSandboxConfig) -> SpecRequest:
        validate_pod(pod)
        validate_container(config, pod)

        def read(path: str, limit: int) -> bytes:
            return (self.rootfs / path.lstrip("/")).read_bytes()[:limit]

        return SpecRequest(
            pod_id="pod",
            container_id="c1",
            pod=pod,
            container=config,
            image=Image(id="sha256:0", config=b"{}", size=1, env=("FROM=image",), workdir="/data"),
            user=resolve_user(config, "", read),
            cgroups_path=f"{self.parent}/c1",
            **Devices([]).found(config, Handler("", self.binary, "")),
            hostname="pod-1",
            facts=self.facts,
        )

    def run(self, request: SpecRequest) -> str:
        """What the container writes; it must end with 0."""
        (self.base / "config.json").write_text(json.dumps(build(request)))
        command = [self.binary, "--root", str(self.base / "state"), "run", "--bundle", str(self.base), "hf-spec-c1"]
        crun_on_hybrid = self.facts.cgroup_mode == "hybrid" and Path(self.binary).name == "crun"
        with hidden([UNIFIED] if crun_on_hybrid else []):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def close(self) -> None:
        cgroup.kill(self.parent)
        cgroup.remove(self.parent)


@pytest.fixture(params=["crun", "runc"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    binary = shutil.which(request.param)
    assert binary, f"{request.param} is not installed"
    one = Runner(binary, tmp_path)
    yield one
    one.close()


def pod_config(**linux: object) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="p", namespace="n", uid="u"),
        linux=pb.LinuxPodSandboxConfig(**linux),
    )


def container_config(script: str, **fields: object) -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="c"),
        image=pb.ImageSpec(image="busybox"),
        command=["/bin/sh", "-ec", script],
        **fields,
    )


def secured(**context: object) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**context))


def test_a_plain_container(runner: Runner) -> None:
    script = "id; pwd; echo $HOME $FROM; cat /proc/self/oom_score_adj; grep CapEff /proc/self/status; echo $$"
    lines = runner.run(runner.request(container_config(script), pod_config())).splitlines()
    assert lines[0].startswith("uid=0(root) gid=0(root)")
    assert lines[1:3] == ["/data", "/root image"]
    assert int(lines[3]) == max(0, runner.facts.oom_score_adj_min)
    assert lines[4].split()[1] == "00000000a80425fb"  # the fourteen that containers have by default
    assert lines[5] == "1"


def test_a_user_of_the_image_with_its_groups_and_dropped_capabilities(runner: Runner) -> None:
    linux = secured(
        run_as_username="app",
        supplemental_groups=[7],
        no_new_privs=True,
        capabilities=pb.Capability(drop_capabilities=["ALL"], add_capabilities=["KILL"]),
    )
    script = "id -u; id -g; id -G; echo $HOME; grep -e CapBnd -e NoNewPrivs /proc/self/status"
    lines = runner.run(runner.request(container_config(script, linux=linux), pod_config())).splitlines()
    assert lines[:2] == ["1000", "100"]
    assert set(lines[2].split()) == {"100", "44", "7"}
    assert lines[3] == "/home/app"
    assert {line.split()[1] for line in lines[4:]} == {"0000000000000020", "1"}


def test_ambient_capabilities_reach_a_user(runner: Runner) -> None:
    linux = secured(
        run_as_user=pb.Int64Value(value=1000),
        capabilities=pb.Capability(drop_capabilities=["ALL"], add_ambient_capabilities=["CAP_NET_BIND_SERVICE"]),
    )
    script = "grep -e CapEff -e CapAmb /proc/self/status"
    lines = runner.run(runner.request(container_config(script, linux=linux), pod_config())).splitlines()
    assert [line.split()[1] for line in lines] == ["0000000000000400"] * 2


def test_a_privileged_container_has_the_hosts_devices_and_capabilities(runner: Runner) -> None:
    config = container_config(
        "grep CapEff /proc/self/status; ls /dev; touch /sys/fs/cgroup/x 2>/dev/null || true; mount",
        linux=secured(privileged=True),
    )
    pod = pod_config(security_context=pb.LinuxSandboxSecurityContext(privileged=True))
    request = runner.request(config, pod)
    output = runner.run(request)
    held = Path("/proc/self/status").read_text().split("CapBnd:")[1].split()[0]
    assert output.splitlines()[0].split()[1] == held
    present = set(output.split())
    for node in request.host_devices:  # as they were then: somebody else may attach a loop device at any time
        assert Path(node.path).relative_to("/dev").parts[0] in present
    assert any(" on /sys type sysfs (rw" in line for line in output.splitlines())


def test_a_device_that_was_asked_for(runner: Runner) -> None:
    config = container_config(
        "stat -c '%t %T' /dev/nothing; cat /dev/nothing; ! dd if=/dev/kmsg of=/dev/null count=1 2>/dev/null",
        devices=[pb.Device(host_path="/dev/null", container_path="/dev/nothing", permissions="r")],
    )
    assert runner.run(runner.request(config, pod_config())).splitlines()[0] == "1 3"


def test_limits(runner: Runner) -> None:
    resources = pb.LinuxContainerResources(
        cpu_period=100000,
        cpu_quota=50000,
        cpu_shares=512,
        cpuset_cpus="0",
        memory_limit_in_bytes=64 << 20,
        oom_score_adj=500,
    )
    if runner.facts.cgroup_mode == "v2":
        files = {"memory.max": str(64 << 20), "cpu.max": "50000 100000", "cpuset.cpus": "0"}
    else:
        files = {
            "memory/memory.limit_in_bytes": str(64 << 20),
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.shares": "512",
            "cpuset/cpuset.cpus": "0",
        }
    script = "cat /proc/self/oom_score_adj " + " ".join(f"/sys/fs/cgroup/{name}" for name in files)
    config = container_config(script, linux=pb.LinuxContainerConfig(resources=resources))
    assert runner.run(runner.request(config, pod_config())).splitlines() == ["500", *files.values()]


def test_limits_for_every_size_of_huge_page_as_a_kubelet_sends_them(runner: Runner) -> None:
    sizes = [path.name.removeprefix("hugepages-") for path in Path("/sys/kernel/mm/hugepages").iterdir()]
    megabytes = [int(size.removesuffix("kB")) >> 10 for size in sizes]
    names = [f"{size >> 10}GB" if size >= 1024 else f"{size}MB" for size in megabytes]
    limits = [pb.HugepageLimit(page_size=name, limit=0) for name in names]
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(hugepage_limits=limits))
    assert runner.run(runner.request(container_config("echo fine", linux=linux), pod_config())) == "fine\n"


def test_a_read_only_root_and_mounts(runner: Runner) -> None:
    host = runner.base / "host"
    (host / "below").mkdir(parents=True)
    (host / "file").write_text("from the host\n")
    mounts = [
        pb.Mount(host_path=str(host / "below"), container_path="/data/in"),
        pb.Mount(host_path=str(host), container_path="/data", readonly=True),
        pb.Mount(host_path=str(host / "file"), container_path="/etc/hosts", readonly=True),
    ]
    (host / "in").mkdir()
    script = "! touch /x 2>/dev/null; ! touch /data/x 2>/dev/null; touch /data/in/x; cat /etc/hosts; mount"
    config = container_config(script, mounts=mounts, linux=secured(readonly_rootfs=True))
    request = replace(runner.request(config, pod_config()), hosts="/etc/hosts", shm="/dev/shm")
    lines = runner.run(request).splitlines()
    assert lines[0] == "from the host"
    assert (host / "below/x").exists()
    assert not [line for line in lines if " on /etc/hosts " in line and "(rw" in line]


def test_propagation(runner: Runner) -> None:
    shared = runner.base / "shared"
    shared.mkdir()
    mount.bind(shared, shared)
    try:
        mount.set_propagation(shared, mount.MS_SHARED)
        mounts = [
            pb.Mount(host_path=str(shared), container_path="/both", propagation=pb.PROPAGATION_BIDIRECTIONAL),
            pb.Mount(host_path=str(shared), container_path="/in", propagation=pb.PROPAGATION_HOST_TO_CONTAINER),
            pb.Mount(host_path=str(shared), container_path="/own"),
        ]
        script = "for one in both in own; do mkdir /$one/$one; mount -t tmpfs none /$one/$one; done"
        config = container_config(script, mounts=mounts, linux=secured(privileged=True))
        pod = pod_config(security_context=pb.LinuxSandboxSecurityContext(privileged=True))
        runner.run(runner.request(config, pod))
        assert [Path(entry.target).name for entry in mount.mounts_below(shared)] == ["both", "shared"]
    finally:
        mount.unmount_tree(shared)


def test_the_pods_namespaces_with_its_sysctls(runner: Runner) -> None:
    pinned = runner.base / "ns"
    pinned.mkdir()
    namespace.pin(("net", "ipc", "uts"), pinned, hostname="pod-1")
    try:
        asked = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "9"}
        pod = pod_config(sysctls=asked)
        set_sysctls(pod, [pinned / kind for kind in ("net", "ipc", "uts")])
        script = f"cat {' '.join(sysctls.files(pod))}; hostname; stat -L -c %i /proc/self/ns/net"
        paths = {kind: str(pinned / kind) for kind in ("net", "ipc", "uts")}
        request = replace(runner.request(container_config(script), pod), namespaces=paths)
        lines = runner.run(request).splitlines()
        assert lines[:4] == ["9", "1", "80", "pod-1"]
        assert int(lines[4]) == os.stat(pinned / "net").st_ino
    finally:
        for kind in ("net", "ipc", "uts"):
            namespace.unpin(pinned / kind)


def test_masked_and_read_only_paths(runner: Runner) -> None:
    linux = secured(masked_paths=["/proc/version", "/sys/firmware"], readonly_paths=["/proc/sys"])
    script = "stat -c '%t %T' /proc/version; ! echo 1 >/proc/sys/kernel/panic 2>/dev/null; ls /sys/firmware"
    output = runner.run(runner.request(container_config(script, linux=linux), pod_config()))
    assert output == "1 3\n"
