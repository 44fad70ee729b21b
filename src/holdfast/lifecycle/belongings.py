"""Each thing that was seen, with its owner or why it has none: the other half of the diagnosis, pure as well."""

import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from holdfast.lifecycle.diagnosis import NODE, Finding, Fix, Owners, Verdict, check_rows
from holdfast.lifecycle.layout import CHECKPOINTS, RESTORES, VOLUMES
from holdfast.lifecycle.pod_files import pods, stranger, temporary
from holdfast.lifecycle.rows import Rows
from holdfast.lifecycle.survey import Entry, Survey
from holdfast.linux.table import Listed
from holdfast.model import gvisor
from holdfast.model.cgroups import id_in
from holdfast.model.spec import is_id
from holdfast.model.state import ProcessRef
from holdfast.runtime.streamers import KIND as STREAMER
from holdfast.runtime.streamers import owner_of

KEEPER: Final = "holdfast.workers.keeper"  # what every keeper and every process forked from one was started with
STATE_NAMES: Final = frozenset({
    "events.sock", "holdfast.sock", "holdfastd.toml", "oci", "pods", "rehearsal",
})  # fmt: skip
ROOT_NAMES: Final = frozenset({
    "lock", "content", "copies", "ingest", "snapshots", "pause", "quarantine", "lost+found", CHECKPOINTS, RESTORES,
    VOLUMES,
})  # fmt: skip
EVENTS: Final = "events.sock"
POD_MOUNTS: Final = ("shm", "ns/net", "ns/ipc", "ns/uts", "ns/pid", "ns/user")
FOREIGN_COMMANDS: Final = ("start", "delete")
KEEPERS: Final = "keeper."  # and what begins so: sockets, locks, log
STORE: Final = "holdfast.db"  # the same


def plan(survey: Survey, rows: Rows) -> list[Finding]:
    """Everything there is with its verdict; orphans in the order in which they must go."""
    owners = Owners(survey, rows)
    found = [
        *_Processes(owners).findings(),
        *_cgroups(owners),
        *_mounts(owners),
        *_state(owners),
        *pods(owners),
        *_root(owners),
        *_snapshots(owners),
        *check_rows(owners),
    ]
    found += [
        Finding("place", where, Verdict.UNKNOWN, f"it could not be looked at: {why}")
        for where, why in survey.unknown.items()
    ]
    order = {fix: number for number, fix in enumerate(Fix)}
    return sorted(found, key=lambda finding: order[finding.fix])  # stable: mounts stay in their order


class _Processes:
    """Ours by how they were started, by their cgroup, or by what a bundle says."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._survey = owners.survey
        self._alive = owners.processes.values()
        workers = self._survey.workers
        self._workers = {(one.pid, one.start_time): one for one in workers or ()}
        self._listed = workers is not None
        self._recorded = {
            (ref.pid, ref.start_time): id
            for id, pod in owners.rows.pods.items()
            if (ref := pod.status.shim) is not None and ref.boot_id == self._survey.boot_id
        }
        inits = self._survey.inits.items()
        self._inits = {(init.pid, init.start_time): id for id, init in inits if init.boot_id == self._survey.boot_id}
        loggers = self._survey.loggers.items()
        self._loggers = {(ref.pid, ref.start_time): id for id, ref in loggers if ref.boot_id == self._survey.boot_id}
        streamers = self._survey.streamers.items()
        self._streamers = {
            (ref.pid, ref.start_time): id for id, ref in streamers if ref.boot_id == self._survey.boot_id
        }
        ours = [one for one in self._alive if self._is_worker(one)]
        self._keepers = {one.pid for one in ours if one.name == "hf-keeper"}
        self._foreign = {one.pid: id for one in self._alive if (id := self._foreign_pod(one))}
        self._parents = {one.pid for one in ours} | {owners.rows.under_way.daemon} | self._foreign.keys()

    def findings(self) -> Iterator[Finding]:
        shims: dict[str, list[str]] = {}
        for one in self._alive:
            found = (
                self._contained(one)
                or self._foreign_shim(one)
                or self._worker(one)
                or self._runtime(one)
                or self._init(one)
            )
            if found is not None:
                yield found
                if found.kind == "shim" and found.id:
                    shims.setdefault(found.id, []).append(found.where)
        for id, wheres in shims.items():
            if len(wheres) > 1:
                why = f"the pod has {len(wheres)} shims"
                yield Finding("pod", id, Verdict.INCONSISTENT, why, self._owners.name(id), id)

    def _contained(self, one: Listed) -> Finding | None:
        for path in one.cgroups:
            if (found := self._owners.in_cgroup(path)) is None:
                continue
            id, ours = found
            where, why = _pid(one), f"it is in cgroup {path}"
            if self._owners.over(id):
                why = "it lives, and what it belongs to is over"
                return Finding("process", where, Verdict.INCONSISTENT, why, self._owners.name(id), id)
            if self._owners.name(id):
                return Finding("process", where, Verdict.OK, why, self._owners.name(id), id)
            if ours and is_id(id):
                why = f"no pod or container has the id of its cgroup {path}"
                return Finding("process", where, Verdict.ORPHAN, why, "", id, Fix.KILL, self._ref(one))
            return Finding("process", where, Verdict.UNKNOWN, f"{why}, which is not known to be ours alone")
        return None

    def _worker(self, one: Listed) -> Finding | None:
        """A keeper, or whatever was forked from one."""
        if not self._is_worker(one):
            return None
        where, identity = _pid(one), (one.pid, one.start_time)
        listed = self._workers.get(identity)
        if identity in self._recorded or (listed is not None and listed.kind == "shim"):
            return self._shim(one, listed.id if listed is not None else self._recorded[identity])
        if identity in self._loggers:
            return self._logger(one, self._loggers[identity])
        if identity in self._streamers or (listed is not None and listed.kind == STREAMER):
            return self._streamer(one, listed.id if listed is not None else self._streamers[identity])
        if listed is not None:
            ok = Finding("process", where, Verdict.OK, f"{listed.kind} {listed.id}", NODE)
            if listed.kind == "logger":
                return self._logger(one, listed.id)
            return self._unpacker(one) if listed.kind == "unpack" else ok
        if one.name in ("hf-keeper", "hf-template", "hf-pod-init", "hf-tls") or not one.name.startswith("hf-"):
            return Finding("process", where, Verdict.OK, one.name, NODE)
        if one.parent in self._parents - self._keepers:
            return Finding("process", where, Verdict.OK, f"it works for pid {one.parent}", NODE)
        if not self._listed and self._keepers:
            return Finding("process", where, Verdict.UNKNOWN, "the keeper does not answer, so nobody knows whose it is")
        if not self._survey.looked(f"pid {one.parent}"):
            return Finding("process", where, Verdict.UNKNOWN, f"its parent {one.parent} could not be looked at")
        why = "no keeper lists it, no pod's row names it, and its parent is not one of ours"
        kind = "shim" if one.name == "hf-shim" else "process"
        return Finding(kind, where, Verdict.ORPHAN, why, fix=Fix.KILL, process=self._ref(one))

    def _foreign_pod(self, one: Listed) -> str:
        """The pod that a foreign shim was started for, by the events socket that it was given; "" for others."""
        if not any(os.path.realpath(word) == f"{self._survey.state}/{EVENTS}" for word in _after(one.argv, "-address")):
            return ""
        return next(iter(_after(one.argv, "-id")), "")

    def _foreign_shim(self, one: Listed) -> Finding | None:
        """A foreign shim, or one of its commands, which ends by itself."""
        if (id := self._foreign.get(one.pid)) is None:
            return None
        if one.argv[-1] in FOREIGN_COMMANDS:
            return Finding("process", _pid(one), Verdict.OK, f"{one.argv[-1]} of {id}", NODE)
        return self._shim(one, id)

    def _shim(self, one: Listed, id: str) -> Finding:
        where, owner = _pid(one), self._owners.name(id)
        if not owner:
            why = f"no pod has the id {id}"
            return Finding("shim", where, Verdict.ORPHAN, why, "", id, Fix.END_SHIM, self._ref(one))
        if self._owners.over(id):
            return Finding("shim", where, Verdict.INCONSISTENT, "its pod is stopped", owner, id)
        return Finding("shim", where, Verdict.OK, "", owner, id)

    def _logger(self, one: Listed, id: str) -> Finding:
        where, owner = _pid(one), self._owners.name(id)
        if not owner:
            return Finding(
                "logger", where, Verdict.ORPHAN, f"no container has the id {id}", "", id, Fix.KILL, self._ref(one)
            )
        return Finding("logger", where, Verdict.OK, "", owner, id)

    def _streamer(self, one: Listed, id: str) -> Finding:
        where, owner = _pid(one), self._owners.name(owner_of(id))
        if not owner:
            why = f"no pod or container has the id of its session {id}"
            return Finding("streamer", where, Verdict.ORPHAN, why, "", owner_of(id), Fix.KILL, self._ref(one))
        return Finding("streamer", where, Verdict.OK, f"session {id}", owner, owner_of(id))

    def _unpacker(self, one: Listed) -> Finding:
        if self._owners.rows.under_way.arriving:
            return Finding("unpacker", _pid(one), Verdict.OK, "an image is coming in", NODE)
        why = "no image is coming in"
        return Finding("unpacker", _pid(one), Verdict.ORPHAN, why, fix=Fix.KILL, process=self._ref(one))

    def _runtime(self, one: Listed) -> Finding | None:
        """A command of an OCI runtime, by the directory it was told to use."""
        oci = f"{self._survey.state}/oci/"
        if not any(os.path.realpath(word).startswith(oci) for word in _after(one.argv, "--root")):
            return None
        where, command = _pid(one), " ".join(one.argv)
        if one.parent in self._parents - self._keepers:
            return Finding("runtime command", where, Verdict.OK, command, NODE)
        if not self._survey.looked(f"pid {one.parent}"):
            return Finding("runtime command", where, Verdict.UNKNOWN, f"its parent {one.parent} could not be looked at")
        why = f"whoever ran it is gone: {command}"
        return Finding("runtime command", where, Verdict.ORPHAN, why, fix=Fix.KILL, process=self._ref(one))

    def _init(self, one: Listed) -> Finding | None:
        """The init of a bundle that has no row, wherever its cgroup is."""
        if (id := self._inits.get((one.pid, one.start_time))) is None:
            return None
        why = f"it was started from the bundle of {id}, which has no row"
        return Finding("process", _pid(one), Verdict.ORPHAN, why, "", id, Fix.KILL, self._ref(one))

    def _is_worker(self, one: Listed) -> bool:
        if KEEPER not in one.argv:
            return False
        return any(os.path.realpath(word) == self._survey.state for word in _after(one.argv, "--state"))

    def _ref(self, one: Listed) -> ProcessRef:
        return ProcessRef(one.pid, one.start_time, self._survey.boot_id)


def _after(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[number + 1] for number, word in enumerate(argv[:-1]) if word == flag]


def _pid(one: Listed) -> str:
    return f"pid {one.pid} ({one.name})"


def _cgroups(owners: Owners) -> Iterator[Finding]:
    above = {str(outer) for parent in owners.parents for outer in PurePosixPath(parent).parents}
    for path in owners.survey.cgroups:
        if (id := owners.parents.get(path, "")) != "":
            yield Finding("cgroup", path, Verdict.OK, "", owners.name(id), id)
            continue
        if path in above:
            yield Finding("cgroup", path, Verdict.OK, "pods have theirs below it", NODE)
            continue
        id, ours = owners.in_cgroup(path) or (id_in(os.path.basename(path)), True)
        if owners.over(id):
            why = "it is there, and what it belongs to is over"
            yield Finding("cgroup", path, Verdict.INCONSISTENT, why, owners.name(id), id)
        elif owners.name(id):
            yield Finding("cgroup", path, Verdict.OK, "", owners.name(id), id)
        elif not (ours and is_id(id)):
            yield Finding("cgroup", path, Verdict.UNKNOWN, "it is not known to be ours alone, and no row names it")
        elif id_in(os.path.basename(path)) == id:  # and not one below it, which goes with it
            yield owners.thing("cgroup", path, id, fix=Fix.REMOVE_CGROUP)


def _mounts(owners: Owners) -> Iterator[Finding]:
    survey, snapshots = owners.survey, _directories(owners.rows)
    for entry in survey.mounts:
        kind = "namespace" if entry.fstype == "nsfs" else "mount"
        for top in (f"{survey.state}/pods/", f"{survey.root}/snapshots/", f"{survey.root}/{VOLUMES}/"):
            if entry.target.startswith(top):
                first, _, rest = entry.target[len(top) :].partition("/")
                break
        else:
            yield Finding(kind, entry.target, Verdict.UNKNOWN, "nothing of ours is mounted there; it is left alone")
            continue
        if top.endswith(f"/{VOLUMES}/"):
            yield owners.thing(kind, entry.target, first, fix=Fix.DETACH)
            continue
        if top.startswith(survey.root):
            if first in snapshots:
                yield Finding(kind, entry.target, Verdict.OK, "in the directory of a snapshot", snapshots[first])
            else:
                why = f"no snapshot has the directory {first}"
                yield Finding(kind, entry.target, Verdict.ORPHAN, why, fix=Fix.DETACH)
            continue
        inner = rest.partition("/")[0]
        id = inner if is_id(inner) else first
        known = rest in (*POD_MOUNTS, f"{id}/rootfs") or rest.startswith(f"{id}/volumes/")
        if is_id(first) and owners.over(id) and known:
            why = "it is mounted, and what it belongs to is over"
            yield Finding(kind, entry.target, Verdict.INCONSISTENT, why, owners.name(id), id)
        elif is_id(first):
            yield owners.thing(kind, entry.target, id, fix=Fix.DETACH)
        else:
            yield Finding(kind, entry.target, Verdict.UNKNOWN, "nothing of ours is mounted there; it is left alone")


def _state(owners: Owners) -> Iterator[Finding]:
    survey = owners.survey
    top = [entry for entry in survey.names(survey.state) if not entry.name.startswith(KEEPERS)]
    yield from _top(survey.state, top, STATE_NAMES)
    for entry in survey.names(f"{survey.state}/oci"):
        runtime = f"{survey.state}/oci/{entry.name}"
        for one in (entry for entry in survey.names(runtime) if entry.name != ".cache"):  # of crun's compiled filters
            where = f"{runtime}/{one.name}"
            id = gvisor.owner_of(one.name) or one.name
            if not is_id(id):
                yield stranger(where, one)
            elif owners.over(id):
                why = "the runtime still knows it, and it is over"
                yield Finding("runtime state", where, Verdict.INCONSISTENT, why, owners.name(id), id)
            else:
                yield owners.thing("runtime state", where, id)


def _root(owners: Owners) -> Iterator[Finding]:
    survey, rows = owners.survey, owners.rows
    top = [entry for entry in survey.names(survey.root) if not entry.name.startswith(STORE)]
    yield from _top(survey.root, top, ROOT_NAMES)
    for entry in survey.names(f"{survey.root}/ingest"):
        where = f"{survey.root}/ingest/{entry.name}"
        if entry.name in rows.under_way.transfers:
            yield Finding("transfer", where, Verdict.OK, "it is coming in", NODE)
        else:
            yield Finding("transfer", where, Verdict.ORPHAN, "nobody is transferring it any more", fix=Fix.DELETE)
    for entry in survey.names(f"{survey.root}/copies"):
        where = f"{survey.root}/copies/{entry.name}"
        if f"sha256:{entry.name}" in rows.images:
            yield Finding("copy", where, Verdict.OK, "", "an image")
        elif is_id(entry.name):
            yield owners.thing("copy", where, entry.name)
        elif entry.age is not None:
            yield from temporary(where, entry)
        else:
            yield stranger(where, entry)
    yield from _checkpoints(owners)
    blobs = f"{survey.root}/content/sha256"
    for entry in survey.names(blobs):
        digest = f"sha256:{entry.name}"
        if not is_id(entry.name):
            yield stranger(f"{blobs}/{entry.name}", entry)
        elif digest in rows.blobs - rows.loose_blobs or rows.under_way.arriving:
            yield Finding("blob", digest, Verdict.OK, "", "an image")
        elif digest not in rows.blobs and digest not in rows.under_way.abandoned:
            yield Finding("blob", digest, Verdict.OK, "of a pull that failed, kept for the next attempt", NODE)
        else:
            yield Finding("blob", digest, Verdict.ORPHAN, "no image refers to it", fix=Fix.COLLECT)


def _checkpoints(owners: Owners) -> Iterator[Finding]:
    """What is being written of pods and containers, of what they will be restored, and volumes of those that were."""
    survey, rows = owners.survey, owners.rows
    for entry in survey.names(f"{survey.root}/{VOLUMES}"):
        where = f"{survey.root}/{VOLUMES}/{entry.name}"
        yield owners.thing("volumes", where, entry.name) if is_id(entry.name) else stranger(where, entry)
    for kind, what in ((CHECKPOINTS, "checkpoint"), (RESTORES, "restore")):
        for entry in survey.names(f"{survey.root}/{kind}"):
            where = f"{survey.root}/{kind}/{entry.name}"
            owner = rows.containers.get(entry.name) or rows.pods.get(entry.name)
            if not is_id(entry.name):
                yield stranger(where, entry)
            elif kind == RESTORES and entry.name in rows.under_way.restores:
                yield Finding(what, where, Verdict.OK, "it is being read", NODE)
            elif kind == CHECKPOINTS and owner is not None and what not in owner.intents:
                yield Finding(what, where, Verdict.ORPHAN, "nobody is writing it", "", entry.name, Fix.DELETE)
            else:
                yield owners.thing(what, where, entry.name)


def _snapshots(owners: Owners) -> Iterator[Finding]:
    survey, rows = owners.survey, owners.rows
    directories, top = _directories(rows), f"{survey.root}/snapshots"
    there = set()
    for entry in survey.names(top):
        where = f"{top}/{entry.name}"
        there.add(entry.name)
        if not entry.name.isdigit():
            yield stranger(where, entry)
        elif entry.name in directories or int(entry.name) in rows.under_way.directories:
            yield Finding("snapshot directory", where, Verdict.OK, "", directories.get(entry.name, NODE))
        else:
            yield Finding("snapshot directory", where, Verdict.ORPHAN, "no snapshot has it", fix=Fix.DELETE)
    for row in rows.snapshots:
        owner = rows.snapshot_owner(row)
        if owner is None and not rows.under_way.arriving:
            fix = Fix.COLLECT if row.kind == "committed" else Fix.DROP_SNAPSHOT
            yield Finding("snapshot", row.key, Verdict.ORPHAN, "no image and no container uses it", fix=fix)
        elif survey.looked(top) and str(row.directory) not in there:
            why = f"its directory {row.directory} is missing"
            yield Finding("snapshot", row.key, Verdict.INCONSISTENT, why, owner or NODE)
        else:
            yield Finding("snapshot", row.key, Verdict.OK, "", owner or NODE)


def _directories(rows: Rows) -> dict[str, str]:
    """Names of the directories of snapshots that have a row, and whose they are."""
    return {str(row.directory): rows.snapshot_owner(row) or row.key for row in rows.snapshots}


def _top(directory: str, entries: tuple[Entry, ...] | list[Entry], known: frozenset[str]) -> Iterator[Finding]:
    for entry in entries:
        if entry.name in known:
            yield Finding("file", f"{directory}/{entry.name}", Verdict.OK, "", NODE)
        else:
            yield stranger(f"{directory}/{entry.name}", entry)
