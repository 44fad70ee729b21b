"""The kinds of volumes that a pod may have."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from holdfast.agent.pod.scalars import NO_CLUSTER, Amount, Name, Seconds, Subdomain, one_of
from holdfast.agent.pod.sources import FieldRef, ResourceFieldRef

FILES_OF: Final = "files belong to root, and to fsGroup"
DRIVEN: Final = """awsElasticBlockStore azureDisk azureFile cephfs cinder csi fc flexVolume flocker gcePersistentDisk
gitRepo glusterfs iscsi nfs photonPersistentDisk portworxVolume quobyte rbd scaleIO storageos vsphereVolume"""


@dataclass(frozen=True, slots=True)
class EmptyDir:
    REFUSED: ClassVar = {"mode": "everybody may write to it, or who is in fsGroup"}
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
    REFUSED: ClassVar = {"user": FILES_OF}
    key: str
    path: str
    mode: Seconds | None = None

    def __post_init__(self) -> None:
        _check_file(self.path)


@dataclass(frozen=True, slots=True)
class ConfigMapVolume:
    REFUSED: ClassVar = {"defaultUser": FILES_OF}
    name: Subdomain
    items: tuple[KeyToPath, ...] = ()
    default_mode: Seconds = Seconds(0o644)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class SecretVolume:
    REFUSED: ClassVar = {"defaultUser": FILES_OF}
    secret_name: Subdomain
    items: tuple[KeyToPath, ...] = ()
    default_mode: Seconds = Seconds(0o644)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class DownwardFile:
    REFUSED: ClassVar = {"user": FILES_OF}
    path: str
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    mode: Seconds | None = None

    def __post_init__(self) -> None:
        _check_file(self.path)
        one_of(self, ("field_ref", "resource_field_ref"))


@dataclass(frozen=True, slots=True)
class DownwardVolume:
    REFUSED: ClassVar = {"defaultUser": FILES_OF}
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
    REFUSED: ClassVar = {
        "serviceAccountToken": NO_CLUSTER,
        "clusterTrustBundle": NO_CLUSTER,
        "podCertificate": NO_CLUSTER,
    }
    config_map: ConfigMapProjection | None = None
    secret: ConfigMapProjection | None = None
    downward_api: DownwardProjection | None = None


@dataclass(frozen=True, slots=True)
class ProjectedVolume:
    REFUSED: ClassVar = {"defaultUser": FILES_OF}
    sources: tuple[Projection, ...] = ()
    default_mode: Seconds = Seconds(0o644)


@dataclass(frozen=True, slots=True)
class ImageVolume:
    reference: str
    pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """Other kinds are refused, not warned of: what a container writes there would be lost."""

    REFUSED: ClassVar = {
        "ephemeral": "there is no cluster to make a claim to",
        "persistentVolumeClaim": "there is no cluster to make a claim to",
        **dict.fromkeys(DRIVEN.split(), "there is no driver for it: mount it on the host, and use hostPath"),
    }
    name: Name
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    downward_api: DownwardVolume | None = None
    projected: ProjectedVolume | None = None
    image: ImageVolume | None = None

    def __post_init__(self) -> None:
        one_of(self, VOLUME_KINDS)


VOLUME_KINDS: Final = ("empty_dir", "host_path", "config_map", "secret", "downward_api", "projected", "image")


def _check_file(path: str) -> None:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f".path: {path!r} leads out of the volume")
