"""What the archive of a pod says of the pod, and what is asked for when a pod is made of it again. Pure.

    about: {"pod": {name, namespace, uid, handler, config}, "containers": [{name, image, config}],
            "volumes": [{name, path, memory, size, inside}], "files": [{path, mode, uid, gid, data}], "left_out": [...],
            "checkpointed_at": ns, "frozen_seconds": s}

Configurations are those of the CRI as JSON. Whoever has an archive made may have written what he likes into it: it is
taken for a request, which the one who restores has to stand for as soon as it reaches for anything of the host.
"""

import base64
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from holdfast.checkpoint import layout
from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.hidden import HOSTS
from holdfast.proto import runtime_v1_pb2 as pb

EMPTY_DIRS: Final = ("kubernetes.io~empty-dir", "holdfast~sized-empty-dir")
# Directories of volumes whose content is the pod's alone; that of others is somewhere else, or somebody else's.
PLUGINS: Final = (
    *EMPTY_DIRS,
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
)
FILE_LIMIT: Final = 1024 * 1024  # of a file beside the volumes, as /etc/hosts and a termination message are
NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?")
_IMAGE: Final = re.compile(r"sha256:[0-9a-f]{64}")
_DEFAULT: Final = ("", "runtime/default", "docker/default")  # profiles as they were named once
_TELLING: Final = ("cdi.k8s.io", "run.oci.", "dev.gvisor.flag.")  # annotations by which devices or rights are had
_AGENTS: Final = "holdfast.io/agent-"  # annotations by which an agent knows its pods; this one is nobody's
_UID_LABEL: Final = "io.kubernetes.pod.uid"
_NAME_LABEL: Final = "io.kubernetes.pod.name"


@dataclass(frozen=True, slots=True)
class Volume:
    """An emptyDir, or what a kubelet or agent has put together.

    `path` is where it was on its host, `size` the limit of one in memory in bytes, 0 for none. What was in one that is
    `inside` is in the images of the pod's sandbox.
    """

    name: str
    path: str
    memory: bool = False
    size: int = 0
    inside: bool = False


@dataclass(frozen=True, slots=True)
class PodFile:
    """A file of the pod beside its volumes, which a container mounts."""

    path: str
    data: bytes
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A container that ran. `image` is the id of its image."""

    config: pb.ContainerConfig
    image: str

    @property
    def name(self) -> str:
        return self.config.metadata.name


@dataclass(frozen=True, slots=True)
class PodArchive:
    """A pod as its archive has it; `left_out` are sockets, as VOLUME/PATH, and containers that did not run."""

    config: pb.PodSandboxConfig
    handler: str
    containers: tuple[Saved, ...]
    volumes: tuple[Volume, ...] = ()
    files: tuple[PodFile, ...] = ()
    left_out: tuple[str, ...] = ()
    checkpointed_at: int = 0
    frozen_seconds: float = 0.0

    def encode(self) -> dict[str, Any]:
        named = self.config.metadata
        return {
            "pod": {
                "name": named.name,
                "namespace": named.namespace,
                "uid": named.uid,
                "handler": self.handler,
                "config": _plain(self.config),
            },
            "containers": [
                {"name": one.name, "image": one.image, "config": _plain(one.config)} for one in self.containers
            ],
            "volumes": [
                {"name": one.name, "path": one.path, "memory": one.memory, "size": one.size, "inside": one.inside}
                for one in self.volumes
            ],
            "files": [{**asdict(one), "data": base64.b64encode(one.data).decode()} for one in self.files],
            "left_out": list(self.left_out),
            "checkpointed_at": self.checkpointed_at,
            "frozen_seconds": self.frozen_seconds,
        }

    @classmethod
    def decode(cls, about: Mapping[str, Any]) -> "PodArchive":
        """Raises InvalidArgument."""
        try:
            found = cls(
                config=json_format.ParseDict(about["pod"]["config"], pb.PodSandboxConfig()),
                handler=_text(about["pod"]["handler"]),
                containers=tuple(_saved(one) for one in about["containers"]),
                volumes=tuple(Volume(**one) for one in about["volumes"]),
                files=tuple(_file(**one) for one in about["files"]),
                left_out=tuple(_text(one) for one in about["left_out"]),
                checkpointed_at=int(about["checkpointed_at"]),
                frozen_seconds=float(about["frozen_seconds"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError, json_format.ParseError) as exc:
            raise InvalidArgument(f"archive: what it says of its pod is malformed: {exc}") from exc
        found._check()
        return found

    def _check(self) -> None:
        for what, names in (
            ("containers", [one.name for one in self.containers]),
            ("volumes", [one.name for one in self.volumes]),
        ):
            strange = [name for name in names if not isinstance(name, str) or not NAME.fullmatch(name)]
            if strange or len(set(names)) != len(names):
                raise InvalidArgument(
                    f"archive: its {what} have names that cannot be theirs: {', '.join(map(str, names))}"
                )
        named = self.config.metadata
        if not (NAME.fullmatch(named.name) and NAME.fullmatch(named.namespace)):
            raise InvalidArgument(f"archive: {named.namespace!r} and {named.name!r} cannot be a pod's")
        for volume in self.volumes:
            if not isinstance(volume.path, str) or volume_at(volume.path) is None:
                raise InvalidArgument(f"archive: {volume.path!r} is no volume of a pod")
            flags = type(volume.memory) is bool and type(volume.inside) is bool
            if not flags or type(volume.size) is not int or volume.size < 0:
                raise InvalidArgument(f"archive: what it says of volume {volume.name} is malformed")
        for one in self.containers:
            if not _IMAGE.fullmatch(one.image):
                raise InvalidArgument(
                    f"archive: image {one.image!r} of container {one.name} is not named by its digest"
                )


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a pod is to differ from the one in its archive; `places` are those of volumes and of what else is mounted,
    by the volume's name or by where it was on the host.
    """

    name: str = ""
    uid: str = ""
    log_root: str = ""
    places: Mapping[str, str] = field(default_factory=dict)


def lacking(archive: PodArchive, parts: Collection[str]) -> list[str]:
    """What of a pod is not among the parts of its archive. A sandbox's images have all containers, and some volumes."""
    whole = any(part.startswith(f"{layout.SANDBOX}/{layout.IMAGES}/") for part in parts)
    wanted = [f"{layout.CONTAINERS}/{one.name}/{layout.CONFIG_DUMP}" for one in archive.containers]
    if not whole:
        wanted += [f"{layout.CONTAINERS}/{one.name}/{layout.IMAGES}/inventory.img" for one in archive.containers]
    wanted += [f"{layout.VOLUMES}/{one.name}.tar" for one in archive.volumes if not (one.inside and whole)]
    return [name for name in wanted if name not in parts]


def volume_at(path: str) -> str | None:
    """The name of the volume of a pod that is at this path, on whichever host; None for anything else."""
    match PurePosixPath(path).parts[-5:]:
        case ["pods", _, "volumes", plugin, name] if plugin in PLUGINS and path.startswith("/"):
            return name
    return None


def volumes_of(uid: str, containers: Iterable[pb.ContainerConfig]) -> dict[str, str]:
    """Where the volumes of a pod are that its containers mount, and that are the pod's alone, by name.

    Raises FailedPrecondition for a part of a volume: which one it is part of cannot be told by its path alone.
    """
    found: dict[str, str] = {}
    for config in containers:
        for mount in config.mounts:
            if f"/pods/{uid}/volume-subpaths/" in mount.host_path:
                why = f"container {config.metadata.name} mounts a subPath of a volume, {mount.host_path}"
                raise FailedPrecondition(f"{why}, which is not known to be brought back")
            name = volume_at(mount.host_path)
            if name is None or f"/pods/{uid}/" not in mount.host_path:
                continue
            path = mount.host_path.rstrip("/")
            if found.setdefault(name, path) != path:
                raise FailedPrecondition(f"volume {name} is at {found[name]} and at {path}")
    return found


def beside(uid: str, containers: Iterable[pb.ContainerConfig]) -> list[str]:
    """What the containers mount from the pod's directory that is no volume: files, if that is what is there."""
    paths = {mount.host_path.rstrip("/") for config in containers for mount in config.mounts}
    return sorted(path for path in paths if f"/pods/{uid}/" in path and "/volumes/" not in path)


def reaches(archive: PodArchive, own_kernel: bool = False) -> list[str]:
    """What of the host a pod asks for beyond what any pod gets; empty for one that is confined.

    The /proc of a pod with a kernel of its own, as gVisor's have, is nobody else's.
    """
    context, found = archive.config.linux.security_context, []
    if context.privileged:
        found.append("the pod is privileged")
    found += _shares("the pod", context.namespace_options)
    found += [f"port {one.host_port} of the host" for one in archive.config.port_mappings if one.host_port]
    captured = {*(one.path for one in archive.volumes), *(one.path for one in archive.files)}
    for one in archive.containers:
        found += _reaches(one, captured)
        if not own_kernel:
            found += _sees(one)
    return found


def _reaches(one: Saved, captured: set[str]) -> list[str]:
    who, context = f"container {one.name}", one.config.linux.security_context
    found = [f"{who} is privileged"] if context.privileged else []
    found += _shares(who, context.namespace_options)
    found += [f"{who} has capability {name}" for name in context.capabilities.add_capabilities]
    found += [f"{who} has ambient capability {name}" for name in context.capabilities.add_ambient_capabilities]
    found += [f"{who} has device {device.host_path}" for device in one.config.devices]
    found += [f"{who} has device {device.name}" for device in one.config.CDI_devices]
    found += [f"{who} has annotation {key}" for key in one.config.annotations if key.startswith(_TELLING)]
    if context.seccomp.profile_type != pb.SecurityProfile.RuntimeDefault and context.HasField("seccomp"):
        found.append(f"{who} has a seccomp profile other than the default one")
    if context.seccomp_profile_path not in _DEFAULT or context.apparmor_profile not in _DEFAULT:
        found.append(f"{who} has a profile other than the default one")
    if context.HasField("apparmor") and context.apparmor.profile_type != pb.SecurityProfile.RuntimeDefault:
        found.append(f"{who} has an AppArmor profile other than the default one")
    for mount in one.config.mounts:
        if mount.host_path.rstrip("/") not in captured and not mount.HasField("image"):
            found.append(f"{who} mounts {mount.host_path}")
        if mount.propagation != pb.PROPAGATION_PRIVATE:
            found.append(f"{who} shares mounts at {mount.container_path}")
    return found


def _sees(one: Saved) -> list[str]:
    context = one.config.linux.security_context
    bare = sorted(HOSTS - {*context.masked_paths, *context.readonly_paths})
    return [f"container {one.name} may write to {bare[0]} of the host"] if bare and not context.privileged else []


def _shares(who: str, options: pb.NamespaceOption) -> list[str]:
    kinds = {"network": options.network, "processes": options.pid, "IPC": options.ipc}
    return [f"{who} shares the host's {kind}" for kind, mode in kinds.items() if mode == pb.NODE]


def pod_config(archive: PodArchive, wanted: Wanted) -> pb.PodSandboxConfig:
    """The sandbox to ask for. Its cgroup is made as for any pod: the old one's place was its kubelet's to say."""
    config = pb.PodSandboxConfig()
    config.CopyFrom(archive.config)
    named, before = config.metadata, archive.config.metadata
    named.name, named.uid, named.attempt = wanted.name or before.name, wanted.uid, 0
    if config.log_directory:
        config.log_directory = f"{wanted.log_root}/{named.namespace}_{named.name}_{named.uid}"
    config.linux.cgroup_parent = ""
    for key in [one for one in config.annotations if one.startswith(_AGENTS)]:
        del config.annotations[key]
    _relabel(config.labels, named)
    return config


def container_config(one: Saved, pod: pb.PodSandboxConfig, places: Mapping[str, str]) -> pb.ContainerConfig:
    """The container to ask for in that sandbox; `places` are where what it mounts is now, by where it was."""
    config = pb.ContainerConfig()
    config.CopyFrom(one.config)
    config.image.image = one.image
    for mount in config.mounts:
        mount.host_path = places.get(mount.host_path.rstrip("/"), mount.host_path)
    _relabel(config.labels, pod.metadata)
    return config


def _relabel(labels: Any, named: pb.PodSandboxMetadata) -> None:
    for key, value in ((_UID_LABEL, named.uid), (_NAME_LABEL, named.name)):
        if key in labels:
            labels[key] = value


def _saved(one: Mapping[str, Any]) -> Saved:
    config = json_format.ParseDict(one["config"], pb.ContainerConfig())
    if config.metadata.name != one["name"]:
        raise ValueError(f"container {one['name']!r} calls itself {config.metadata.name!r}")
    return Saved(config, _text(one["image"]))


def _file(path: object, data: object, mode: object, uid: object, gid: object) -> PodFile:
    numbers = [one for one in (mode, uid, gid) if type(one) is int and 0 <= one < 1 << 32]
    content = base64.b64decode(_text(data), validate=True)
    if len(numbers) < 3 or len(content) > FILE_LIMIT or not _text(path).startswith("/"):
        raise ValueError(f"what it says of file {path!r} cannot be")
    return PodFile(_text(path), content, numbers[0] & 0o777, *numbers[1:])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _plain(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found
