"""The volumes of gVisor pods on this host: where they are, whether they may be taken over, and what is left of them.

EmptyDirs, known by where kubelets and our agent have them: ROOT/pods/UID/volumes/PLUGIN/NAME, with ROOT one of
`volume_roots`, or where we have made those of a restored pod.
"""

import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Pod
from holdfast.lifecycle.pod_archive import EMPTY_DIRS
from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.gvisor import FILESTORE
from holdfast.oci import gvisor
from holdfast.oci.gvisor import Volume

log = logging.getLogger(__name__)

PASSED_OVER: Final = "lost+found"


class GvisorVolumes:
    """Of pods whose handler is gVisor's. All of it blocks."""

    def __init__(self, roots: Sequence[Path], layout: Layout) -> None:
        self._roots = roots
        self._layout = layout

    def placed(self, pod: Pod) -> list[Volume]:
        """Those that the pod's own kernel keeps, with their directories. Raises FailedPrecondition, InvalidArgument."""
        return [self._place(pod, one) for one in gvisor.volumes(pod.config.annotations)]

    def take_over(self, pod: Pod) -> list[Volume]:
        """The same for a pod that begins: what a volume has already must not be gone without a word.

        Raises FailedPrecondition that names it.
        """
        found = self.placed(pod)
        for one in found:
            if not one.brings_in and (there := existing(one)):
                why = f"it has files already, as {there[0]!r}, which the pod would not see"
                ways = "take them along with shared-disk,bring-in, or leave the volume on the host"
                raise FailedPrecondition(f"config.annotations: volume {one.name}: {why}; {ways}")
        return found

    def clear(self, pod: Pod) -> None:
        """Remove what a sandbox that has ended, however it did, has left in volumes. Idempotent."""
        try:
            volumes = gvisor.volumes(pod.config.annotations)
        except InvalidArgument:  # which is why it has never begun
            return
        for one in volumes:
            for directory in self._candidates(pod, one):
                _remove_filestore(directory, pod.meta.id)

    def _place(self, pod: Pod, one: Volume) -> Volume:
        found = self._candidates(pod, one)
        if len(found) != 1:
            where = ", ".join(map(str, found or self._roots))
            what = "several volumes" if found else "no volume"
            raise FailedPrecondition(f"config.annotations: pod {pod.meta.uid} has {what} {one.name}: {where}")
        return replace(one, source=os.path.realpath(found[0], strict=True))

    def _candidates(self, pod: Pod, one: Volume) -> list[Path]:
        if any("/" in part or part in ("", ".", "..") for part in (pod.meta.uid, one.name)):
            return []
        roots = [*self._roots, self._layout.volumes(pod.meta.id)]
        tops = [root / "pods" / pod.meta.uid / "volumes" for root in roots]
        places = [top / plugin / one.name for top in tops for plugin in EMPTY_DIRS]
        return [place for place in places if place.is_dir()]


def existing(one: Volume) -> list[str]:
    """The names of what a volume has, but for files of gVisor's and an ext4's own directory."""
    return [name for name in sorted(os.listdir(one.source)) if not name.startswith(FILESTORE) and name != PASSED_OVER]


def _remove_filestore(directory: Path, pod_id: str) -> None:
    """Only a regular file of that very name, in that very directory, whatever else somebody has put there."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = f"{FILESTORE}{pod_id}"
        if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
            log.info("removed what pod %s has left of its volume %s", pod_id, directory)
    except FileNotFoundError:
        return
    finally:
        os.close(fd)
