"""From a Pod to the CRI's messages, as a kubelet words them: who reads its labels and logs can read these. Pure.

Sources: k8s.io/kubernetes pkg/kubelet/kuberuntime (labels, annotations, security contexts, log paths) and
pkg/kubelet/network (hosts, DNS) for names and formats.
"""

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from holdfast.agent.pod import qos
from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.encode import digest, encode
from holdfast.agent.pod.env import Missing, expand
from holdfast.agent.pod.scalars import Port
from holdfast.agent.pod.security import Capabilities, SeccompProfile, SelinuxOptions
from holdfast.agent.pod.spec import Pod, PodSpec
from holdfast.agent.sync import names
from holdfast.model.cgroups import CGROUPFS
from holdfast.model.hidden import MASKED, READ_ONLY
from holdfast.proto import runtime_v1_pb2 as pb

POD_NAME: Final = "io.kubernetes.pod.name"
POD_NAMESPACE: Final = "io.kubernetes.pod.namespace"
POD_UID: Final = "io.kubernetes.pod.uid"
POD_GRACE: Final = "io.kubernetes.pod.terminationGracePeriod"
CONTAINER_NAME: Final = "io.kubernetes.container.name"
HASH: Final = "io.kubernetes.container.hash"
RESTARTS: Final = "io.kubernetes.container.restartCount"
MESSAGE_PATH: Final = "io.kubernetes.container.terminationMessagePath"
MESSAGE_POLICY: Final = "io.kubernetes.container.terminationMessagePolicy"
PRE_STOP: Final = "io.kubernetes.container.preStopHandler"
PORTS: Final = "io.kubernetes.container.ports"
CONFIG_SOURCE: Final = "kubernetes.io/config.source"
AGENT: Final = "holdfast-agent"  # the source: what no agent has made no agent touches
AGENT_CGROUP: Final = "holdfast.io/agent-cgroup"  # which agent: what its pods' cgroups are below
AGENT_ROOT: Final = "holdfast.io/agent-root"  # and where its records are, of which there is one agent at a time

HOSTS: Final = "/etc/hosts"
USERS: Final = 65536  # of a pod that has its own
PROTOCOLS: Final = {"TCP": pb.TCP, "UDP": pb.UDP, "SCTP": pb.SCTP}
PROFILES: Final = {
    "RuntimeDefault": pb.SecurityProfile.RuntimeDefault,
    "Unconfined": pb.SecurityProfile.Unconfined,
    "Localhost": pb.SecurityProfile.Localhost,
}
GROUPS: Final = {"Merge": pb.Merge, "Strict": pb.Strict}


@dataclass(frozen=True, slots=True)
class Node:
    """The machine, as pods of this agent find it."""

    name: str
    log_root: str = "/var/log/pods"
    cgroup_root: str = "/holdfast-agent"
    memory: int = 0  # bytes
    dns: pb.DNSConfig = field(default_factory=pb.DNSConfig)  # what it resolves names by itself
    seccomp_root: str = "/var/lib/kubelet/seccomp"  # of Localhost profiles
    root: str = ""  # the agent's


def log_directory(pod: Pod, node: Node) -> str:
    meta = pod.metadata
    return f"{node.log_root}/{meta.namespace}_{meta.name}_{meta.uid}"


def log_path(pod: Pod, node: Node, container: str, attempt: int) -> str:
    return f"{log_directory(pod, node)}/{log_name(container, attempt)}"


def log_name(container: str, attempt: int) -> str:
    return f"{container}/{attempt}.log"


def digest_of(container: Container) -> str:
    """Of what a container is to be made from; short enough for an annotation that people read."""
    return digest(container)[:16]


def of_pod(pod: Pod) -> dict[str, str]:
    """The labels by which a pod's sandboxes and containers are found."""
    return {POD_NAME: pod.metadata.name, POD_NAMESPACE: pod.metadata.namespace, POD_UID: pod.metadata.uid}


# -- sandboxes


def sandbox_config(pod: Pod, attempt: int, node: Node, driver: str = CGROUPFS, users: int = 0) -> pb.PodSandboxConfig:
    """`attempt` is how many sandboxes it has had before; `users` is as in `namespaces`."""
    meta, spec = pod.metadata, pod.spec
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=attempt),
        hostname="" if spec.host_network else names.host_name(pod),
        log_directory=log_directory(pod, node),
        dns_config=names.dns(spec, node.dns),
        port_mappings=_ports(spec),
        labels={**meta.labels, **of_pod(pod)},
        annotations={
            **meta.annotations,
            CONFIG_SOURCE: AGENT,
            AGENT_CGROUP: node.cgroup_root,
            AGENT_ROOT: node.root,
        },
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=qos.parent(qos.cgroup_path(pod, node.cgroup_root), driver),
            security_context=_sandbox_security(spec, node, users),
            sysctls={one.name: one.value for one in spec.security_context.sysctls},
        ),
    )


def _ports(spec: PodSpec) -> list[pb.PortMapping]:
    """Ports of the host that lead to the pod; one in the host's network has them already."""
    if spec.host_network:
        return []
    found = [one for container in (*spec.init_containers, *spec.containers) for one in container.ports]
    return [
        pb.PortMapping(
            protocol=PROTOCOLS[one.protocol],
            container_port=one.container_port,
            host_port=one.host_port,
            host_ip=one.host_ip,
        )
        for one in found
        if one.host_port is not None
    ]


def namespaces(spec: PodSpec, users: int = 0) -> pb.NamespaceOption:
    """`users` is the first of the ids that are the pod's own, 0 where it has the host's."""
    pid = pb.NODE if spec.host_pid else pb.POD if spec.share_process_namespace else pb.CONTAINER
    found = pb.NamespaceOption(
        network=pb.NODE if spec.host_network else pb.POD, pid=pid, ipc=pb.NODE if spec.host_ipc else pb.POD
    )
    if users:
        ids = mapping(users)
        found.userns_options.CopyFrom(pb.UserNamespace(mode=pb.POD, uids=ids, gids=ids))
    return found


def mapping(users: int) -> list[pb.IDMapping]:
    """Of the ids in a pod, 0 and on, to those of the host."""
    return [pb.IDMapping(container_id=0, host_id=users, length=USERS)]


def _sandbox_security(spec: PodSpec, node: Node, users: int) -> pb.LinuxSandboxSecurityContext:
    own = spec.security_context
    privileged = any(one.security_context.privileged for one in (*spec.init_containers, *spec.containers))
    found = pb.LinuxSandboxSecurityContext(
        namespace_options=namespaces(spec, users),
        privileged=privileged,
        seccomp=_profile(own.seccomp_profile, node, "RuntimeDefault"),
        supplemental_groups=_groups(spec),
        supplemental_groups_policy=GROUPS[own.supplemental_groups_policy],
    )
    if own.app_armor_profile is not None:
        found.apparmor.CopyFrom(_profile(own.app_armor_profile, node))
    if own.run_as_user is not None:
        found.run_as_user.value = own.run_as_user
        if own.run_as_group is not None:
            found.run_as_group.value = own.run_as_group
    if own.se_linux_options is not None:
        found.selinux_options.CopyFrom(_selinux(own.se_linux_options))
    return found


# -- containers


PROPAGATION: Final = {
    "None": pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}


def mount(
    where: str,
    host_path: str = "",
    *,
    read_only: bool = False,
    recursive: bool = False,
    propagation: str = "None",
    image: str = "",
    part: str = "",
) -> pb.Mount:
    """A directory or file of the host, or an image (`part` of it); `recursive` is about what is mounted below, too."""
    found = pb.Mount(
        container_path=where,
        host_path=host_path,
        readonly=read_only,
        recursive_read_only=recursive,
        propagation=PROPAGATION[propagation],
        image_sub_path=part,
    )
    if image:
        found.image.image = image
    return found


def container_config(
    pod: Pod,
    container: Container,
    attempt: int,
    *,
    image: str,
    variables: Mapping[str, str],
    mounts: Iterable[pb.Mount],
    node: Node,
    users: int = 0,
) -> pb.ContainerConfig:
    """`image` is what the runtime calls the image that was pulled; `variables` are `env.environment`'s.

    Whose files are is the same in the pod and on the disk, whichever ids of the host its users have.
    """
    meta = pb.ContainerMetadata(name=container.name, attempt=attempt)
    found = pb.ContainerConfig(
        metadata=meta,
        image=pb.ImageSpec(image=image, user_specified_image=container.image),
        command=[expand(one, variables.get) for one in container.command],
        args=[expand(one, variables.get) for one in container.args],
        working_dir=container.working_dir,
        envs=[pb.KeyValue(key=key, value=value) for key, value in variables.items()],
        mounts=mounts,
        labels={**of_pod(pod), CONTAINER_NAME: container.name},
        annotations=_annotations(pod, container, attempt),
        log_path=log_name(container.name, attempt),
        stdin=container.stdin,
        stdin_once=container.stdin_once,
        tty=container.tty,
        stop_signal=_signal(container.lifecycle.stop_signal),
        linux=pb.LinuxContainerConfig(
            resources=resources(pod, container, node), security_context=_security(pod.spec, container, node, users)
        ),
    )
    for one in found.mounts if users else ():
        one.uidMappings.extend(mapping(users))
        one.gidMappings.extend(mapping(users))
    return found


def _annotations(pod: Pod, container: Container, attempt: int) -> dict[str, str]:
    found = {
        HASH: digest_of(container),
        RESTARTS: str(attempt),
        MESSAGE_PATH: container.termination_message_path,
        MESSAGE_POLICY: container.termination_message_policy,
        POD_GRACE: str(int(pod.spec.termination_grace_period_seconds)),
    }
    if container.lifecycle.pre_stop is not None:
        found[PRE_STOP] = json.dumps(encode(container.lifecycle.pre_stop), sort_keys=True)
    if container.ports:
        found[PORTS] = json.dumps(encode(container.ports), sort_keys=True)
    return found


def _signal(name: str | None) -> Any:
    """As the CRI has it; the image's for none."""
    return pb.Signal.Value(name.replace("+", "PLUS").replace("-", "MINUS")) if name else pb.RUNTIME_DEFAULT


def resources(pod: Pod, container: Container, node: Node) -> pb.LinuxContainerResources:
    """A request of processors is weight, a limit is quota; memory is limited, and requested by oom_score_adj alone."""
    limits = container.resources.limits
    cpu = limits.get("cpu", qos.NOTHING)
    memory = limits.get("memory", qos.NOTHING)
    found = pb.LinuxContainerResources(
        cpu_shares=qos.shares(qos.requested(container, "cpu")),
        cpu_period=qos.CPU_PERIOD,
        cpu_quota=qos.quota(cpu),
        memory_limit_in_bytes=memory.whole,
        oom_score_adj=qos.oom_score_adj(pod, container, node.memory),
    )
    for name, amount in limits.items():
        if name.startswith(qos.HUGE_PAGES):
            found.hugepage_limits.add(page_size=qos.page_size(name), limit=amount.whole)
    return found


def _security(spec: PodSpec, container: Container, node: Node, users: int) -> pb.LinuxContainerSecurityContext:
    """The container's own, and what it leaves open by the pod's."""
    own, of_all = container.security_context, spec.security_context
    standard = "Unconfined" if own.privileged else "RuntimeDefault"
    found = pb.LinuxContainerSecurityContext(
        capabilities=_capabilities(own.capabilities),
        privileged=own.privileged,
        namespace_options=namespaces(spec, users),
        readonly_rootfs=own.read_only_root_filesystem,
        supplemental_groups=_groups(spec),
        supplemental_groups_policy=GROUPS[of_all.supplemental_groups_policy],
        no_new_privs=own.allow_privilege_escalation is False,
        seccomp=_profile(own.seccomp_profile or of_all.seccomp_profile, node, standard),
    )
    if not own.privileged and own.proc_mount == "Default":
        found.masked_paths.extend(MASKED)
        found.readonly_paths.extend(READ_ONLY)
    if (profile := own.app_armor_profile or of_all.app_armor_profile) is not None:
        found.apparmor.CopyFrom(_profile(profile, node))
    if (options := own.se_linux_options or of_all.se_linux_options) is not None:
        found.selinux_options.CopyFrom(_selinux(options))
    user, group = _either(own.run_as_user, of_all.run_as_user), _either(own.run_as_group, of_all.run_as_group)
    if user is not None:
        found.run_as_user.value = user
    if group is not None:
        found.run_as_group.value = group
    return found


def check_user(pod: Pod, container: Container, image: pb.Image) -> None:
    """Raises Missing where runAsNonRoot is asked for, and it would be root or nobody knows."""
    own, of_all = container.security_context, pod.spec.security_context
    if not _either(own.run_as_non_root, of_all.run_as_non_root):
        return
    user = _either(own.run_as_user, of_all.run_as_user)
    if user is None and image.HasField("uid"):
        user = image.uid.value
    if user is None and image.username:
        raise Missing(f"runAsNonRoot: the image's user {image.username!r} is a name: who that is cannot be verified")
    if not user:
        raise Missing("runAsNonRoot: the image would run as root; set runAsUser")


def needs_group(container: Container, spec: PodSpec) -> bool:
    """A group without a user: the CRI refuses that unless the image's user is known."""
    own, of_all = container.security_context, spec.security_context
    user, group = _either(own.run_as_user, of_all.run_as_user), _either(own.run_as_group, of_all.run_as_group)
    return group is not None and user is None


def with_user(config: pb.ContainerConfig, image: pb.Image) -> None:
    """The image's user, where only a group was asked for: the CRI takes no group without a user."""
    context = config.linux.security_context
    if image.username:
        context.run_as_username = image.username
    else:
        context.run_as_user.value = image.uid.value


def port_of(container: Container, port: Port) -> int:
    """The number of a port that may be named. Raises Missing."""
    if port.isdecimal():
        return int(port)
    for one in container.ports:
        if one.name == port:
            return int(one.container_port)
    raise Missing(f"there is no port named {str(port)!r}")


def in_brackets(address: str) -> str:
    """An address as a URL has it."""
    try:
        return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
    except ValueError:
        return address


def _either(own: object, of_all: object) -> int | None:
    found = own if own is not None else of_all
    assert found is None or isinstance(found, int)
    return found


def _groups(spec: PodSpec) -> list[int]:
    own = spec.security_context
    return [*own.supplemental_groups, *(() if own.fs_group is None else (own.fs_group,))]


def _capabilities(asked: Capabilities) -> pb.Capability:
    return pb.Capability(add_capabilities=asked.add, drop_capabilities=asked.drop)


def _selinux(asked: SelinuxOptions) -> pb.SELinuxOption:
    return pb.SELinuxOption(user=asked.user, role=asked.role, type=asked.type, level=asked.level)


def _profile(asked: SeccompProfile | None, node: Node, standard: str = "") -> pb.SecurityProfile:
    """A seccomp profile of a file is one below the agent's directory; AppArmor's are names that the kernel knows."""
    kind = standard if asked is None else asked.type
    reference = ""
    if asked is not None and asked.localhost_profile:
        seccomp = type(asked) is SeccompProfile
        reference = f"{node.seccomp_root}/{asked.localhost_profile}" if seccomp else asked.localhost_profile
    return pb.SecurityProfile(profile_type=PROFILES[kind], localhost_ref=reference)
