"""What is wanted, from pods, and what there is, from what is found on the disk and among the mounts.

What is found is uncertain: it may be half of a volume. It is one to rely on once it was set up by this very process,
which finds what is there and makes what is missing; nothing is taken for what its name says.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.quantity import Quantity
from holdfast.agent.pod.spec import Pod
from holdfast.agent.pod.volumes import HostPath, Volume
from holdfast.agent.volumes import journal
from holdfast.agent.volumes.emptydir import EmptyDir
from holdfast.agent.volumes.ownership import Group
from holdfast.agent.volumes.paths import EMPTY_DIR, TRASH, Key, Paths, listed
from holdfast.agent.volumes.payload import Payload, digest, render
from holdfast.linux import mount

log = logging.getLogger(__name__)

_KINDS: Final = {
    "empty_dir": EMPTY_DIR,
    "host_path": "host-path",
    "config_map": "configmap",
    "secret": "secret",
    "downward_api": "downward-api",
    "projected": "projected",
}
ON_DISK: Final = frozenset({"configmap"})  # of volumes of files; the others are memory, as a kubelet's are
HUGE: Final = "hugepages-"


# -- what is wanted


@dataclass(frozen=True, slots=True)
class Files:
    payload: Payload
    in_memory: bool
    group: int | None = None


Content = EmptyDir | HostPath | Files


@dataclass(frozen=True, slots=True)
class Desired:
    """`shape` is what cannot be changed while containers use the volume, `version` what can. `problem` is why it cannot
    be set up for now; there is neither shape nor content then."""

    key: Key
    shape: str
    version: str = ""
    content: Content | None = None
    problem: str = ""


def desired(pod: Pod, facts: Facts) -> list[Desired]:
    """The volumes of a pod, but for images, which are the runtime's."""
    return [_desired(pod, one, facts) for one in pod.spec.volumes if one.image is None]


def key_of(pod: Pod, volume: Volume) -> Key:
    return Key(
        pod.metadata.uid, next(kind for name, kind in _KINDS.items() if getattr(volume, name) is not None), volume.name
    )


def is_read_only(key: Key) -> bool:
    """Whether containers may only read in it: files that follow their source are nobody else's to write."""
    return key.kind not in (EMPTY_DIR, _KINDS["host_path"])


def _desired(pod: Pod, volume: Volume, facts: Facts) -> Desired:
    key = key_of(pod, volume)
    context = pod.spec.security_context
    group = context.fs_group
    if volume.host_path is not None:
        return Desired(key, key.kind, f"{volume.host_path.type}:{volume.host_path.path}", volume.host_path)
    try:
        if volume.empty_dir is not None:
            owner = None if group is None else Group(group, context.fs_group_change_policy == "OnRootMismatch")
            medium, limit = volume.empty_dir.medium, _limit(volume)
            page = _page(pod, medium) if medium.startswith("HugePages") else 0
            size = _least(limit, facts.memory, _allowed(pod)) if medium == "Memory" else limit
            # What a machine and its containers may have is not the shape: that may change, and the volume is to stay.
            shape = f"{key.kind}:{medium}:{limit or ''}:{page}"
            return Desired(key, shape, str(group), EmptyDir(medium, size, page, owner))
        payload = render(pod, volume, facts)
    except ValueError as exc:
        return Desired(key, "", problem=str(exc))
    return Desired(key, key.kind, f"{digest(payload)}:{group}", Files(payload, key.kind not in ON_DISK, group))


def _limit(volume: Volume) -> int | None:
    assert volume.empty_dir is not None
    return volume.empty_dir.size_limit.whole or None if volume.empty_dir.size_limit is not None else None


def _allowed(pod: Pod) -> int | None:
    """What the containers may have of memory together, for which what is in a tmpfs counts; None without a limit."""
    limits = [one.resources.limits.get("memory") for one in (*pod.spec.init_containers, *pod.spec.containers)]
    return sum(one.whole for one in limits if one is not None) if all(one is not None for one in limits) else None


def _least(*bounds: int | None) -> int | None:
    return min((one for one in bounds if one), default=None)


def _page(pod: Pod, medium: str) -> int:
    """Of HugePages-SIZE, else of the one size that the containers have asked for."""
    if size := medium.partition("-")[2]:
        return Quantity.parse(size).whole
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    asked = {name for one in containers for name in (*one.resources.limits, *one.resources.requests)}
    sizes = sorted(name.removeprefix(HUGE) for name in asked if name.startswith(HUGE))
    if len(sizes) != 1:
        raise ValueError(f"medium HugePages: the containers ask for {len(sizes)} sizes of huge pages, not for one")
    return Quantity.parse(sizes[0]).whole


# -- what there is


class State(Enum):
    UNCERTAIN = "uncertain"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Actual:
    """`shape` is "" for what nobody has written down. `path` is what containers get, when it is READY."""

    state: State = State.UNCERTAIN
    shape: str = ""
    version: str = ""
    path: str = ""


def find(paths: Paths) -> dict[Key, Actual]:
    """All that is there at start, when nobody is at work yet. Raises OSError."""
    found: dict[Key, Actual] = {}
    for pod in listed(paths.pods):
        try:
            found |= {key: Actual() for path in _belongings(pod) if (key := paths.key_of(path)) is not None}
        except OSError as exc:  # nothing of it will be torn down
            log.warning("cannot learn what volumes there are of pod %s: %s", pod.name, exc)
    for place in (*map(str, listed(paths.trash)), *(one.target for one in mount.mountinfo())):
        if (key := paths.key_of(place)) is not None:
            found[key] = Actual()
    for key in found:
        with contextlib.suppress(OSError):  # it stays one of which nobody knows how it was made
            entry = journal.load(paths, key)
            found[key] = Actual(shape=entry.shape if entry is not None else "")
    pods = {key.uid for key in found}
    for pod in listed(paths.pods):
        if pod.name not in pods and paths.is_pod(pod.name):
            journal.prune(paths, pod.name)
    return without_covered(found)


def _belongings(pod: Path) -> Iterator[Path]:
    """All names of volumes in a pod's directory."""
    journal.sweep(pod / "volumes.d")
    for plugin in listed(pod / "volumes"):
        yield from listed(plugin)
    yield from listed(pod / "volumes.d")
    yield from listed(pod / "volume-subpaths")


def without_covered(found: Mapping[Key, Actual]) -> dict[Key, Actual]:
    """Whoever tears a volume down clears the trash of it as well: that is nothing of its own."""
    known = {(key.uid, key.name) for key in found if key.kind != TRASH}
    return {key: one for key, one in found.items() if key.kind != TRASH or (key.uid, key.name) not in known}
