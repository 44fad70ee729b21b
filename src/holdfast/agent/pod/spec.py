"""A Pod of Kubernetes' v1 API, as far as it is honoured on one machine without a cluster.

These classes, and those of the modules for containers, volumes, sources and security beside this one, are the table of
fields. `UNSUPPORTED` names what is known and not honoured. Defaults are those of the API server, which nobody else sets
here.
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.scalars import LINUX, NO_CLUSTER, ONE_NODE, Count, Name, Seconds, Subdomain
from holdfast.agent.pod.security import PodSecurityContext
from holdfast.agent.pod.volumes import Volume

MADE_BY_A_CLUSTER: Final = "what a cluster has made of a pod says nothing of what it is to be"


@dataclass(frozen=True, slots=True)
class DnsOption:
    name: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class DnsConfig:
    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[DnsOption, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalRef:
    """To what is in the pod's namespace."""

    name: Subdomain


@dataclass(frozen=True, slots=True)
class HostAlias:
    ip: str
    hostnames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodSpec:
    UNSUPPORTED: ClassVar = {
        "affinity": ONE_NODE,
        "automountServiceAccountToken": NO_CLUSTER,
        "enableServiceLinks": NO_CLUSTER,
        "ephemeralContainers": "a container of a pod that runs is entered with exec",
        "evictionResponders": NO_CLUSTER,
        "nodeName": ONE_NODE,
        "nodeSelector": ONE_NODE,
        "os": LINUX,
        "overhead": "there are no runtime classes to have one",
        "preemptionPolicy": ONE_NODE,
        "priority": "nobody is evicted for another",
        "priorityClassName": "nobody is evicted for another",
        "readinessGates": NO_CLUSTER,
        "resourceClaims": NO_CLUSTER,
        "resources": "the containers' are summed up",
        "schedulerName": ONE_NODE,
        "schedulingGates": ONE_NODE,
        "schedulingGroup": ONE_NODE,
        "serviceAccount": NO_CLUSTER,
        "serviceAccountName": NO_CLUSTER,
        "subdomain": NO_CLUSTER,
        "setHostnameAsFQDN": NO_CLUSTER,
        "tolerations": ONE_NODE,
        "topologySpreadConstraints": ONE_NODE,
    }
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: Seconds = Seconds(30)
    active_deadline_seconds: Count | None = None
    dns_policy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] = "Default"
    dns_config: DnsConfig = DnsConfig()
    host_aliases: tuple[HostAlias, ...] = ()
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    host_users: bool = True
    image_pull_secrets: tuple[LocalRef, ...] = ()
    hostname: str = ""
    hostname_override: str = ""
    runtime_class_name: str = ""
    security_context: PodSecurityContext = PodSecurityContext()
    share_process_namespace: bool = False

    def __post_init__(self) -> None:
        if not self.containers:
            raise ValueError(".containers: one is needed")
        names = [one.name for one in (*self.init_containers, *self.containers)]
        volumes = [one.name for one in self.volumes]
        for key, found in (("containers", names), ("volumes", volumes)):
            if len(set(found)) < len(found):
                raise ValueError(f".{key}: a name comes twice: {', '.join(found)}")
        for container in (*self.init_containers, *self.containers):
            for number, one in enumerate(container.volume_mounts):
                if one.name not in volumes:
                    where = f".containers[{container.name}].volumeMounts[{number}].name"
                    raise ValueError(f"{where}: there is no volume {one.name}")
        if not self.host_users and (self.host_network or self.host_pid or self.host_ipc):
            raise ValueError(".hostUsers: false goes with none of hostNetwork, hostPID and hostIPC")
        if self.share_process_namespace and self.host_pid:
            raise ValueError(".shareProcessNamespace: goes with no hostPID")


UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")  # of pods: it is a directory's name


@dataclass(frozen=True, slots=True)
class Metadata:
    UNSUPPORTED: ClassVar = {
        "finalizers": NO_CLUSTER,
        "generateName": "a pod needs a name",
        "ownerReferences": NO_CLUSTER,
    }
    IGNORED: ClassVar = dict.fromkeys(
        (
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "selfLink",
        ),
        MADE_BY_A_CLUSTER,
    )
    name: Subdomain
    namespace: Name = Name("default")
    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.uid and not UID.fullmatch(self.uid):
            raise ValueError(f".uid: {self.uid!r} is no uid: letters, digits and -, at most 128 of them")


@dataclass(frozen=True, slots=True)
class Pod:
    IGNORED: ClassVar = {"status": MADE_BY_A_CLUSTER}
    api_version: Literal["v1"]
    kind: Literal["Pod"]
    metadata: Metadata
    spec: PodSpec
