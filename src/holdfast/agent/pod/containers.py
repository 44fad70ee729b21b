"""A container of a pod, and what is done to it from outside."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from holdfast.agent.pod.scalars import Amount, Count, HostPort, Name, Port, Seconds, Signal, one_of
from holdfast.agent.pod.security import SecurityContext
from holdfast.agent.pod.sources import EnvFrom, EnvVar


@dataclass(frozen=True, slots=True)
class ExecAction:
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpHeader:
    name: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class HttpGet:
    REFUSED: ClassVar = {"protocol": "HTTP/1.1 is spoken"}
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
class Grpc:
    """Whether a server says that it, or one of its services, is well (grpc.health.v1)."""

    REFUSED: ClassVar = {"mode": "the connection is in plain text"}
    port: HostPort
    service: str = ""


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Probe:
    exec: ExecAction | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    grpc: Grpc | None = None
    initial_delay_seconds: Seconds = Seconds(0)
    timeout_seconds: Count = Count(1)
    period_seconds: Count = Count(10)
    success_threshold: Count = Count(1)
    failure_threshold: Count = Count(3)
    termination_grace_period_seconds: Seconds | None = None

    def __post_init__(self) -> None:
        one_of(self, ("exec", "http_get", "tcp_socket", "grpc"))


@dataclass(frozen=True, slots=True)
class Handler:
    exec: ExecAction | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    sleep: Sleep | None = None

    def __post_init__(self) -> None:
        one_of(self)


@dataclass(frozen=True, slots=True)
class Lifecycle:
    post_start: Handler | None = None
    pre_stop: Handler | None = None
    stop_signal: Signal | None = None


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
    REFUSED: ClassVar = {"bindMountOptions": "a volume is mounted as it is, or read-only"}
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
class ExitCodes:
    operator: Literal["In", "NotIn"]
    values: tuple[Seconds, ...] = ()


@dataclass(frozen=True, slots=True)
class RestartRule:
    """A container that has ended so is started again, whatever its restartPolicy."""

    action: Literal["Restart"]
    exit_codes: ExitCodes

    def meets(self, code: int) -> bool:
        return (code in self.exit_codes.values) is (self.exit_codes.operator == "In")


@dataclass(frozen=True, slots=True)
class Container:
    UNSUPPORTED: ClassVar = {
        "volumeDevices": "there are no claims of block devices",
        "resizePolicy": "a pod whose resources change is made anew",
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
    restart_policy: Literal["", "Always", "OnFailure", "Never"] = ""  # of an init container: Always makes it a sidecar
    restart_policy_rules: tuple[RestartRule, ...] = ()

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError(".image: is empty")
        paths = [one.mount_path for one in self.volume_mounts]
        if len(set(paths)) < len(paths):
            raise ValueError(".volumeMounts: a mountPath comes twice")
        if self.restart_policy_rules and not self.restart_policy:
            raise ValueError(".restartPolicyRules: needs a restartPolicy for what no rule is about")

    @property
    def sidecar(self) -> bool:
        """Of an init container."""
        return self.restart_policy == "Always"

    @property
    def pull_policy(self) -> str:
        return pull_policy(self.image, self.image_pull_policy)


def pull_policy(image: str, asked: str) -> str:
    """As the API server would default it: a tag that may move is asked for each time."""
    name = image.rpartition("/")[2]
    moves = "@" not in name and (":" not in name or name.endswith(":latest"))
    return asked or ("Always" if moves else "IfNotPresent")
