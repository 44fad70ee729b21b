"""Ids and the metadata that never changes once an object exists."""

import re
import secrets
from dataclasses import dataclass
from typing import Final

_ID: Final = re.compile(r"^[0-9a-f]{64}$")


def new_id() -> str:
    """A pod or container id: 64 hex digits, unguessable, as other CRI runtimes make them."""
    return secrets.token_hex(32)


def is_id(text: str) -> bool:
    return _ID.match(text) is not None


def volume_key(container_id: str, number: int | None = None) -> str:
    """Of the snapshot behind one of a container's mounts; with no number what all of them begin with."""
    return f"{container_id}/{'' if number is None else number}"


def container_of_key(key: str) -> str:
    """The id of the container that a snapshot is for, its own or one of its volumes'."""
    return key.partition("/")[0]


@dataclass(frozen=True, slots=True)
class PodMetadata:
    """A pod sandbox as it was asked for. (name, namespace, uid, attempt) is unique among live rows.

    `config` is the serialized runtime.v1.PodSandboxConfig; the store keeps it as it is.
    """

    id: str
    name: str
    namespace: str
    uid: str
    attempt: int
    handler: str
    config: bytes
    cgroup_parent: str  # e.g. /kubepods/burstable/podUID, or a slice; see model.cgroups
    owns_cgroup: int  # how many at the end of its path were made by us, so removed by us
    created_at: int  # ns since the epoch; strictly increasing per node


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """A container as it was asked for. (pod_id, name, attempt) is unique among live rows.

    `config` is the serialized runtime.v1.ContainerConfig.
    """

    id: str
    pod_id: str
    name: str
    attempt: int
    config: bytes
    image_ref: str  # as the client typed it
    image_id: str  # sha256:<hex> of the image config
    snapshot_key: str
    log_path: str  # absolute, or "" when no log was asked for
    stop_signal: str  # e.g. "SIGTERM"; "" means SIGTERM
    created_at: int  # ns since the epoch
    checkpoint: str = ""  # what it is restored from: an archive's path or an image's name; "" for none


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount as the OCI and Task APIs describe it; `linux.mount` performs it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node of this host, or as a container is to have it: `source` is what it is called here then.

    `type` is "b", "c" or "p".
    """

    path: str
    type: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Intent:
    """A multi-step operation that was begun: written before the first step, cleared with the result.

    `data` is whatever that operation needs in order to be finished or undone, as JSON-able values.
    """

    object_id: str
    op: str  # "run", "create", "start", "update", "stop", "remove"
    since: int  # ns since the epoch
    data: dict[str, object]
