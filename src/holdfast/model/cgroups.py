"""What the cgroups of pods and containers are called, and where they are. Pure.

    driver    the pod's parent, as its row has it   its containers             which for the OCI runtime are
    cgroupfs  /kubepods/burstable/podUID            PARENT/ID                  PARENT/ID
    systemd   kubepods-burstable-podUID.slice       SLICE/holdfast-ID.scope    kubepods-...slice:holdfast:ID

Which driver a pod has is told by its parent: so it keeps it when the daemon's setting changes. A slice a-b.slice is
below a.slice (systemd.slice(5)); its path says so. The init of a pid namespace that a pod shares has the place of a
container with the pod's id.
"""

import posixpath
import re
from pathlib import PurePosixPath
from typing import Final

from holdfast.model.errors import InvalidArgument

CGROUPFS: Final = "cgroupfs"
SYSTEMD: Final = "systemd"
DRIVERS: Final = (CGROUPFS, SYSTEMD)
PREFIX: Final = "holdfast"
_SLICE: Final = re.compile(r"[A-Za-z0-9:_.\\]+(-[A-Za-z0-9:_.\\]+)*\.slice")
_NAME_LENGTH: Final = 255  # of a unit, systemd.unit(5), and of a directory
_ID: Final = re.compile(r"(?:[^/]*-)?([0-9a-f]{64})(?:\.scope|\.slice)?")


def check_parent(parent: str, driver: str, field: str) -> str:
    """The parent as a row has it: of a slice its name, which a kubelet gives with the path that leads there.

    Raises InvalidArgument for one that the driver cannot have.
    """
    if driver == CGROUPFS:
        parts = parent.split("/")
        if not parent.startswith("/") or ".." in parts or posixpath.normpath(parent).strip("/") == "":
            raise InvalidArgument(
                f"{field}: {parent!r} is not a path below the cgroup root, which cgroup_driver 'cgroupfs' needs"
            )
        return "/" + posixpath.normpath(parent).strip("/")
    name = posixpath.basename(parent.rstrip("/"))
    if not _SLICE.fullmatch(name) or len(name) > _NAME_LENGTH:
        raise InvalidArgument(
            f"{field}: {parent!r} is not a slice such as 'kubepods-pod1.slice', which cgroup_driver 'systemd' needs"
        )
    if "/" in parent and "/" + parent.strip("/") != slice_path(name):
        raise InvalidArgument(f"{field}: {parent!r} is not where {name} is, which is {slice_path(name)}")
    return name


def is_slice(parent: str) -> bool:
    return not parent.startswith("/")


def slice_path(name: str) -> str:
    """Where a slice is below every hierarchy: "a-b.slice" is at /a.slice/a-b.slice."""
    words = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))


def as_slice(path: str) -> str:
    """What a kubelet calls the cgroup at a path when systemd makes it: "/a-b/c" is "a_b-c.slice"."""
    return "-".join(word.replace("-", "_") for word in path.strip("/").split("/")) + ".slice"


def parent_path(parent: str) -> str:
    """Where a pod's cgroup is, or that of all pods."""
    return slice_path(parent) if is_slice(parent) else parent.rstrip("/")


def ends(parent: str, count: int) -> list[str]:
    """So many paths from where a parent is outwards, all of them for a parent that is not that deep. Those above a
    slice are systemd's."""
    path = PurePosixPath(parent_path(parent))
    outwards = [str(one) for one in (path, *path.parents) if one.name]
    return outwards[: min(count, 1) if is_slice(parent) else count]


def below(root: str, pod_id: str) -> str:
    """The parent of a pod that names none, from that of all such pods."""
    return f"{root.removesuffix('.slice')}-{pod_id}.slice" if is_slice(root) else f"{root}/{pod_id}"


def path_of(parent: str, id: str) -> str:
    """Where the cgroup of a container is."""
    return f"{parent_path(parent)}/{scope(id)}" if is_slice(parent) else f"{parent_path(parent)}/{id}"


def scope(id: str) -> str:
    return f"{PREFIX}-{id}.scope"


def oci_path(parent: str, id: str) -> str:
    """linux.cgroupsPath of the OCI spec."""
    return f"{parent}:{PREFIX}:{id}" if is_slice(parent) else path_of(parent, id)


def from_oci(path: str) -> str:
    """Where a linux.cgroupsPath is; "" where that is for the OCI runtime to say."""
    if path.startswith("/"):
        return path
    parts = path.split(":")
    if len(parts) != 3 or not _SLICE.fullmatch(parts[0]):
        return ""
    return f"{slice_path(parts[0])}/{parts[1]}-{parts[2]}.scope"


def unit_of(path: str) -> str:
    """The unit whose cgroup this is by its name; "" for none."""
    name = posixpath.basename(path.rstrip("/"))
    return name if name.endswith((".scope", ".slice")) else ""


def id_in(name: str) -> str:
    """The id in the name of a cgroup of a pod or container; "" when there is none."""
    found = _ID.fullmatch(name)
    return found[1] if found else ""
