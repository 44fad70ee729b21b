"""What of all that was seen is owned, by whom, and what is not as it should be. Pure: survey and rows in, findings out.

Four verdicts. ok: it has an owner. orphan: it is ours and nothing owns it any more, so it can go. inconsistent: it does
not agree with its owner's row; that is for settling and retries to mend, not for a sweep. unknown: it could not be
looked at, or is not known to be ours, so nothing is done to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from holdfast.lifecycle.rows import ContainerRow, PodRow, Rows
from holdfast.lifecycle.survey import Survey
from holdfast.model.cgroups import id_in, parent_path
from holdfast.model.spec import volume_key
from holdfast.model.state import ContainerState, ProcessRef, container_state
from holdfast.oci.mounts import image_volumes
from holdfast.oci.namespaces import user_namespace
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.streamers import KIND as STREAMER

NODE: Final = "node"  # what is nobody's in particular


class Verdict(StrEnum):
    OK = "ok"
    ORPHAN = "orphan"
    INCONSISTENT = "inconsistent"
    UNKNOWN = "unknown"


class Fix(StrEnum):
    """What is done about an orphan, in this order: processes first, then what they use."""

    NONE = ""
    END_SHIM = "end the shim"
    KILL = "kill"
    REMOVE_CGROUP = "kill what is in it and remove it"
    DETACH = "detach"
    DELETE = "delete"
    DROP_SNAPSHOT = "remove the snapshot"
    COLLECT = "collect garbage"
    CLEAR_INTENT = "clear"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing and what is to be thought of it. `id` is the owner's, or what an orphan bears."""

    kind: str
    where: str
    verdict: Verdict
    why: str
    owner: str = ""
    id: str = ""
    fix: Fix = Fix.NONE
    process: ProcessRef | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.where

    def __str__(self) -> str:
        return f"{self.kind} {self.where}"


class Owners:
    """Answers whose something is."""

    def __init__(self, survey: Survey, rows: Rows) -> None:
        self.survey = survey
        self.rows = rows
        self.processes = {(one.pid, one.start_time): one for one in survey.processes if one.alive}
        self.mounted = {entry.target for entry in survey.mounts}
        self.snapshots = {row.key for row in rows.snapshots}
        self.directories = {entry.name for entry in survey.names(f"{survey.state}/pods")}
        self.parents = {parent_path(pod.meta.cgroup_parent): id for id, pod in rows.pods.items()}
        self._ours = {parent_path(pod.meta.cgroup_parent) for pod in rows.pods.values() if pod.meta.owns_cgroup}

    def thing(self, kind: str, where: str, id: str, why: str = "", fix: Fix = Fix.DELETE) -> Finding:
        """Owned by the pod or container with this id, or an orphan for want of one."""
        if owner := self.name(id):
            return Finding(kind, where, Verdict.OK, why, owner, id)
        return Finding(kind, where, Verdict.ORPHAN, why or f"no pod or container has the id {id}", "", id, fix)

    def name(self, id: str) -> str:
        """ "pod NAME" or "container NAME"; "" when nobody has that id."""
        if (container := self.rows.containers.get(id)) is not None:
            return f"container {container.meta.name}"
        if (pod := self.rows.pods.get(id)) is not None:
            return f"pod {pod.meta.namespace}/{pod.meta.name}"
        return "a row that cannot be read" if id in self.rows.unreadable else ""

    def in_cgroup(self, path: str) -> tuple[str, bool] | None:
        """The id in a cgroup path below a pod's cgroup or ours, and whether that place is ours alone."""
        inner, _, name = path.rpartition("/")
        while inner:  # from the innermost pod's outwards
            if inner in self.parents:
                return _id(name.partition("/")[0]), self._is_ours(inner)
            inner, _, outer = inner.rpartition("/")
            name = f"{outer}/{name}"
        top = f"{self.survey.place.cgroup_root}/"
        return (_id(path[len(top) :].partition("/")[0]), True) if path.startswith(top) else None

    def over(self, id: str) -> bool:
        """Whether the task of a container, or a pod's sandbox, is over and taken apart: nothing is under way."""
        container, pod = self.rows.containers.get(id), self.rows.pods.get(id)
        if container is not None:
            return container_state(container.status) is ContainerState.EXITED and not self.busy(container)
        return pod is not None and bool(pod.status.stopped_at) and not pod.intents

    def busy(self, container: ContainerRow) -> bool:
        """Whether an operation on it, or on its pod, is under way."""
        pod = self.rows.pods.get(container.meta.pod_id)
        return bool(container.intents or (pod is not None and pod.intents))

    def stuck(self, container_id: str) -> str:
        """Which process of a container no signal reaches, and where it waits; "" when there is none."""
        for one in self.survey.processes:
            if one.stuck and any(container_id in map(id_in, path.split("/")) for path in one.cgroups):
                return f"process {one.pid} is in state D, waiting in {one.stuck}"
        return ""

    def lives(self, ref: ProcessRef) -> bool | None:
        """Whether this very process runs; None when that could not be seen."""
        if ref.boot_id != self.survey.boot_id:
            return False
        if (ref.pid, ref.start_time) in self.processes:
            return True
        return False if self.survey.looked("/proc") and self.survey.looked(f"pid {ref.pid}") else None

    def is_sandbox(self, ref: ProcessRef | None, pod_id: str) -> bool:
        """Whether a process is the pod's sandbox container: gVisor's is the init of all others, and outlives them."""
        found = self.processes.get((ref.pid, ref.start_time)) if ref is not None else None
        return found is not None and any(id_in(path.rpartition("/")[2]) == pod_id for path in found.cgroups)

    def streams(self, session_id: str) -> bool:
        """Whether a session goes on, as far as can be seen, or the daemon sees to its end."""
        if session_id in self.rows.under_way.sessions or self.survey.workers is None:
            return True
        if any((one.kind, one.id) == (STREAMER, session_id) for one in self.survey.workers):
            return True
        recorded = self.survey.streamers.get(session_id)
        return recorded is not None and self.lives(recorded) is not False

    def _is_ours(self, parent: str) -> bool:
        return parent in self._ours or parent.startswith(f"{self.survey.place.cgroup_root}/")


def check_rows(owners: Owners) -> Iterator[Finding]:
    """What each row says must be so, as far as it could be looked at."""
    survey, rows = owners.survey, owners.rows
    for pod in rows.pods.values():
        yield _judge(owners, "pod", pod.meta.id, _pod_problem(owners, pod))
    for container in rows.containers.values():
        yield _judge(owners, "container", container.meta.id, _container_problem(owners, container))
    for id in sorted(rows.unreadable):
        yield Finding(
            "row", id, Verdict.UNKNOWN, "it cannot be read and was set aside; what bears its id is left alone"
        )
    for id, op in rows.loose_intents:
        why = f"no pod or container has the id {id}"
        yield Finding("intent", f"{op} {id}", Verdict.ORPHAN, why, id=id, fix=Fix.CLEAR_INTENT)
    for id, name in rows.images.items():
        yield Finding("image", id, Verdict.OK, "", name, id)
    blobs = f"{survey.root}/content/sha256"
    if survey.looked(blobs):
        there = {f"sha256:{entry.name}" for entry in survey.names(blobs)}
        for digest in sorted(rows.blobs - rows.loose_blobs - there):
            yield Finding("blob", digest, Verdict.INCONSISTENT, "an image refers to it, and its file is missing")


def _id(name: str) -> str:
    """The id in the name of a cgroup, or the name itself."""
    return id_in(name) or name


def _judge(owners: Owners, kind: str, id: str, problem: tuple[Verdict, str]) -> Finding:
    verdict, why = problem
    return Finding(kind, id, verdict, why, owners.name(id), id)


FINE: Final = (Verdict.OK, "")


def _pod_problem(owners: Owners, pod: PodRow) -> tuple[Verdict, str]:
    survey = owners.survey
    directory = f"{survey.state}/pods"
    if pod.intents:
        return Verdict.OK, f"under way: {', '.join(sorted(pod.intents))}"
    if not pod.status.ready:
        return FINE
    if survey.looked(directory) and pod.meta.id not in owners.directories:
        return Verdict.INCONSISTENT, "READY, but its directory is missing"
    if pod.status.shim is None or owners.lives(pod.status.shim) is False:
        return Verdict.INCONSISTENT, "READY, but its shim is gone"
    parent = parent_path(pod.meta.cgroup_parent)
    if survey.looked(parent) and parent not in survey.cgroups:
        return Verdict.INCONSISTENT, "READY, but its cgroup is missing"
    netns = f"{directory}/{pod.meta.id}/ns/net"
    if pod.status.netns and survey.looked("mounts") and netns not in owners.mounted:
        return Verdict.INCONSISTENT, "READY, but its network namespace is not pinned"
    own_users = user_namespace(pod.config.linux.security_context.namespace_options) is not None
    if own_users and survey.looked("mounts") and f"{directory}/{pod.meta.id}/ns/user" not in owners.mounted:
        return Verdict.INCONSISTENT, "READY, but its user namespace is not pinned"
    return FINE


def _container_problem(owners: Owners, container: ContainerRow) -> tuple[Verdict, str]:
    survey = owners.survey
    meta, status, state = container.meta, container.status, container_state(container.status)
    if owners.busy(container):
        why = f"under way: {', '.join(sorted(container.intents)) or 'an operation on its pod'}"
        if (stuck := owners.stuck(meta.id)) and "stop" in container.intents:
            return Verdict.INCONSISTENT, f"{why}; {stuck}"
        return Verdict.OK, why
    alive = owners.lives(status.process) if status.process is not None else False
    if state is ContainerState.RUNNING and alive is False:
        return Verdict.INCONSISTENT, "RUNNING, but its process is gone"
    if state is ContainerState.EXITED and alive and not owners.is_sandbox(status.process, meta.pod_id):
        return Verdict.INCONSISTENT, "EXITED, but its process lives"
    if state is ContainerState.UNKNOWN:
        return Verdict.UNKNOWN, "no witness could tell yet what has become of it"
    if alive is None:
        return Verdict.UNKNOWN, "its process could not be looked at"
    bundle = f"{survey.state}/pods/{meta.pod_id}/{meta.id}"
    looked = survey.looked(bundle) and survey.looked(f"{survey.state}/pods/{meta.pod_id}")
    if state is ContainerState.RUNNING and looked and bundle not in survey.files:
        return Verdict.INCONSISTENT, "RUNNING, but its bundle is missing"
    volumes = image_volumes(pb.ContainerConfig.FromString(meta.config))
    for key in (meta.snapshot_key, *(volume_key(meta.id, number) for number in volumes)):
        if key not in owners.snapshots:
            return Verdict.INCONSISTENT, f"it has no snapshot {key}"
    return FINE
