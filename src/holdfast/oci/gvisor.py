"""gVisor's part of specs: which volumes are kept by the pod's own kernel, and what is written of that where. Pure.

Of a volume the pod's annotations say by its name, as a pod's manifest has it:

    dev.holdfast.volume.NAME = shared-disk           on disk, shared by the pod's containers, part of a checkpoint
    dev.holdfast.volume.NAME = shared-disk,bring-in  the same, and the files that it has already are copied into it
    dev.gvisor.spec.mount.NAME.share = pod           the same as shared-disk
    dev.gvisor.spec.mount.NAME.type = tmpfs          in memory, of each container its own
    dev.gvisor.spec.mount.NAME.share = shared, or force-shared    what is on the host, as without annotations

runsc reads such hints from the sandbox container's spec only, and finds the mounts that they are of by their source,
which has to be spelled alike. Of a volume on disk it makes a tmpfs whose pages are in a file in the volume's directory.
In a checkpoint that file belongs to who has the directory as a bind mount, and no two may: so that is the sandbox
container, which is there from the first moment to the last and in every restore, and the others mount a tmpfs of the
same source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.oci.request import Spec
from holdfast.proto import runtime_v1_pb2 as pb

OURS: Final = "dev.holdfast.volume."
HINTS: Final = "dev.gvisor.spec.mount."
SHM: Final = "devshm"
SHM_PLACE: Final = "/dev/shm"
VOLUMES: Final = "/volumes"  # in the sandbox container, whose image has that directory
SUBPATHS: Final = "volume-subpaths"
_SHARES: Final = ("container", "pod", "shared", "force-shared")
_TYPES: Final = ("tmpfs", "bind")
_FIELDS: Final = ("type", "share", "options", "source")
_ACCESS: Final = ("ro", "rw")


class Shape(StrEnum):
    DISK = "disk"  # shared by the pod's containers
    MEMORY = "memory"  # each container's own


@dataclass(frozen=True, slots=True)
class Volume:
    """What is asked for of one volume, and its directory on the host once that is known."""

    name: str
    shape: Shape
    brings_in: bool = False
    source: str = ""


def check_pod(config: pb.PodSandboxConfig) -> None:
    """Raises InvalidArgument for annotations without sense, FailedPrecondition for what only the host's kernel has."""
    volumes(config.annotations)
    options = config.linux.security_context.namespace_options
    for name in ("pid", "ipc"):
        if getattr(options, name) == pb.NODE:
            where = f"config.linux.security_context.namespace_options.{name}"
            raise FailedPrecondition(f"{where}: NODE is not possible in gVisor")
    if config.linux.sysctls:
        raise FailedPrecondition("config.linux.sysctls: they are not possible in gVisor")


def check(config: pb.ContainerConfig) -> None:
    """The same for a container."""
    if config.devices or config.CDI_devices:
        raise FailedPrecondition(f"config.{'devices' if config.devices else 'CDI_devices'}: there are none in gVisor")
    if config.linux.security_context.namespace_options.pid == pb.TARGET:
        raise FailedPrecondition(
            "config.linux.security_context.namespace_options.pid: TARGET is not possible in gVisor"
        )


def volumes(annotations: Mapping[str, str]) -> list[Volume]:
    """Those that are not just what they are on the host. Raises InvalidArgument that names the annotation."""
    found: dict[str, Volume] = {}
    for key, value in sorted(annotations.items()):
        if key.startswith(OURS):
            name, words = key.removeprefix(OURS), value.split(",")
            if words[0] != "shared-disk" or words[1:] not in ([], ["bring-in"]):
                raise InvalidArgument(
                    f"config.annotations[{key}]: {value!r} is not shared-disk or shared-disk,bring-in"
                )
            found[name] = Volume(name, Shape.DISK, "bring-in" in words)
    for name, hint in _hints(annotations).items():
        share, kind = hint.get("share", "container"), hint.get("type", "bind")
        if share == "pod":
            found.setdefault(name, Volume(name, Shape.DISK))
        elif name in found:
            raise InvalidArgument(f"config.annotations[{OURS}{name}]: {HINTS}{name} says something else")
        elif share == "container" and kind == "tmpfs":
            found[name] = Volume(name, Shape.MEMORY)
    return list(found.values())


def _hints(annotations: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, value in sorted(annotations.items()):
        if not key.startswith(HINTS):
            continue
        name, _, field = key.removeprefix(HINTS).rpartition(".")
        allowed = {"share": _SHARES, "type": _TYPES}.get(field)
        if not name or field not in _FIELDS:
            raise InvalidArgument(f"config.annotations[{key}]: there is no such hint")
        if allowed and value not in allowed:
            raise InvalidArgument(f"config.annotations[{key}]: {value!r} is not one of {', '.join(allowed)}")
        found.setdefault(name, {})[field] = value
    return found


def of_sandbox(placed: Iterable[Volume], shm: str) -> tuple[dict[str, str], list[Spec]]:
    """The annotations and the mounts of the sandbox container. `shm` is the pod's, "" for that of the host."""
    disks = [one for one in placed if one.shape is Shape.DISK]
    sources = {one.name: one.source for one in disks} | ({SHM: shm} if shm else {})
    hints: dict[str, str] = {}
    for name, source in sources.items():
        said = {"source": source, "type": "tmpfs", "share": "pod", "options": "rw"}
        hints |= {f"{HINTS}{name}.{field}": value for field, value in said.items()}
    mounts: list[Spec] = []
    if shm:
        mounts.append(_tmpfs(SHM_PLACE, shm, []))
    if disks:
        mounts.append(_tmpfs(VOLUMES, "tmpfs", []))
    for number, one in enumerate(disks):
        bind = {"type": "bind", "source": one.source, "options": ["rbind", "rw"]}
        mounts.append({"destination": f"{VOLUMES}/{number}", **bind})
    return hints, mounts


def suited(spec: Spec, options: pb.NamespaceOption, placed: Iterable[Volume], shm: str) -> Spec:
    """A container's spec for runsc: what it is to keep as a tmpfs, and none of what only the host's kernel has.

    Raises FailedPrecondition for parts of a volume that is not on the host at all.
    """
    by_source = {one.source: one for one in placed}
    linux: dict[str, Any] = {key: spec["linux"][key] for key in ("cgroupsPath", "resources") if key in spec["linux"]}
    own = options.pid == pb.CONTAINER
    linux["namespaces"] = [{"type": "mount"}, *([{"type": "pid"}] if own else [])]
    for key in ("maskedPaths", "readonlyPaths"):
        if spec["linux"].get(key):
            linux[key] = spec["linux"][key]
    process = {key: value for key, value in spec["process"].items() if key not in ("selinuxLabel", "apparmorProfile")}
    mounts = [_mount(one, number, by_source, shm) for number, one in enumerate(spec["mounts"])]
    return {**spec, "process": process, "mounts": [one for one in mounts if one["type"] != "mqueue"], "linux": linux}


def _mount(mount: Spec, number: int, by_source: Mapping[str, Volume], shm: str) -> Spec:
    if mount["type"] != "bind":
        return mount
    if mount["source"] in by_source or (shm and mount["source"] == shm):
        return _tmpfs(mount["destination"], mount["source"], mount["options"])
    for one in by_source.values():
        top, _, below = one.source.rpartition("/volumes/")
        name = below.partition("/")[2]
        if f"{mount['source']}/".startswith((f"{one.source}/", f"{top}/{SUBPATHS}/{name}/")):
            why = f"it is a part of volume {one.name}, which is not on the host but in the pod"
            raise FailedPrecondition(f"cannot mount {mount['source']} at {mount['destination']}: {why}")
    return mount


def _tmpfs(place: str, source: str, options: Iterable[str]) -> Spec:
    return {
        "destination": place,
        "type": "tmpfs",
        "source": source,
        "options": [one for one in options if one in _ACCESS] or ["rw"],
    }
