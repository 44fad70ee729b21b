"""Which volumes are kept by a gVisor pod's own kernel, and what is written of that into which spec."""

from typing import Any

import pytest

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.oci import gvisor
from holdfast.oci.gvisor import Shape, Volume
from holdfast.proto import runtime_v1_pb2 as pb

HINT = "dev.gvisor.spec.mount.ws."
OURS = "dev.holdfast.volume.ws"
TOP = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir"
DISK = Volume("ws", Shape.DISK, source=f"{TOP}/ws")
SHM = "/run/holdfast/pods/p/shm"


def shapes(annotations: dict[str, str]) -> dict[str, tuple[Shape, bool]]:
    return {one.name: (one.shape, one.brings_in) for one in gvisor.volumes(annotations)}


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        ({}, {}),
        ({OURS: "shared-disk"}, {"ws": (Shape.DISK, False)}),
        ({OURS: "shared-disk,bring-in"}, {"ws": (Shape.DISK, True)}),
        ({f"{HINT}share": "pod"}, {"ws": (Shape.DISK, False)}),
        ({f"{HINT}share": "pod", f"{HINT}type": "tmpfs", f"{HINT}options": "rw"}, {"ws": (Shape.DISK, False)}),
        ({OURS: "shared-disk,bring-in", f"{HINT}share": "pod"}, {"ws": (Shape.DISK, True)}),
        ({f"{HINT}type": "tmpfs"}, {"ws": (Shape.MEMORY, False)}),
        ({f"{HINT}type": "tmpfs", f"{HINT}share": "container"}, {"ws": (Shape.MEMORY, False)}),
        ({f"{HINT}type": "tmpfs", f"{HINT}share": "shared"}, {}),
        ({f"{HINT}share": "force-shared"}, {}),
        ({f"{HINT}type": "bind"}, {}),
        ({"dev.gvisor.spec.mount.a.b.type": "tmpfs", OURS: "shared-disk"},
         {"a.b": (Shape.MEMORY, False), "ws": (Shape.DISK, False)}),
        ({"dev.gvisor.flag.debug": "true"}, {}),
    ],
)  # fmt: skip
def test_what_is_asked_for(annotations: dict[str, str], found: dict[str, tuple[Shape, bool]]) -> None:
    assert shapes(annotations) == found


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({OURS: "disk"}, "'disk' is not shared-disk or"),
        ({OURS: "shared-disk,"}, "is not shared-disk or"),
        ({OURS: "shared-disk,bring-in,bring-in"}, "is not shared-disk or"),
        ({f"{HINT}share": "everybody"}, "'everybody' is not one of container, pod, shared, force-shared"),
        ({f"{HINT}type": "9p"}, "'9p' is not one of tmpfs, bind"),
        ({f"{HINT}sahre": "pod"}, "there is no such hint"),
        ({"dev.gvisor.spec.mount.type": "tmpfs"}, "there is no such hint"),
        ({OURS: "shared-disk", f"{HINT}share": "shared"}, "says something else"),
        ({OURS: "shared-disk", f"{HINT}type": "tmpfs"}, "says something else"),
    ],
)
def test_what_makes_no_sense_is_named(annotations: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidArgument, match=r"config\.annotations\[") as refused:
        gvisor.volumes(annotations)
    assert why in str(refused.value)


def test_the_sandbox_has_each_shared_volume_as_a_bind_and_the_hints() -> None:
    hints, mounts = gvisor.of_sandbox([DISK, Volume("m", Shape.MEMORY, source=f"{TOP}/m")], SHM)
    assert hints == {
        f"{HINT}source": f"{TOP}/ws",
        f"{HINT}type": "tmpfs",
        f"{HINT}share": "pod",
        f"{HINT}options": "rw",
        "dev.gvisor.spec.mount.devshm.source": SHM,
        "dev.gvisor.spec.mount.devshm.type": "tmpfs",
        "dev.gvisor.spec.mount.devshm.share": "pod",
        "dev.gvisor.spec.mount.devshm.options": "rw",
    }
    assert [(one["destination"], one["type"], one["source"]) for one in mounts] == [
        ("/dev/shm", "tmpfs", SHM),
        ("/volumes", "tmpfs", "tmpfs"),
        ("/volumes/0", "bind", f"{TOP}/ws"),
    ]
    assert gvisor.of_sandbox([], "") == ({}, [])


def spec(*mounts: tuple[str, str, list[str]]) -> dict[str, Any]:
    binds = [
        {"destination": place, "type": "bind", "source": source, "options": options}
        for place, source, options in mounts
    ]
    return {
        "process": {"args": ["a"], "apparmorProfile": "x", "selinuxLabel": "y"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            *binds,
        ],
        "linux": {
            "cgroupsPath": "/a",
            "namespaces": [{"type": "ipc", "path": "/ns/ipc"}],
            "seccomp": {},
            "resources": {"memory": {"limit": 1}},
            "maskedPaths": ["/proc/kcore"],
        },
    }


def test_a_container_mounts_what_the_sandbox_has() -> None:
    rw, ro = ["rbind", "rprivate", "rw"], ["rbind", "rprivate", "ro"]
    asked = spec(
        ("/ws", f"{TOP}/ws", rw), ("/ro", f"{TOP}/ws", ro), ("/plain", f"{TOP}/plain", rw), ("/dev/shm", SHM, rw)
    )
    made = gvisor.suited(asked, pb.NamespaceOption(pid=pb.CONTAINER), [DISK], SHM)
    shown = {one["destination"]: (one["type"], one["source"], one.get("options")) for one in made["mounts"]}
    assert shown == {
        "/proc": ("proc", "proc", None),
        "/ws": ("tmpfs", f"{TOP}/ws", ["rw"]),
        "/ro": ("tmpfs", f"{TOP}/ws", ["ro"]),
        "/plain": ("bind", f"{TOP}/plain", rw),
        "/dev/shm": ("tmpfs", SHM, ["rw"]),
    }
    assert made["process"] == {"args": ["a"]}
    assert made["linux"] == {
        "cgroupsPath": "/a",
        "namespaces": [{"type": "mount"}, {"type": "pid"}],
        "resources": {"memory": {"limit": 1}},
        "maskedPaths": ["/proc/kcore"],
    }
    assert asked["mounts"][2]["type"] == "bind"  # what was given is as it was


def test_processes_are_shared_in_the_sandbox() -> None:
    made = gvisor.suited(spec(), pb.NamespaceOption(pid=pb.POD), [], "")
    assert made["linux"]["namespaces"] == [{"type": "mount"}]


@pytest.mark.parametrize("source", [f"{TOP}/ws/below", "/var/lib/kubelet/pods/u/volume-subpaths/ws/main/0"])
def test_a_part_of_a_volume_is_refused(source: str) -> None:
    with pytest.raises(FailedPrecondition, match="a part of volume ws"):
        gvisor.suited(spec(("/x", source, ["rw"])), pb.NamespaceOption(), [DISK], "")


def test_what_only_sounds_alike_is_not() -> None:
    made = gvisor.suited(spec(("/x", f"{TOP}/ws2", ["rw"])), pb.NamespaceOption(), [DISK], "")
    assert made["mounts"][-1]["type"] == "bind"


def test_what_only_the_hosts_kernel_has_is_refused() -> None:
    for name in ("pid", "ipc"):
        config = pb.PodSandboxConfig()
        setattr(config.linux.security_context.namespace_options, name, pb.NODE)
        with pytest.raises(FailedPrecondition, match=f"namespace_options.{name}: NODE"):
            gvisor.check_pod(config)
    with pytest.raises(FailedPrecondition, match=r"config\.linux\.sysctls"):
        gvisor.check_pod(pb.PodSandboxConfig(linux=pb.LinuxPodSandboxConfig(sysctls={"net.core.somaxconn": "1"})))
    gvisor.check_pod(pb.PodSandboxConfig())
    context = pb.LinuxContainerSecurityContext(namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="x"))
    for config, field in (
        (pb.ContainerConfig(devices=[pb.Device(host_path="/dev/kvm")]), "config.devices"),
        (pb.ContainerConfig(CDI_devices=[pb.CDIDevice(name="a/b=c")]), "config.CDI_devices"),
        (pb.ContainerConfig(linux=pb.LinuxContainerConfig(security_context=context)), "namespace_options.pid"),
    ):
        with pytest.raises(FailedPrecondition, match=field):
            gvisor.check(config)
    gvisor.check(pb.ContainerConfig())
