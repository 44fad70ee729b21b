"""Ranges of the host's users and groups for pods that have their own (hostUsers: false): never one for two pods.

Which pod has which is in the pods' records; here is what is known of all of them. Ids are given out from where
"Users, Groups, UIDs and GIDs on systemd Systems" has nobody: beyond those of a kubelet, of subuid(5) and of nspawn.
"""

from collections.abc import Collection
from typing import Final

from holdfast.agent.sync.convert import USERS

FIRST: Final = 0x7000_0000
END: Final = 0x7FFE_0000


class Users:
    """Within one event loop."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # by pod
        self._doubts: set[str] = set()

    def know(self, uid: str, first: int) -> None:
        """That a pod has a range, or for certain none: 0."""
        self._doubts.discard(uid)
        if first:
            self._taken[uid] = first

    def doubt(self, uid: str) -> None:
        """A pod may have any."""
        self._doubts.add(uid)

    def doubt_only(self, uids: Collection[str]) -> None:
        """The runtime was asked: whichever other pod may have any is known."""
        self._doubts = set(uids)

    def take(self, uid: str) -> int:
        """The first of the ids that are this pod's from now on; again the same. Raises LookupError for none."""
        if uid not in self._taken:
            if self._doubts:
                raise LookupError(f"nobody knows which users pod {min(self._doubts)} has")
            taken = set(self._taken.values())
            free = (first for first in range(FIRST, END, USERS) if first not in taken)
            if (first := next(free, 0)) == 0:
                raise LookupError("all ranges of users are taken")
            self._taken[uid] = first
        return self._taken[uid]

    def release(self, uid: str) -> None:
        """Nothing of the pod is left."""
        self._doubts.discard(uid)
        self._taken.pop(uid, None)
