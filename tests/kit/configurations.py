"""Configurations of pods and containers as hypothesis strategies, made from the descriptors of our .proto.

One begins sound and plain; some of its fields are then changed, each to a value that makes sense there, alone or not
(`sensible`), or to one of its type that does not (`hostile`). Every field of the descriptors is one that is changed.
No value reaches outside the directory and the cgroup of the test, and no command does anything.
"""

import json
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from holdfast.oci.capabilities import CAPABILITIES
from holdfast.proto import runtime_v1_pb2 as pb
from kit.fields import every_field, is_message
from kit.node import IMAGE

FIELDS = every_field()
PATHS = {name: [path for path in FIELDS if path.startswith(name)] for name in ("PodSandboxConfig", "ContainerConfig")}
HANDLERS = ["", "", "", "crun", "runc", "runc", "no-such-handler"]
PODS = ["plain", "plain", "host", "privileged", "shared-pid"]  # of those that are kept for containers
# What is looked up on the host: text that is made up for them stays within the test's own directory or cgroup.
ON_HOST = {"log_directory", "host_path", "localhost_ref", "cgroup_parent"}
VENDOR = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.example/device",
    "devices": [{"name": "one", "containerEdits": {"env": ["VENDOR=one"], "deviceNodes": [{"path": "/dev/null"}]}}],
}


@dataclass(frozen=True)
class Surroundings:
    """What configurations may name: directories and files below `base`, cgroups below `cgroup`, a container's id."""

    base: Path
    cgroup: str
    stranger: str = ""

    def prepare(self) -> None:
        """Make the files: one of each kind that a path may lead to, and beside them a vendor's, for CDI."""
        (self.base / "directory").mkdir(parents=True)
        (self.base / "file").write_text("a file\n")
        (self.base / "link").symlink_to("directory")
        (self.base / "dangling").symlink_to("nowhere")
        (self.base / "loop").symlink_to("loop")
        (self.base / "profile.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
        (self.base.parent / "cdi").mkdir()
        (self.base.parent / "cdi" / "vendor.json").write_text(json.dumps(VENDOR))
        os.mkfifo(self.base / "fifo")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(self.base / "socket"))

    def path(self, name: str) -> str:
        return str(self.base / name)


@dataclass(frozen=True)
class Example:
    """A configuration, as what differs from the plain one. `pod` is a kind of PODS, or "own" for one with changes."""

    handler: str
    pod: str
    pod_changes: tuple[tuple[str, Any], ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()


def examples(around: Surroundings, fields: Sequence[str]) -> st.SearchStrategy[Example]:
    """Each changes one of `fields`, and mostly some others: of a pod of its own, or of a container in a kept one."""
    wanted = sensible(around)
    values = {path: value(one, wanted, around) for path, one in FIELDS.items()}

    @st.composite
    def example(draw: st.DrawFn) -> Example:
        def changes(paths: Iterable[str]) -> tuple[tuple[str, Any], ...]:
            return tuple((path, draw(values[path])) for path in dict.fromkeys(paths))

        def some(root: str, most: int) -> list[str]:
            return draw(st.lists(st.sampled_from(PATHS[root]), max_size=most))

        first = draw(st.sampled_from(fields))
        if first in PATHS["ContainerConfig"]:
            return Example("", draw(st.sampled_from(PODS)), (), changes([first, *some("ContainerConfig", 3)]))
        own = changes([first, *some("PodSandboxConfig", 3)])
        return Example(draw(st.sampled_from(HANDLERS)), "own", own, changes(some("ContainerConfig", 1)))

    return example()


def value(
    one: FieldDescriptor, wanted: dict[str, st.SearchStrategy[Any]], around: Surroundings
) -> st.SearchStrategy[Any]:
    """For one field: in seven of ten examples a value that makes sense there."""
    bad = hostile(one, around)
    good = wanted.get(f"{one.containing_type.name}.{one.name}", bad)
    if one.enum_type is not None:
        good = st.sampled_from([number.number for number in one.enum_type.values])
    return st.integers(0, 9).flatmap(lambda number: good if number < 7 else bad)


# -- values that make no sense, by type


def hostile(one: FieldDescriptor, around: Surroundings) -> st.SearchStrategy[Any]:
    """A value of the field's type; a message is absent, which is None, or has nothing in it."""
    if is_message(one):
        return st.sampled_from([None, GetMessageClass(one.message_type)()])
    if one.message_type is not None:  # a map of text to text
        return st.dictionaries(texts(one.name, around), texts(one.name, around), max_size=3)
    single = _scalar(one, around)
    return st.lists(single, max_size=3) if one.is_repeated else single


def _scalar(one: FieldDescriptor, around: Surroundings) -> st.SearchStrategy[Any]:
    if one.enum_type is not None:
        return st.sampled_from([-1, 99, 2**31 - 1, *(number.number for number in one.enum_type.values)])
    if one.type == FieldDescriptor.TYPE_STRING:
        return texts(one.name, around)
    if one.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    bits, signed = {
        FieldDescriptor.TYPE_INT32: (31, True),
        FieldDescriptor.TYPE_INT64: (63, True),
        FieldDescriptor.TYPE_UINT32: (32, False),
        FieldDescriptor.TYPE_UINT64: (64, False),
    }[one.type]
    low, high = -(2**bits) if signed else 0, 2**bits - 1
    return st.sampled_from([low, max(low, -1), 0, 1, high]) | st.integers(low, high)


def texts(name: str, around: Surroundings) -> st.SearchStrategy[str]:
    """Text that nobody should send."""
    odd = ["", " ", "\0", "a\0b", "a\nb", "é", "😀", "../..", "%s%n", "-", "=", "a=b", "x" * 300, "x" * 70000, "\u202e"]
    found = st.sampled_from(odd) | st.text(st.characters(codec="utf-8"), max_size=20)
    if name not in ON_HOST:
        return found
    top = around.cgroup if name == "cgroup_parent" else str(around.base)
    return found.map(lambda text: text if not text.startswith("/") else top + text.replace("..", "."))


# -- values that make sense, at least of themselves


def sensible(around: Surroundings) -> dict[str, st.SearchStrategy[Any]]:
    """By message and field; messages are given whole."""
    given = _of_pods(around) | _of_security(around) | _of_resources() | _of_containers(around) | _of_mounts(around)
    assert not (unknown := given.keys() - {f"{one.containing_type.name}.{one.name}" for one in FIELDS.values()}), (
        unknown
    )
    return {name: st.sampled_from(list(values)) for name, values in given.items()}


def _of_pods(around: Surroundings) -> dict[str, Iterable[Any]]:
    labels = [{"app": "web"}, {"a.b/c": "d", "e": ""}, {"": ""}]
    return {
        "PodSandboxMetadata.name": ["web", "a.b", "x" * 253],
        "PodSandboxMetadata.namespace": ["default", "kube-system"],
        "PodSandboxMetadata.attempt": [0, 1, 2**32 - 1],
        "PodSandboxConfig.hostname": ["web-0", "a.b.c", "x" * 64, ""],
        "PodSandboxConfig.log_directory": ["", *map(around.path, ("logs", "logs/é", "link/logs", "file/logs", "loop"))],
        "DNSConfig.servers": [["192.0.2.1"], ["::1", "192.0.2.2"]],
        "DNSConfig.searches": [["a.example", "b.example"], [f"s{number}.example" for number in range(40)]],
        "DNSConfig.options": [["ndots:5"], ["edns0", "timeout:1"]],
        "PortMapping.container_port": [80, 65535, 0],
        "PortMapping.host_port": [8080, 65535, 0],
        "PortMapping.host_ip": ["", "127.0.0.1", "::"],
        "PodSandboxConfig.labels": labels,
        "PodSandboxConfig.annotations": labels,
        "ContainerConfig.labels": labels,
        "ContainerConfig.annotations": labels,
        "ImageSpec.annotations": labels,
        "LinuxPodSandboxConfig.cgroup_parent": ["", *(f"{around.cgroup}/{name}" for name in ("kubepods", "a/b/c"))],
        "LinuxPodSandboxConfig.sysctls": [
            {"net.core.somaxconn": "512"}, {"net/ipv4/ip_forward": "1"}, {"kernel.shm_rmid_forced": "1"},
            {"net.ipv4.ping_group_range": "0 1"}, {"kernel.msgmax": "many"}, {"net.no.such": "1"},
            {"vm.swappiness": "1"}, {"kernel.hostname": "stolen"}, {"kernel.panic": "1"}, {"fs.mqueue.msg_max": "20"},
        ],
    }  # fmt: skip


def _of_security(around: Surroundings) -> dict[str, Iterable[Any]]:
    numbers = [0, 1, 1000, 65534, 2**31 - 1]
    ids = [pb.Int64Value(value=number) for number in numbers]
    kind = pb.SecurityProfile
    profiles = [kind(profile_type=kind.RuntimeDefault), kind(profile_type=kind.Unconfined)]
    profiles += [
        kind(profile_type=kind.Localhost, localhost_ref=around.path(name)) for name in ("profile.json", "file", "none")
    ]
    lists = [["KILL"], ["cap_net_admin"], ["ALL"], ["SYS_ADMIN", "SYS_TIME"], list(CAPABILITIES), ["SYS_RESOURCE"]]
    paths = [[], ["/proc/kcore", "/proc/keys"], ["/no/such"], ["/etc/passwd", "/etc"], ["/sys/firmware"], ["/"]]
    mapping = [pb.IDMapping(host_id=200000, container_id=0, length=65536)]
    users = [pb.UserNamespace(mode=mode, uids=mapping, gids=mapping) for mode in (pb.POD, pb.NODE)]
    context = "LinuxContainerSecurityContext"
    return {
        "Int64Value.value": numbers,
        "SecurityProfile.localhost_ref": map(around.path, ("profile.json", "none")),
        "SELinuxOption.user": ["system_u"],
        "SELinuxOption.role": ["object_r"],
        "SELinuxOption.type": ["container_t"],
        "SELinuxOption.level": ["s0:c1,c2"],
        "NamespaceOption.target_id": ["", around.stranger, "no-such-container"],
        "NamespaceOption.userns_options": users,
        "IDMapping.length": [1, 1000, 65536],
        "IDMapping.host_id": [0, 1000, 200000],
        "IDMapping.container_id": [0, 1],
        "LinuxSandboxSecurityContext.run_as_user": ids,
        "LinuxSandboxSecurityContext.supplemental_groups": [[1, 2], [0]],
        "LinuxSandboxSecurityContext.seccomp": profiles,
        "LinuxSandboxSecurityContext.apparmor": profiles,
        "LinuxSandboxSecurityContext.seccomp_profile_path": ["", "unconfined", "runtime/default"],
        f"{context}.run_as_user": ids,
        f"{context}.run_as_group": ids,
        f"{context}.run_as_username": ["root", "nobody", "stranger", "0"],
        f"{context}.supplemental_groups": [[1, 2], [0, 0], list(range(100, 200))],
        f"{context}.seccomp": profiles,
        f"{context}.apparmor": profiles,
        f"{context}.seccomp_profile_path": ["", "unconfined", "runtime/default", "localhost/none"],
        f"{context}.apparmor_profile": ["", "unconfined", "runtime/default", "localhost/none"],
        f"{context}.masked_paths": paths,
        f"{context}.readonly_paths": paths,
        "Capability.add_capabilities": lists,
        "Capability.drop_capabilities": lists,
        "Capability.add_ambient_capabilities": lists,
    }


def _of_resources() -> dict[str, Iterable[Any]]:
    prefix = "LinuxContainerResources"
    return {
        f"{prefix}.cpu_period": [0, 50_000, 100_000],
        f"{prefix}.cpu_quota": [-1, 0, 50_000, 100_000],
        f"{prefix}.cpu_shares": [0, 2, 1024, 262144],
        f"{prefix}.memory_limit_in_bytes": [0, 64 << 20, 256 << 20, 1 << 40],
        f"{prefix}.memory_swap_limit_in_bytes": [-1, 0, 64 << 20, 512 << 20],
        f"{prefix}.oom_score_adj": [-1000, -998, 0, 2, 1000],
        f"{prefix}.cpuset_cpus": ["", "0", "0-1", "0,1", "0-4095"],
        f"{prefix}.cpuset_mems": ["", "0", "7"],
        f"{prefix}.unified": [{"memory.high": "max"}, {"pids.max": "100"}, {"no.such": "1"}],
        "HugepageLimit.page_size": ["2MB", "1GB", "64KB", "3MB"],
        "HugepageLimit.limit": [0, 2 << 20, 2**64 - 1],
    }


def _of_containers(around: Surroundings) -> dict[str, Iterable[Any]]:
    return {
        "ContainerMetadata.name": ["main", "x" * 253, "a b"],
        "ContainerMetadata.attempt": [0, 2**32 - 1],
        "ImageSpec.image": [IMAGE, f"docker.io/{IMAGE}", "no/such:image", "UPPER//case"],
        "ImageSpec.user_specified_image": ["busybox", ""],
        "ImageSpec.runtime_handler": ["", "crun", "runc", "no-such-handler"],
        "ContainerConfig.image": [pb.ImageSpec(image=IMAGE)],
        "ContainerConfig.command": [
            ["sleep", "1000"], ["/bin/sh", "-c", "exit 3"], ["/bin/true"], [], ["/no/such"], ["/etc/passwd"], ["/tmp"]
        ],
        "ContainerConfig.args": [[], ["1000"], ["1", "2"]],
        "ContainerConfig.working_dir": ["", "/", "/tmp", "/new/directory", "/tmp/../etc", "/etc/passwd", "/proc/self"],
        "KeyValue.key": ["PATH", "HOME", "A", "a.b-c", "LD_PRELOAD"],
        "KeyValue.value": ["", "value", "a\nb"],
        "Device.container_path": ["/dev/x", "/dev/null", "/dev/a/b", "/etc/passwd", "/dev/../x", "/dev/shm"],
        "Device.host_path": ["/dev/null", "/dev/zero", "/dev/none", "/dev", around.path("fifo")],
        "Device.permissions": ["", "r", "rw", "mrw"],
        "ContainerConfig.log_path": ["", "main.log", "deep/er/0.log", "x" * 300],
        "CDIDevice.name": ["vendor.example/device=one", "nonsense"],
    }  # fmt: skip


def _of_mounts(around: Surroundings) -> dict[str, Iterable[Any]]:
    kinds = ("directory", "file", "link", "dangling", "loop", "fifo", "socket", "none", "none/deep", "file/below")
    places = ["/data", "/new/place", "/etc/hosts", "/etc/passwd", "/tmp/../mnt", "/dev/x", "/dev/shm", "/dev", "/proc"]
    places += ["/proc/x", "/sys/x", "/sys/fs/cgroup", "/bin", "/bin/sh", "/etc/resolv.conf", "/proc/self/fd"]
    return {
        "Mount.host_path": map(around.path, kinds),
        "Mount.container_path": places,
        "Mount.image": [pb.ImageSpec(image=IMAGE), pb.ImageSpec(image="no/such:image")],
        "Mount.image_sub_path": ["", "etc", "etc/passwd", "no/such", "../..", "/etc"],
    }


# -- the messages


def pod_config(around: Surroundings, kind: str, number: int) -> pb.PodSandboxConfig:
    """A plain one of a kind of PODS; the number makes its name its own."""
    options = pb.NamespaceOption(pid=pb.POD if kind == "shared-pid" else pb.CONTAINER)
    if kind == "host":
        options.network = options.pid = options.ipc = pb.NODE
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=f"{kind}-{number}", namespace="any", uid=f"uid-{number}"),
        log_directory=around.path(f"logs/{number}"),
    )
    config.linux.security_context.namespace_options.CopyFrom(options)
    config.linux.security_context.privileged = kind == "privileged"
    return config


def container_config(pod: pb.PodSandboxConfig, number: int) -> pb.ContainerConfig:
    """A plain one that sleeps, with the namespaces and the privileges of its pod, as a kubelet asks for it."""
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=f"c-{number}"),
        image=pb.ImageSpec(image=IMAGE),
        command=["/bin/sleep", "1000"],
        log_path=f"c-{number}.log",
    )
    context = pod.linux.security_context
    config.linux.security_context.namespace_options.CopyFrom(context.namespace_options)
    config.linux.security_context.privileged = context.privileged
    return config


def change(config: Message, path: str, new: Any, around: Surroundings) -> None:
    """Set a field by its path, or clear it with None; of repeated messages on the way that is the first.

    A message on the way that is not there is made, a sound one.
    """
    *way, last = path.split(".")[1:]
    at = config
    for name in way:
        at = _into(at, name, around)
    one = at.DESCRIPTOR.fields_by_name[last]
    if is_message(one) and new is not None:
        _into(at, last, around).CopyFrom(new)
        return
    at.ClearField(last)
    if new is None:
        return
    if one.message_type is not None:
        getattr(at, last).update(new)
    elif one.is_repeated:
        getattr(at, last).extend(new)
    else:
        setattr(at, last, new)


def _into(at: Message, name: str, around: Surroundings) -> Any:
    inner = getattr(at, name)
    seed = _seed(at, name, around)
    if not at.DESCRIPTOR.fields_by_name[name].is_repeated:
        if not at.HasField(name):
            inner.SetInParent()
            if seed is not None:
                inner.CopyFrom(seed)
            if isinstance(at, pb.Mount):
                at.ClearField("host_path")  # it is one or the other
        return inner
    if not inner:
        inner.append(seed) if seed is not None else inner.add()
    return inner[0]


def _seed(at: Message, name: str, around: Surroundings) -> Message | None:
    """What stands where something is to be changed within it."""
    mapping = pb.IDMapping(host_id=200000, container_id=0, length=65536)
    seeds: dict[str, Message] = {
        "mounts": pb.Mount(container_path="/data", host_path=around.path("directory")),
        "image": pb.ImageSpec(image=IMAGE),
        "devices": pb.Device(container_path="/dev/x", host_path="/dev/null", permissions="rw"),
        "CDI_devices": pb.CDIDevice(name="vendor.example/device=one"),
        "envs": pb.KeyValue(key="A", value="b"),
        "port_mappings": pb.PortMapping(container_port=80, host_port=8080),
        "hugepage_limits": pb.HugepageLimit(page_size="2MB", limit=2 << 20),
        "userns_options": pb.UserNamespace(mode=pb.POD, uids=[mapping], gids=[mapping]),
        "uids": mapping,
        "gids": mapping,
        "uidMappings": mapping,
        "gidMappings": mapping,
    }
    return seeds.get(name)
