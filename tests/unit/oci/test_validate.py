"""Whatever is malformed is refused before anything is done with it, and the error names the field."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import HoldfastError, InvalidArgument
from holdfast.oci import sysctls
from holdfast.oci.capabilities import CAPABILITIES, capability_name
from holdfast.oci.sysctls import sysctl_namespace
from holdfast.oci.text import in_container
from holdfast.oci.validate import validate_container, validate_pod
from holdfast.proto import runtime_v1_pb2 as pb

Change = Callable[[Any], object]
CONTEXT = "config.linux.security_context"


def pod() -> pb.PodSandboxConfig:
    metadata = pb.PodSandboxMetadata(name="web", namespace="default", uid="1-2")
    return pb.PodSandboxConfig(metadata=metadata, hostname="web-0", log_directory="/var/log/pods/web")


def container() -> pb.ContainerConfig:
    metadata, image = pb.ContainerMetadata(name="c"), pb.ImageSpec(image="busybox")
    return pb.ContainerConfig(metadata=metadata, image=image, log_path="c/0.log")


def context(one: Any) -> Any:
    return one.linux.security_context


def mount(one: pb.ContainerConfig, **fields: Any) -> None:
    one.mounts.add(**{"container_path": "/c", "host_path": "/h"} | fields)


def device(one: pb.ContainerConfig, **fields: Any) -> None:
    one.devices.add(**{"container_path": "/dev/c", "host_path": "/dev/h", "permissions": "rwm"} | fields)


BAD_PODS: list[tuple[Change, str]] = [
    (lambda p: p.ClearField("metadata"), "config.metadata: must be set"),
    (lambda p: setattr(p.metadata, "name", ""), "config.metadata.name: must not be empty"),
    (lambda p: setattr(p.metadata, "namespace", ""), "config.metadata.namespace: must not be empty"),
    (lambda p: setattr(p.metadata, "uid", ""), "config.metadata.uid: must not be empty"),
    (lambda p: setattr(p.metadata, "name", "a/b"), "config.metadata.name: 'a/b' has characters"),
    (lambda p: setattr(p.metadata, "name", "a\nb"), r"config.metadata.name: 'a\\nb' has characters"),
    (lambda p: setattr(p.metadata, "name", "a" * 254), "config.metadata.name: more than 253"),
    (lambda p: setattr(p, "hostname", "h" * 65), "config.hostname: more than 64"),
    (lambda p: setattr(p, "hostname", "a\n1.2.3.4 b"), "config.hostname: .* is not a host name"),
    (lambda p: setattr(p, "hostname", "a\n"), "config.hostname: .* is not a host name"),
    (lambda p: setattr(p, "hostname", "-a"), "config.hostname: '-a' is not a host name"),
    (lambda p: setattr(p, "log_directory", "logs"), "config.log_directory: 'logs' is not absolute"),
    (lambda p: p.labels.update({"a": "b\0"}), r"config.labels\[a\]: it has a NUL"),
    (lambda p: p.annotations.update({"a\0": "b"}), "config.annotations: it has a NUL"),
    (lambda p: p.dns_config.servers.append("1.1.1.1\nsearch evil"), r"config.dns_config.servers\[0\]: "),
    (lambda p: p.dns_config.searches.extend(["ok", "a b"]), r"config.dns_config.searches\[1\]: 'a b' is not one word"),
    (lambda p: p.dns_config.options.append("ndots:5\n"), r"config.dns_config.options\[0\]: "),
    (lambda p: p.dns_config.servers.append(""), r"config.dns_config.servers\[0\]: '' is not one word"),
    (lambda p: p.linux.sysctls.update({"../x": "1"}), "config.linux.sysctls: '../x' is not a sysctl"),
    (lambda p: p.linux.sysctls.update({"net.a..b": "1"}), "config.linux.sysctls: 'net.a..b' is not a sysctl"),
    (lambda p: p.linux.sysctls.update({"net.a\n": "1"}), "config.linux.sysctls: .* is not a sysctl"),
    (lambda p: p.linux.sysctls.update({"kernel.panic": "1"}), "'kernel.panic' would change the host"),
    (lambda p: p.linux.sysctls.update({"kernel/hostname": "x"}), "'kernel/hostname' is what config.hostname is for"),
    (lambda p: p.linux.sysctls.update({"vm/swappiness": "1"}), "'vm/swappiness' would change the host"),
    (lambda p: setattr(p.linux.resources, "cpu_shares", -2), "config.linux.resources.cpu_shares: -2 is not within"),
    (lambda p: setattr(p.linux.overhead, "cpu_period", -2), "config.linux.overhead.cpu_period: -2 is not within"),
    (lambda p: setattr(context(p).run_as_user, "value", 2**31), f"{CONTEXT}.run_as_user.value: 2147483648 is out of"),
    (lambda p: setattr(context(p).run_as_group, "value", 1), f"{CONTEXT}.run_as_group: it needs a user"),
    (lambda p: context(p).supplemental_groups.append(-1), rf"{CONTEXT}.supplemental_groups\[0\]: -1 is out of range"),
    (lambda p: setattr(context(p).namespace_options, "network", pb.CONTAINER), "network: CONTAINER is not possible"),
    (lambda p: setattr(context(p).namespace_options, "pid", pb.TARGET), "namespace_options.pid: TARGET is not"),
    (lambda p: setattr(context(p).namespace_options, "ipc", 9), "namespace_options.ipc: 9 is not a NamespaceMode"),
    (lambda p: setattr(context(p).seccomp, "profile_type", 7), "seccomp.profile_type: 7 is not a ProfileType"),
    (lambda p: setattr(context(p), "supplemental_groups_policy", 5), "5 is not a SupplementalGroupsPolicy"),
    (lambda p: p.port_mappings.add(host_port=65536), r"config.port_mappings\[0\].host_port: 65536 is not a port"),
    (lambda p: p.port_mappings.add(container_port=-1), r"config.port_mappings\[0\].container_port: -1 is not a port"),
    (lambda p: p.port_mappings.add(protocol=4), r"config.port_mappings\[0\].protocol: 4 is not a Protocol"),
]  # fmt: skip

BAD_CONTAINERS: list[tuple[Change, str]] = [
    (lambda c: c.ClearField("metadata"), "config.metadata: must be set"),
    (lambda c: setattr(c.metadata, "name", ""), "config.metadata.name: must not be empty"),
    (lambda c: c.ClearField("image"), "config.image.image: must not be empty"),
    (lambda c: setattr(c.image, "image", ""), "config.image.image: must not be empty"),
    (lambda c: c.command.extend(["sh", "a\0b"]), r"config.command\[1\]: it has a NUL"),
    (lambda c: c.envs.add(key=""), r"config.envs\[0\].key: '' is not a name"),
    (lambda c: c.envs.add(key="A=B"), r"config.envs\[0\].key: 'A=B' is not a name"),
    (lambda c: c.envs.add(key="A", value="\0"), r"config.envs\[0\].value: it has a NUL"),
    (lambda c: mount(c, container_path="data"), r"config.mounts\[0\].container_path: 'data' is not absolute"),
    (lambda c: mount(c, container_path=""), r"config.mounts\[0\].container_path: '' is not absolute"),
    (lambda c: mount(c, host_path="data"), r"config.mounts\[0\].host_path: 'data' is not absolute"),
    (lambda c: mount(c, host_path="/a\0"), r"config.mounts\[0\].host_path: it has a NUL"),
    (lambda c: mount(c, container_path="/"), r"config.mounts\[0\].container_path: the root itself"),
    (lambda c: mount(c, container_path="//"), r"config.mounts\[0\].container_path: the root itself"),
    (lambda c: mount(c, container_path="/a/../.."), r"config.mounts\[0\].container_path: the root itself"),
    (lambda c: mount(c, propagation=3), r"config.mounts\[0\].propagation: 3 is not a MountPropagation"),
    (lambda c: mount(c, recursive_read_only=True), r"config.mounts\[0\].recursive_read_only: it needs readonly"),
    (lambda c: mount(c, recursive_read_only=True, readonly=True, propagation=1), "recursive_read_only: it needs"),
    (lambda c: device(c, host_path="x"), r"config.devices\[0\].host_path: 'x' is not absolute"),
    (lambda c: device(c, container_path="x"), r"config.devices\[0\].container_path: 'x' is not absolute"),
    (lambda c: device(c, host_path=""), r"config.devices\[0\].host_path: '' is not absolute"),
    (lambda c: c.CDI_devices.add(name="gpu"), r"config.CDI_devices\[0\].name: 'gpu' is not of the form"),
    (lambda c: c.annotations.update({"cdi.k8s.io/x": "v.com/c=a,?"}), r"config.annotations\[cdi.k8s.io/x\]: '\?' is"),
    (lambda c: device(c, permissions="rx"), r"config.devices\[0\].permissions: 'rx' is not made of"),
    (lambda c: setattr(c, "working_dir", "x"), "config.working_dir: 'x' is not absolute"),
    (lambda c: setattr(c, "log_path", "/etc/x"), "config.log_path: '/etc/x' leaves the log directory"),
    (lambda c: setattr(c, "log_path", "../x"), "config.log_path: '../x' leaves the log directory"),
    (lambda c: setattr(c, "log_path", "a/../../x"), "config.log_path: 'a/../../x' leaves the log directory"),
    (lambda c: setattr(c, "log_path", "a/"), "config.log_path: 'a/' is not a file's name"),
    (lambda c: setattr(c, "log_path", "."), "config.log_path: '.' is not a file's name"),
    (lambda c: setattr(c, "log_path", "a/."), "config.log_path: 'a/.' is not a file's name"),
    (lambda c: setattr(c, "stop_signal", 99), "config.stop_signal: 99 is not a Signal"),
    (lambda c: setattr(c.linux.resources, "cpu_quota", -2), "config.linux.resources.cpu_quota: -2 is neither"),
    (lambda c: setattr(context(c).run_as_user, "value", 4294967296), "run_as_user.value: 4294967296 is out of range"),
    (lambda c: setattr(context(c).run_as_user, "value", -1), "run_as_user.value: -1 is out of range"),
    (lambda c: setattr(context(c).run_as_group, "value", 1), f"{CONTEXT}.run_as_group: it needs a user"),
    (lambda c: context(c).supplemental_groups.extend([1, 2**31]), r"supplemental_groups\[1\]: 2147483648 is out of"),
    (lambda c: context(c).capabilities.add_capabilities.append("FLY"), "add_capabilities: 'FLY' is not a capability"),
    (lambda c: context(c).capabilities.drop_capabilities.append(""), "drop_capabilities: '' is not a capability"),
    (lambda c: context(c).masked_paths.extend(["/a", "b"]), rf"{CONTEXT}.masked_paths\[1\]: 'b' is not absolute"),
    (lambda c: context(c).readonly_paths.append(""), rf"{CONTEXT}.readonly_paths\[0\]: '' is not absolute"),
    (lambda c: setattr(context(c), "privileged", True), f"{CONTEXT}.privileged: the pod sandbox is not privileged"),
    (lambda c: setattr(context(c).namespace_options, "pid", pb.TARGET), "namespace_options.target_id: it is needed"),
    (lambda c: setattr(context(c).apparmor, "profile_type", -1), "apparmor.profile_type: -1 is not a ProfileType"),
]  # fmt: skip


def test_good_configs_pass() -> None:
    validate_pod(pod())
    validate_container(container(), pod())


def test_rich_configs_pass() -> None:
    rich = pod()
    rich.linux.sysctls.update(
        {"net.ipv4/conf/eth0.rp_filter": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "9"}
    )
    rich.linux.cgroup_parent = "/kubepods/burstable/pod1-2"
    rich.linux.security_context.privileged = True
    rich.linux.security_context.namespace_options.userns_options.mode = pb.NODE
    rich.dns_config.servers.append("::1")
    rich.dns_config.options.append("ndots:5")
    rich.port_mappings.add(host_port=80, container_port=8080, protocol=pb.SCTP)
    validate_pod(rich)
    one = container()
    one.linux.security_context.privileged = True
    one.linux.security_context.run_as_username = "app"
    one.linux.security_context.run_as_group.value = 2**31 - 1
    one.linux.security_context.capabilities.add_capabilities.extend(["ALL", "net_admin", "CAP_SYS_TIME"])
    one.linux.resources.hugepage_limits.add(page_size="2MB")
    one.linux.resources.unified.update({"memory.swap.max": "1", "hugetlb.1GB.max": "0"})
    one.stop_signal = pb.SIGRTMINPLUS3
    mount(one, readonly=True, recursive_read_only=True)
    device(one, permissions="")
    validate_container(one, rich)


@pytest.mark.parametrize(("change", "message"), BAD_PODS)
def test_a_bad_pod_is_refused(change: Change, message: str) -> None:
    config = pod()
    change(config)
    with pytest.raises(InvalidArgument, match=message):
        validate_pod(config)


@pytest.mark.parametrize(("change", "message"), BAD_CONTAINERS)
def test_a_bad_container_is_refused(change: Change, message: str) -> None:
    config = container()
    change(config)
    with pytest.raises(InvalidArgument, match=message):
        validate_container(config, pod())


@pytest.mark.parametrize("key", ["net.core.somaxconn", "kernel.domainname", "kernel.sem", "fs.mqueue.msg_max"])
def test_sysctls_of_a_namespace_that_is_the_hosts_are_refused(key: str) -> None:
    config = pod()
    config.linux.sysctls[key] = "1"
    validate_pod(config)
    options = config.linux.security_context.namespace_options
    options.network = options.ipc = pb.NODE
    with pytest.raises(InvalidArgument, match="would change the host"):
        validate_pod(config)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", "/"), ("", "/"), ("//a", "/a"), ("/a/./b//c/", "/a/b/c"), ("/../../a", "/a"), ("a/..", "/"), ("a", "/a")],
)
def test_paths_in_a_container(path: str, expected: str) -> None:
    assert in_container(path) == expected


def test_capabilities_are_those_of_the_kernel_in_its_order() -> None:
    assert len(CAPABILITIES) == 41
    assert [CAPABILITIES.index(name) for name in ("CHOWN", "SYS_ADMIN", "SYS_RESOURCE", "CHECKPOINT_RESTORE")] == [
        0,
        21,
        24,
        40,
    ]
    assert capability_name("cap_Kill") == capability_name("KILL") == "KILL"


@pytest.mark.parametrize("key", ["vm.swappiness", "fs.file-max", "kernel.panic", "kernel.shm_next_id", "kernel.semi"])
def test_sysctls_of_the_host_belong_to_no_namespace(key: str) -> None:
    assert sysctl_namespace(key) == ""


def test_the_files_of_sysctls() -> None:
    config = pod()
    asked = ("net.core.a", "net/core/b", "net.ipv4.conf.eth0/100.c", "net/ipv4/conf/eth0.100/d", "kernel/sem")
    config.linux.sysctls.update(dict.fromkeys(asked, "1"))
    paths = ("kernel/sem", "net/core/a", "net/ipv4/conf/eth0.100/c", "net/core/b", "net/ipv4/conf/eth0.100/d")
    assert list(sysctls.files(config)) == [f"/proc/sys/{path}" for path in paths]


@given(data=st.binary(max_size=300))
def test_whatever_arrives_is_accepted_or_refused_in_words(data: bytes) -> None:
    one, config = container(), pod()
    for message in (one, config):
        try:
            message.MergeFromString(data)
        except DecodeError:
            return
    for check in (lambda: validate_pod(config), lambda: validate_container(one, config)):
        try:
            check()
        except HoldfastError as exc:
            assert str(exc).startswith("config.")
