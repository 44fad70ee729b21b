"""The guard of what others have mounted in a pod's volumes: it is out of them before a stop or a removal is answered.

A kubelet deletes an emptyDir by a plain recursive delete as soon as it believes that the pod is gone, and with it
whatever is still mounted there: a share that a container has mounted with bidirectional propagation, or somebody by
hand. Secrets, config maps and the like are directories of the same kind to it.

Volumes are known by where they are, which is the kubelet's to say and everybody's to rely on, whatever its root is:
.../pods/UID/volumes/kubernetes.io~KIND/NAME. So nothing need be remembered of containers that were removed before
their pod, and what an earlier daemon has not seen is found all the same.
"""

import logging
import re
from collections.abc import Iterable
from typing import Final

from holdfast.lifecycle.events import Kind
from holdfast.lifecycle.objects import Pod
from holdfast.lifecycle.tasks import apart, within
from holdfast.lifecycle.world import World
from holdfast.linux import mount, nested
from holdfast.linux.inject import crashpoint
from holdfast.linux.mount import MountEntry
from holdfast.model.errors import FailedPrecondition

log = logging.getLogger(__name__)

DELETED_PLAINLY: Final = ("empty-dir", "configmap", "secret", "downward-api", "projected")
SECONDS: Final = 10.0


def volumes_with_mounts(uid: str, mounts: Iterable[MountEntry]) -> list[str]:
    """The volumes of the pod with this uid that something is mounted at or below, each once, in their order."""
    if not uid or "/" in uid:
        return []
    kinds = "|".join(DELETED_PLAINLY)
    volume = re.compile(rf"(/.+?)?/pods/{re.escape(uid)}/volumes/kubernetes\.io~(?:{kinds})/[^/]+")
    found = (volume.match(one.target) for one in mounts)
    return list(dict.fromkeys(match[0] for match in found if match is not None))


class Guard:
    """Asked by whoever ends a pod, once nothing of it runs."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def clear(self, pod: Pod) -> None:
        """Detach what is mounted in the pod's volumes, and say so.

        Nothing is done while the same pod has another sandbox that is not stopped: what is mounted may be in its use.
        Raises FailedPrecondition while something does not go, DeadlineExceeded when that cannot be told.
        """
        if self._is_in_use(pod):
            return
        work = within(SECONDS, apart(_clear, pod.meta.uid), f"look for mounts in the volumes of pod {pod.meta.id}")
        detached, kept = await work
        for one in detached:
            what = f"{one.target} ({one.fstype} from {one.source}, {one.root} of it)"
            log.warning("detached what was mounted in a volume of pod %s: %s", pod.meta.id, what)
            self._world.tell(Kind.DETACHED, pod, reason=what)
        if kept is not None:
            why = f"{kept.filename}, mounted in its volume, {kept.strerror}"
            raise FailedPrecondition(f"cannot stop pod sandbox {pod.meta.id} yet: {why}; unmount it") from kept
        crashpoint("guard.cleared")

    def _is_in_use(self, pod: Pod) -> bool:
        named = (pod.meta.namespace, pod.meta.name, pod.meta.uid)
        others = (one for one in self._world.pods.values() if one is not pod and not one.status.stopped_at)
        return any((one.meta.namespace, one.meta.name, one.meta.uid) == named for one in others)


def _clear(uid: str) -> tuple[list[MountEntry], OSError | None]:
    """(what was detached, why something was not). Each volume gets its turn."""
    detached: list[MountEntry] = []
    kept = None
    for volume in volumes_with_mounts(uid, mount.mountinfo()):
        try:
            detached += nested.detach_strangers(volume)
        except OSError as exc:
            kept = exc
    return detached, kept
