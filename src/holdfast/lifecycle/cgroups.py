"""The cgroups that are ours: made, limited and removed, by ourselves or by systemd, whichever a pod's parent says.

What makes those of containers are the OCI runtimes; they are removed here only where that was left undone.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from holdfast.lifecycle.tasks import apart, in_thread
from holdfast.linux import cgroup
from holdfast.model import cgroups
from holdfast.model.errors import FailedPrecondition, HoldfastError, Unavailable
from holdfast.model.spec import PodMetadata
from holdfast.oci.cgroup_files import seen, writes
from holdfast.oci.unit_properties import properties
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.systemd import units

log = logging.getLogger(__name__)

TRIES: Final = 50
DEPTH: Final = 1000  # deeper than any path
PAUSE: Final = 0.01  # an ended process leaves its cgroup a moment after it can be waited for


class Cgroups:
    """`root` is the parent of pods that name none, a path or a slice, as `driver` has them."""

    def __init__(self, driver: str, root: str) -> None:
        self.driver = driver
        self._root = root
        self._mode = cgroup.mode()

    @property
    def root(self) -> str:
        """Where it is."""
        return cgroups.parent_path(self._root)

    def parent(self, asked: str, pod_id: str) -> str:
        """The parent of a new pod's cgroups, as its row has it. Raises InvalidArgument for one that cannot be."""
        return (
            cgroups.check_parent(asked, self.driver, "config.linux.cgroup_parent")
            if asked
            else cgroups.below(self._root, pod_id)
        )

    async def owned(self, parent: str, others: Iterable[PodMetadata]) -> int:
        """How many at the end of the parent's path are ours: that nobody has made, or we for one of the `others`."""
        ours = {path for meta in others for path in cgroups.ends(meta.cgroup_parent, meta.owns_cgroup)}
        return await in_thread(_owned, cgroups.ends(parent, DEPTH), ours)

    async def create(self, meta: PodMetadata) -> None:
        """Make the pod's cgroup, in every hierarchy. Idempotent. Raises OSError and what systemd says."""
        parent = meta.cgroup_parent
        if cgroups.is_slice(parent) and meta.owns_cgroup:
            await apart(units.start_slice, parent, f"pod {meta.namespace}/{meta.name}")
        await in_thread(cgroup.create, cgroups.parent_path(parent))

    async def limit(
        self, meta: PodMetadata, limits: pb.LinuxContainerResources, before: pb.LinuxContainerResources
    ) -> None:
        """Limit the pod as a whole; a failure leaves its cgroup as it was. Raises FailedPrecondition, Unavailable."""
        path = cgroups.parent_path(meta.cgroup_parent)
        found = writes(limits, self._mode, before)
        if not found:
            return
        unit = meta.cgroup_parent if cgroups.is_slice(meta.cgroup_parent) else ""
        try:
            if unit:
                await apart(units.set_properties, unit, properties(limits, self._mode, before))
            wanted = [one for one in found if one.needed or cgroup.has(path, one.controller, one.name)]
            changes = [(one.controller, one.name, one.value) for one in wanted]
            await in_thread(cgroup.change, path, changes)
        except OSError as exc:
            if unit:
                with contextlib.suppress(HoldfastError):
                    await apart(units.set_properties, unit, properties(before, self._mode, limits))
            kind = Unavailable if exc.errno in (errno.EBUSY, errno.EINTR, errno.ENOMEM) else FailedPrecondition
            raise kind(f"cannot limit cgroup {path}: {PurePosixPath(str(exc.filename)).name}: {exc.strerror}") from exc

    async def seen(
        self, path: str, limits: pb.LinuxContainerResources, before: pb.LinuxContainerResources
    ) -> pb.LinuxContainerResources:
        """What the files that are about to change say now; of a cgroup that is not there nothing."""
        found = {}
        for one in writes(limits, self._mode, before):
            if (text := await in_thread(cgroup.read, path, one.controller, one.name)) is not None:
                found[one.name] = text
        return seen(found, self._mode)

    async def remove(self, path: str, *, kill: bool = False) -> None:
        """Remove a cgroup with those below it; `kill` what is in it first. Idempotent.

        Raises Unavailable while somebody is in it.
        """
        if not await in_thread(cgroup.exists, path):
            return None
        if kill:
            await apart(cgroup.kill, path)
        unit = cgroups.unit_of(path)
        for _ in range(TRIES):
            try:
                if unit:
                    await self._stop(unit, path)
                return await in_thread(cgroup.remove, path)
            except OSError as exc:
                busy = exc
                await asyncio.sleep(PAUSE)
        raise Unavailable(f"cannot remove cgroup {path}: {busy.strerror}") from busy

    async def _stop(self, unit: str, path: str) -> None:
        """End a unit in which nobody is: systemd would end whoever that was. Raises OSError EBUSY."""
        if await in_thread(cgroup.populated, path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        try:
            await apart(units.stop, unit)
        except HoldfastError as exc:  # the cgroup of a unit that systemd does not have goes all the same
            log.warning("%s", exc)

    async def remove_pod(self, meta: PodMetadata, others: Iterable[PodMetadata], living: Iterable[PodMetadata]) -> None:
        """Remove the pod's cgroup where it is ours, and what was made above it. The last who uses one takes it away:
        nobody does while it is a `living` one's of the others."""
        if not meta.owns_cgroup:
            return
        path, *above = cgroups.ends(meta.cgroup_parent, meta.owns_cgroup)
        if not _is_one_of(path, others):
            await self.remove(path)
        elif not _is_one_of(path, living) and await in_thread(_idle, path):
            with contextlib.suppress(Unavailable):  # one of the others has begun to use it
                await self.remove(path)
        for one in above:
            await in_thread(cgroup.remove_if_empty, one)
        if str(PurePosixPath(path).parent) == self.root:
            await self.remove_root()

    async def remove_root(self) -> None:
        """Remove the parent of our pods unless there is something in it."""
        unit = cgroups.unit_of(self.root)
        if unit != "" and await in_thread(_idle, self.root):
            with contextlib.suppress(HoldfastError):
                await apart(units.stop, unit)
        await in_thread(cgroup.remove_if_empty, self.root)


def _owned(outwards: list[str], ours: set[str]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda path: path in ours or not cgroup.exists(path), outwards))


def _is_one_of(path: str, pods: Iterable[PodMetadata]) -> bool:
    """Whether a cgroup is that of one of these pods, or above it."""
    return any(f"{cgroups.parent_path(one.cgroup_parent)}/".startswith(f"{path}/") for one in pods)


def _idle(path: str) -> bool:
    """Whether there is a cgroup with nothing in it."""
    return cgroup.exists(path) and not cgroup.children(path) and not cgroup.populated(path)
