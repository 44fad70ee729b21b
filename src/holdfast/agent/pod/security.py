"""What a pod and its containers may do: both kinds of securityContext."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from holdfast.agent.pod.scalars import LINUX, Seconds


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

    UNSUPPORTED: ClassVar = {"windowsOptions": LINUX}
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
    UNSUPPORTED: ClassVar = {"windowsOptions": LINUX, "seLinuxChangePolicy": "labels are the runtime's"}
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
