"""Pods of which the agent has no record that it could act by: lost, or there and not to be read. Pure.

That a pod is not to be any more is known from its record and its manifest together. Who has lost the one may have been
given another directory for the other, too. So nothing of such pods is ended or deleted: they are shown, with what can
be done about them. The exception is a sandbox in which there is no container: nobody can miss it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

LOST: Final = "RecordLost"
UNREADABLE: Final = "RecordUnreadable"


@dataclass(frozen=True, slots=True)
class Made:
    """A sandbox that an agent has made; `is_unused`: by this agent's root, and there is no container in it."""

    id: str
    uid: str
    namespace: str
    name: str
    is_unused: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """One pod; `sandboxes` are ids. `why` and what to do are for people, `reason` is a word."""

    uid: str
    namespace: str
    name: str
    reason: str
    why: str
    sandboxes: tuple[str, ...] = ()
    is_unused: bool = False


def find(made: Iterable[Made], known: Collection[str], damaged: Mapping[str, str]) -> dict[str, Orphan]:
    """By uid. `known` are the uids of pods with a record, `damaged` says why one cannot be read."""
    by_uid: dict[str, list[Made]] = {}
    for one in made:
        if one.uid not in known:
            by_uid.setdefault(one.uid, []).append(one)
    return {uid: _orphan(uid, by_uid.get(uid, []), damaged.get(uid, "")) for uid in sorted({*by_uid, *damaged})}


def _orphan(uid: str, made: list[Made], damage: str) -> Orphan:
    ids = tuple(sorted(one.id for one in made))
    namespace, name = (made[0].namespace, made[0].name) if made else ("", uid)
    back = "put its manifest back to have the agent look after it again"
    end = f"`holdfast rmp -f {' '.join(one[:13] for one in ids)}` ends it" if ids else ""
    if damage:
        ways = [back, "or end it: delete that file" + (f", and {end}" if end else "")]
        return Orphan(uid, namespace, name, UNREADABLE, f"{damage}: what it has is left alone; {', '.join(ways)}", ids)
    why = f"the agent has no record of it: what it has is left alone; {back}, or {end}"
    return Orphan(uid, namespace, name, LOST, why, ids, all(one.is_unused for one in made))


def shown(orphan: Orphan) -> dict[str, Any]:
    """As much of a v1 Pod as is known."""
    meta = {"name": orphan.name, "namespace": orphan.namespace, "uid": orphan.uid}
    status = {"phase": "Unknown", "reason": orphan.reason, "message": orphan.why, "conditions": []}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}, "status": status}
