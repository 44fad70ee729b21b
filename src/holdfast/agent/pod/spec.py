"""A Pod of Kubernetes' v1 API, as far as it is honoured on one machine without a cluster. These classes are the table.

`UNSUPPORTED` names what is known and not honoured. Defaults are those of the API server, which nobody else sets here.
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from holdfast.agent.pod.decode import key_of
from holdfast.agent.pod.quantity import Quantity

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VARIABLE: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
NO_CLUSTER: Final = "there is no cluster"
ONE_NODE: Final = "there is but this node"


class Name(str):
    """A DNS label (RFC 1123), as names of containers and volumes are."""

    @classmethod
    def from_yaml(cls, value: object) -> "Name":
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise ValueError(f"{value!r} is no name: small letters, digits and -, at most 63 of them")
        return cls(value)


class Subdomain(str):
    """A DNS subdomain (RFC 1123), as names of pods are."""

    @classmethod
    def from_yaml(cls, value: object) -> "Subdomain":
        if not isinstance(value, str) or len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
            raise ValueError(f"{value!r} is no name: small letters, digits, - and ., at most 253 of them")
        return cls(value)


class Amount(Quantity):
    """A quantity that is not negative; YAML may have it as a number."""

    @classmethod
    def from_yaml(cls, value: object) -> "Amount":
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r} is no quantity such as 250m, 1.5 or 64Mi")
        found = cls.parse(str(value))
        if found.milli < 0:
            raise ValueError(f"{value!r} is negative")
        return cls(found.milli)


class Port(str):
    """A number from 1 to 65535, or the name of one of the container's ports."""

    @classmethod
    def from_yaml(cls, value: object) -> "Port":
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
            return cls(value)
        if isinstance(value, str) and value and not value.isdecimal():
            return cls(value)
        raise ValueError(f"{value!r} is neither a port nor the name of one")


class Seconds(int):
    """A whole number that is not negative."""

    @classmethod
    def from_yaml(cls, value: object) -> "Seconds":
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{value!r} is no number of seconds")
        return cls(value)


class Count(int):
    """A whole number from 1."""

    @classmethod
    def from_yaml(cls, value: object) -> "Count":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{value!r} is not a number from 1")
        return cls(value)


class HostPort(int):
    """A number from 1 to 65535."""

    @classmethod
    def from_yaml(cls, value: object) -> "HostPort":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
            raise ValueError(f"{value!r} is no port: 1 to 65535")
        return cls(value)


# -- security


@dataclass(frozen=True, slots=True)
class SeccompProfile:
    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]
    localhost_profile: str = ""

    def __post_init__(self) -> None:
        if (self.type == "Localhost") is not bool(self.localhost_profile):
            raise ValueError(".localhostProfile: goes with type Localhost, and with no other")
        if self.localhost_profile.startswith("/") or ".." in self.localhost_profile.split("/"):
            raise ValueError(f".localhostProfile: {self.localhost_profile!r} leads out of the directory of profiles")


@dataclass(frozen=True, slots=True)
class AppArmorProfile(SeccompProfile):
    pass


@dataclass(frozen=True, slots=True)
class SelinuxOptions:
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """Of a container; what it leaves open the pod's says."""

    UNSUPPORTED: ClassVar = {"windowsOptions": "this is Linux"}
    allow_privilege_escalation: bool | None = None
    app_armor_profile: AppArmorProfile | None = None
    capabilities: Capabilities = Capabilities()
    privileged: bool = False
    proc_mount: Literal["Default", "Unmasked"] = "Default"
    read_only_root_filesystem: bool = False
    run_as_user: Seconds | None = None
    run_as_group: Seconds | None = None
    run_as_non_root: bool | None = None
    se_linux_options: SelinuxOptions | None = None
    seccomp_profile: SeccompProfile | None = None


@dataclass(frozen=True, slots=True)
class Sysctl:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class PodSecurityContext:
    UNSUPPORTED: ClassVar = {"windowsOptions": "this is Linux", "seLinuxChangePolicy": "labels are the runtime's"}
    app_armor_profile: AppArmorProfile | None = None
    fs_group: Seconds | None = None
    fs_group_change_policy: Literal["Always", "OnRootMismatch"] = "Always"
    run_as_user: Seconds | None = None
    run_as_group: Seconds | None = None
    run_as_non_root: bool | None = None
    se_linux_options: SelinuxOptions | None = None
    seccomp_profile: SeccompProfile | None = None
    supplemental_groups: tuple[Seconds, ...] = ()
    supplemental_groups_policy: Literal["Merge", "Strict"] = "Merge"
    sysctls: tuple[Sysctl, ...] = ()


# -- the environment


@dataclass(frozen=True, slots=True)
class FieldRef:
    field_path: str
    api_version: str = "v1"


@dataclass(frozen=True, slots=True)
class ResourceFieldRef:
    resource: str
    container_name: str = ""
    divisor: Amount = Amount(1000)


@dataclass(frozen=True, slots=True)
class KeyRef:
    """A key of a ConfigMap or a Secret."""

    name: Subdomain
    key: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class EnvVarSource:
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None

    def __post_init__(self) -> None:
        _one_of(self, "")


@dataclass(frozen=True, slots=True)
class EnvVar:
    name: str
    value: str = ""
    value_from: EnvVarSource | None = None

    def __post_init__(self) -> None:
        if not _VARIABLE.fullmatch(self.name):
            raise ValueError(f".name: {self.name!r} is no name of a variable")
        if self.value and self.value_from is not None:
            raise ValueError(".valueFrom: goes with no value")


@dataclass(frozen=True, slots=True)
class NameRef:
    name: Subdomain
    optional: bool = False


@dataclass(frozen=True, slots=True)
class EnvFrom:
    prefix: str = ""
    config_map_ref: NameRef | None = None
    secret_ref: NameRef | None = None

    def __post_init__(self) -> None:
        if (self.config_map_ref is None) is (self.secret_ref is None):
            raise ValueError("one of configMapRef and secretRef is needed")


# -- what is done to containers


@dataclass(frozen=True, slots=True)
class ExecAction:
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpHeader:
    name: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class HttpGet:
    port: Port
    path: str = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HttpHeader, ...] = ()


@dataclass(frozen=True, slots=True)
class TcpSocket:
    port: Port
    host: str = ""


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Probe:
    UNSUPPORTED: ClassVar = {"grpc": "exec, httpGet and tcpSocket are"}
    exec: ExecAction | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    initial_delay_seconds: Seconds = Seconds(0)
    timeout_seconds: Count = Count(1)
    period_seconds: Count = Count(10)
    success_threshold: Count = Count(1)
    failure_threshold: Count = Count(3)
    termination_grace_period_seconds: Seconds | None = None

    def __post_init__(self) -> None:
        _one_of(self, "", ("exec", "http_get", "tcp_socket"))


@dataclass(frozen=True, slots=True)
class Handler:
    exec: ExecAction | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    sleep: Sleep | None = None

    def __post_init__(self) -> None:
        _one_of(self, "")


@dataclass(frozen=True, slots=True)
class Lifecycle:
    UNSUPPORTED: ClassVar = {"stopSignal": "the image's is sent"}
    post_start: Handler | None = None
    pre_stop: Handler | None = None


# -- containers


@dataclass(frozen=True, slots=True)
class ContainerPort:
    container_port: HostPort
    name: str = ""
    host_port: HostPort | None = None
    host_ip: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


@dataclass(frozen=True, slots=True)
class Resources:
    UNSUPPORTED: ClassVar = {"claims": "devices are claimed from a cluster"}
    limits: dict[str, Amount] = field(default_factory=dict)
    requests: dict[str, Amount] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeMount:
    name: Name
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""
    read_only: bool = False
    recursive_read_only: Literal["Disabled", "IfPossible", "Enabled"] = "Disabled"
    mount_propagation: Literal["None", "HostToContainer", "Bidirectional"] = "None"

    def __post_init__(self) -> None:
        if not self.mount_path.startswith("/") or ":" in self.mount_path:
            raise ValueError(f".mountPath: {self.mount_path!r} is no absolute path without colons")
        for key, path in (("subPath", self.sub_path), ("subPathExpr", self.sub_path_expr)):
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f".{key}: {path!r} leads out of the volume")
        if self.sub_path and self.sub_path_expr:
            raise ValueError(".subPathExpr: goes with no subPath")
        if self.recursive_read_only != "Disabled" and (not self.read_only or self.mount_propagation != "None"):
            raise ValueError(".recursiveReadOnly: needs readOnly, and no propagation")


@dataclass(frozen=True, slots=True)
class Container:
    UNSUPPORTED: ClassVar = {
        "volumeDevices": "there are no claims of block devices",
        "resizePolicy": "a pod whose resources change is made anew",
        "restartPolicyRules": "the pod's restartPolicy holds",
    }
    name: Name
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    ports: tuple[ContainerPort, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    resources: Resources = Resources()
    volume_mounts: tuple[VolumeMount, ...] = ()
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle = Lifecycle()
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: Literal["File", "FallbackToLogsOnError"] = "File"
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    security_context: SecurityContext = SecurityContext()
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    restart_policy: Literal["", "Always"] = ""  # of an init container: Always makes it a sidecar

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError(".image: is empty")
        paths = [one.mount_path for one in self.volume_mounts]
        if len(set(paths)) < len(paths):
            raise ValueError(".volumeMounts: a mountPath comes twice")

    @property
    def sidecar(self) -> bool:
        return self.restart_policy == "Always"

    @property
    def pull_policy(self) -> str:
        return pull_policy(self.image, self.image_pull_policy)


def pull_policy(image: str, asked: str) -> str:
    """As the API server would default it: a tag that may move is asked for each time."""
    name = image.rpartition("/")[2]
    moves = "@" not in name and (":" not in name or name.endswith(":latest"))
    return asked or ("Always" if moves else "IfNotPresent")


# -- volumes


@dataclass(frozen=True, slots=True)
class EmptyDir:
    medium: str = ""
    size_limit: Amount | None = None

    def __post_init__(self) -> None:
        if self.medium not in ("", "Memory", "HugePages") and not self.medium.startswith("HugePages-"):
            raise ValueError(f".medium: {self.medium!r} is none of Memory, HugePages, HugePages-SIZE")

    @property
    def in_memory(self) -> bool:
        return bool(self.medium)


@dataclass(frozen=True, slots=True)
class HostPath:
    path: str
    type: Literal[
        "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"
    ] = ""

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or ".." in self.path.split("/"):
            raise ValueError(f".path: {self.path!r} is no absolute path, or has .. in it")


@dataclass(frozen=True, slots=True)
class KeyToPath:
    key: str
    path: str
    mode: Seconds | None = None

    def __post_init__(self) -> None:
        _check_file(self.path)


@dataclass(frozen=True, slots=True)
class ConfigMapVolume:
    name: Subdomain
    items: tuple[KeyToPath, ...] = ()
    default_mode: Seconds = Seconds(0o644)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class SecretVolume:
    secret_name: Subdomain
    items: tuple[KeyToPath, ...] = ()
    default_mode: Seconds = Seconds(0o644)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class DownwardFile:
    path: str
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    mode: Seconds | None = None

    def __post_init__(self) -> None:
        _check_file(self.path)
        _one_of(self, "", ("field_ref", "resource_field_ref"))


@dataclass(frozen=True, slots=True)
class DownwardVolume:
    items: tuple[DownwardFile, ...] = ()
    default_mode: Seconds = Seconds(0o644)


@dataclass(frozen=True, slots=True)
class ConfigMapProjection:
    name: Subdomain
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class DownwardProjection:
    items: tuple[DownwardFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Projection:
    UNSUPPORTED: ClassVar = {
        "serviceAccountToken": NO_CLUSTER,
        "clusterTrustBundle": NO_CLUSTER,
        "podCertificate": NO_CLUSTER,
    }
    config_map: ConfigMapProjection | None = None
    secret: ConfigMapProjection | None = None
    downward_api: DownwardProjection | None = None


@dataclass(frozen=True, slots=True)
class ProjectedVolume:
    sources: tuple[Projection, ...] = ()
    default_mode: Seconds = Seconds(0o644)


@dataclass(frozen=True, slots=True)
class ImageVolume:
    reference: str
    pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """Other kinds are refused, not warned of: what a container writes there would be lost."""

    name: Name
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    downward_api: DownwardVolume | None = None
    projected: ProjectedVolume | None = None
    image: ImageVolume | None = None

    def __post_init__(self) -> None:
        _one_of(self, "", VOLUME_KINDS)


VOLUME_KINDS: Final = ("empty_dir", "host_path", "config_map", "secret", "downward_api", "projected", "image")


# -- pods


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
class HostAlias:
    ip: str
    hostnames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodSpec:
    UNSUPPORTED: ClassVar = {
        "affinity": ONE_NODE,
        "ephemeralContainers": NO_CLUSTER,
        "imagePullSecrets": "registries' credentials are the runtime's to know",
        "nodeName": ONE_NODE,
        "nodeSelector": ONE_NODE,
        "os": "this is Linux",
        "overhead": "there are no runtime classes to have one",
        "preemptionPolicy": ONE_NODE,
        "priority": "nobody is evicted for another",
        "priorityClassName": "nobody is evicted for another",
        "readinessGates": NO_CLUSTER,
        "resourceClaims": NO_CLUSTER,
        "resources": "the containers' are summed up",
        "schedulerName": ONE_NODE,
        "schedulingGates": ONE_NODE,
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
    enable_service_links: bool = False
    automount_service_account_token: bool = False
    host_aliases: tuple[HostAlias, ...] = ()
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    host_users: bool = True
    hostname: str = ""
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
        for container in self.containers:
            if container.restart_policy:
                raise ValueError(f".containers[{container.name}].restartPolicy: is for init containers")
        if not self.host_users:
            raise ValueError(".hostUsers: false is not supported here: nobody gives out ranges of users yet")
        if self.share_process_namespace and self.host_pid:
            raise ValueError(".shareProcessNamespace: goes with no hostPID")


UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")  # of pods: it is a directory's name


@dataclass(frozen=True, slots=True)
class Metadata:
    """The rest is a cluster's, and of no meaning in a manifest that nobody has taken from one."""

    UNSUPPORTED: ClassVar = {
        "finalizers": NO_CLUSTER,
        "generateName": "a pod needs a name",
        "ownerReferences": NO_CLUSTER,
    }
    name: Subdomain
    namespace: Name = Name("default")
    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    creation_timestamp: str | None = None
    resource_version: str = ""
    generation: int = 0

    def __post_init__(self) -> None:
        if self.uid and not UID.fullmatch(self.uid):
            raise ValueError(f".uid: {self.uid!r} is no uid: letters, digits and -, at most 128 of them")


@dataclass(frozen=True, slots=True)
class Pod:
    api_version: Literal["v1"]
    kind: Literal["Pod"]
    metadata: Metadata
    spec: PodSpec
    status: object = None  # a cluster's, and of no meaning here


def _one_of(one: object, where: str, names: tuple[str, ...] = ()) -> None:
    known = names or tuple(one.__dataclass_fields__)  # type: ignore[attr-defined]
    given = [name for name in known if getattr(one, name) is not None]
    if len(given) != 1:
        raise ValueError(f"{where}one of {', '.join(map(key_of, known))} is needed, and no more")


def _check_file(path: str) -> None:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f".path: {path!r} leads out of the volume")
