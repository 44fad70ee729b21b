"""The agent: joins the source of pods, their workers, the volume manager and the runtime.

Pods that were admitted live in their records; the source may only add to them, change them, or say for certain that it
does not want them any more.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from holdfast.agent.plan.observed import Run
from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.encode import encode
from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import applied, limits, names, orphans, record, said
from holdfast.agent.sync import files as pod_files
from holdfast.agent.sync.convert import Node
from holdfast.agent.sync.kept import Checkpoints, Retention
from holdfast.agent.sync.measures import CountedManager, Measures
from holdfast.agent.sync.orphans import Orphan
from holdfast.agent.sync.parts import Parts
from holdfast.agent.sync.record import Record
from holdfast.agent.sync.rotation import Limits, Rotation
from holdfast.agent.sync.runtime import Runtime
from holdfast.agent.sync.said import Said
from holdfast.agent.sync.source import PASSING, Found, Source
from holdfast.agent.sync.users import Users
from holdfast.agent.sync.worker import Worker
from holdfast.agent.volumes.paths import Paths
from holdfast.linux import files
from holdfast.linux.threads import in_thread
from holdfast.model.errors import Damaged, HoldfastError

log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between looks at the source
LOOKS: Final = 2  # until a manifest counts
SEEK: Final = 5.0  # seconds between looks for orphans
AGAIN: Final = 5.0  # seconds until a worker that has failed as nobody has thought of is begun anew
RESOLV: Final = "/etc/resolv.conf"
RESOLV_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    socket: str  # the runtime's
    root: Path
    manifests: tuple[Path, ...]
    node: Node
    cgroup_driver: str = ""  # "" is as the runtime says
    logs: Limits = field(default_factory=Limits)
    metrics_address: str = ""
    kept: Retention = field(default_factory=Retention)


class Agent:
    """To be made within the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._paths = Paths(settings.root)
        self._node = replace(settings.node, root=os.fspath(settings.root))
        self.applied = settings.root / "applied"
        self._directories = (*settings.manifests, self.applied)
        self._source = Source(self._directories)
        self._said: Said = {}  # as it is on disk
        self._unsaid: int | None = None  # the errno with which it could not be brought up to date
        self._found = Found()
        self._facts = Facts(
            settings.node.name, host_addresses(), (), 1000 * (os.cpu_count() or 1), settings.node.memory
        )
        self._runtime = Runtime(settings.socket, settings.node.cgroup_root, settings.cgroup_driver)
        self.measures = Measures()
        self.volumes = CountedManager(settings.root, self._proven_dead, self._facts_of, self.measures)
        self._users = Users()
        self._users.doubt("of the runtime")  # until it was asked for orphans
        self._parts = Parts(
            self._runtime,
            self.volumes,
            self._paths,
            self._node,
            self._facts_of,
            lambda _: self._want(),
            self._users,
            self.measures.counted,
        )
        self.checkpoints = Checkpoints(settings.root / "checkpoints", self._runtime, settings.kept, self._parts.clock)
        self.workers: dict[str, Worker] = {}
        self._soon = asyncio.Event()
        self._gone: set[str] = set()  # pods that have ended since the last look at the source began
        self._looks = 0  # at the source
        self._damaged: dict[str, str] = {}  # by uid of pods of which there is a record: why it cannot be read
        self._orphans: dict[str, Orphan] | None = None  # None before the runtime has said what there is
        self._refused: dict[str, int | None] = {}  # by uid: with which errno a record could not be written
        self._sweeping: set[str] = set()  # uids of which something is being removed

    async def run(self) -> None:
        """Until it is cancelled, which leaves all pods as they are."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await in_thread(files.make_private, self.applied)
                await self._tidy()
                await self._recall()
                await self._remember(await in_thread(record.records, self._paths))
                group.create_task(self.volumes.run(), name="volumes")
                group.create_task(self._listen(), name="events of the runtime")
                group.create_task(self.checkpoints.look_after(), name="checkpoints")
                group.create_task(self._seek(), name="orphans")
                group.create_task(self._weigh(), name="weights of the classes")
                rotations = self.measures.counted.rotations
                rotation = Rotation(self._runtime, self.settings.node, self.settings.logs, rotations)
                group.create_task(rotation.run(self._logged), name="logs")
                while True:
                    self._soon.clear()
                    await self._look()
                    self._count()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK):
                            await self._soon.wait()
        finally:
            await self._runtime.close()

    # -- for whoever asks

    def named(self, namespace: str = "", name: str = "") -> list[Worker]:
        """The workers of pods of that name; "" is any."""
        workers = sorted(self.workers.values(), key=lambda one: (one.pod.metadata.namespace, one.pod.metadata.name))
        return [
            one
            for one in workers
            if namespace in ("", one.pod.metadata.namespace) and name in ("", one.pod.metadata.name)
        ]

    def orphans(self, namespace: str = "", name: str = "") -> list[Orphan]:
        """Pods that are left alone for want of a record; by uid as well, for those of which nothing else is known."""
        found = orphans.find((), self.workers, self._damaged) | (self._orphans or {})
        return [
            one
            for uid, one in found.items()
            if uid not in self.workers
            and ((namespace in ("", one.namespace) and name in ("", one.name)) or name == one.uid)
        ]

    @property
    def unread(self) -> dict[str, str]:
        """Files and directories of manifests that cannot be read, and why."""
        return {path: why for path, why in self._found.unread.items() if why not in PASSING}

    def shown(self, worker: Worker) -> dict[str, Any]:
        """A v1 Pod with its status."""
        return applied.shown(worker.record, worker.status(), self.settings.node.name)

    def look_soon(self) -> None:
        self._soon.set()

    # -- what there is

    async def _tidy(self) -> None:
        """Make what takes room later while there is some; remove what writes have left that were cut short."""
        try:
            await in_thread(files.make_private, self._paths.trash)
            await in_thread(pod_files.sweep, self._paths)
        except OSError as exc:  # a full disk, or one that is read-only
            log.warning("cannot tidy up: %s", exc)

    async def _recall(self) -> None:
        """What manifests have said to an agent before this one."""
        try:
            self._said = await in_thread(said.load, self._paths.root)
            self._source = Source(self._directories, self._said)
        except (Damaged, OSError) as exc:
            log.warning("%s: ConfigMaps and Secrets are known once their manifests are read", exc)

    async def _remember(self, paths: Iterable[Path]) -> None:
        """The pods that an agent before this one has admitted. One whose record cannot be read concerns no other."""
        for path in paths:
            uid = path.parent.name
            try:
                self._begin(await in_thread(record.load, path))
                self._damaged.pop(uid, None)  # somebody has mended it
            except FileNotFoundError:
                self._damaged.pop(uid, None)
            except (Damaged, OSError) as exc:
                if uid not in self._damaged:
                    log.error("%s: %s: what this pod has is left alone", path, exc)
                    self._users.doubt(uid)
                self._damaged[uid] = f"{path}: {exc}"
        self._want()

    async def _seek(self) -> None:
        """Orphans, from time to time: what counts is what was one twice in turn, as sandboxes come and go."""
        before: dict[str, Orphan] = {}
        rests: set[str] = set()
        while True:
            with contextlib.suppress(HoldfastError, OSError):  # it is looked again
                found = orphans.find(await self._runtime.made_here(self._node.root), self.workers, self._damaged)
                for uid in found.keys() & before.keys():
                    if found[uid].is_unused and uid not in self._sweeping:
                        self._sweeping.add(uid)  # nobody is admitted by that uid meanwhile
                        self._group.create_task(self._sweep(found[uid]), name=f"orphan {uid}")
                known, is_first = self._orphans or {}, self._orphans is None
                await self._learn_users(found, known)
                self._orphans = {uid: one for uid, one in found.items() if is_first or uid in before}
                for uid, one in self._orphans.items():
                    if one != known.get(uid) and uid not in self._damaged:
                        log.warning("pod %s/%s (%s): %s", one.namespace, one.name, uid, one.why)
                for uid in known.keys() - self._orphans.keys():
                    self.volumes.prove_again(uid)
                before = found
                self._want()
                still = await in_thread(pod_files.rests, self._paths) - self.workers.keys() - found.keys()
                for uid in rests & still:
                    if uid not in self.workers:
                        await self._clear(uid)
                rests = still
            await asyncio.sleep(SEEK)

    async def _learn_users(self, found: Collection[str], before: Collection[str]) -> None:
        """Whichever users orphans have nobody else is given."""
        unsure = set()
        for uid in found:
            try:
                sandbox = (await self._runtime.observe(uid)).current
                self._users.know(uid, sandbox.users if sandbox is not None else 0)
            except HoldfastError:
                unsure.add(uid)
        self._users.doubt_only(unsure)
        for uid in set(before) - set(found) - self.workers.keys():
            self._users.release(uid)

    async def _sweep(self, orphan: Orphan) -> None:
        """Remove sandboxes that nothing has ever run in: what is left of a call that its caller has not outlived."""
        try:
            for sandbox_id in orphan.sandboxes:
                await self._runtime.stop_pod(sandbox_id)
                await self._runtime.remove_pod(sandbox_id)
        except HoldfastError as exc:
            log.warning("cannot remove unused sandboxes of pod %s: %s", orphan.uid, exc)
        finally:
            self._sweeping.discard(orphan.uid)

    async def _clear(self, uid: str) -> None:
        """Remove the last files of a pod that neither a record nor the runtime knows of, and that has no volumes."""
        self._sweeping.add(uid)
        try:
            await in_thread(pod_files.remove_rest, self._paths, uid)
        except OSError as exc:
            log.warning("cannot remove what is left of pod %s: %s", uid, exc)
        finally:
            self._sweeping.discard(uid)

    async def _proven_dead(self, uid: str) -> bool:
        """Of a pod without a record to act by nobody can know what it is to keep."""
        if uid not in self.workers and (self._orphans is None or uid in self._orphans or uid in self._damaged):
            return False
        return await self._runtime.proven_dead(uid)

    def _begin(self, known: Record) -> Worker:
        if known.users:
            self._users.know(known.pod.metadata.uid, known.users)
        worker = Worker(self._parts, known)
        self.workers[worker.uid] = worker
        self._group.create_task(self._tend(worker), name=f"pod {worker.uid}")
        return worker

    async def _tend(self, worker: Worker) -> None:
        """See a pod to its end, whatever its worker does."""
        while True:
            try:
                await worker.run()
                break
            except Exception:
                log.exception("the worker of pod %s has failed", worker.uid)
                await asyncio.sleep(AGAIN)
        del self.workers[worker.uid]
        self._users.release(worker.uid)
        self._gone.add(worker.uid)
        self._want()

    async def _listen(self) -> None:
        async for uid in self._runtime.changed():
            for worker in self.workers.values():
                if uid in ("", worker.uid):
                    worker.wake()

    async def _weigh(self) -> None:
        """See to it that classes of pods weigh what their pods request, whatever comes, goes or is made anew."""
        said = ""
        while True:
            pods = [one.pod for one in self.workers.values() if not one.record.finished]
            try:
                driver = await self._runtime.cgroup_driver()
                for parent, found in limits.of_classes(pods, self.settings.node.cgroup_root, driver).items():
                    await in_thread(limits.change, parent, found)
                said = ""
            except (HoldfastError, OSError) as exc:  # also: of a cgroup that has just gone
                if (text := str(exc)) != said:
                    log.info("cannot weigh the classes of pods: %s", said := text)
            await asyncio.sleep(LOOK)

    def _count(self) -> None:
        if self.settings.metrics_address:
            workers = list(self.workers.values())
            backing_off = sum(one.backing_off() for one in workers)
            self.measures.look([one.status() for one in workers], backing_off, self.volumes.kept, len(self.unread))

    def _logged(self) -> list[tuple[Pod, tuple[Run, ...]]]:
        return [(one.pod, one.there.runs) for one in self.workers.values()]

    def _want(self) -> None:
        """Tell the volume manager. Whatever has volumes has a record, or is an orphan, which is never proven dead.

        A manifest that cannot be read says nothing of volumes: it holds up nobody's end.
        """
        pods = [one.pod for one in self.workers.values() if not one.record.leaving]
        self.volumes.want(pods, complete=self._looks >= LOOKS and self._orphans is not None)

    def _facts_of(self, pod: Pod) -> Facts:
        return replace(self._facts, data=self._found.data)

    # -- what is to be

    async def _look(self) -> None:
        self._gone.clear()
        if self._damaged:
            await self._remember([self._paths.pods / uid / record.FILE for uid in self._damaged])
        found = await in_thread(self._source.look)
        for path, why in found.unread.items():
            if self._found.unread.get(path) != why:
                log.log(logging.INFO if why in PASSING else logging.WARNING, "%s: %s", path, why)
        for path, warnings in found.warnings.items():
            if self._found.warnings.get(path) != warnings:
                for text in warnings:
                    log.warning("%s: %s", path, text)
        changed = found.data != self._found.data
        self._found = found
        for uid, (path, pod) in found.pods.items():
            try:
                await self._admit(uid, path, pod)
                self._refused.pop(uid, None)
            except OSError as exc:  # nothing was done then
                self._is_refused(uid, exc)
        for uid, worker in list(self.workers.items()):
            if not worker.record.deleted_at and found.has_no(uid, worker.record.source):
                await self._delete(worker)
        if changed:
            for worker in self.workers.values():
                worker.wake(anew=True)
        await self._note()
        self._looks += 1
        if self._looks == LOOKS:
            self._want()

    async def _note(self) -> None:
        """What manifests say, for the agent after this one."""
        if (now := self._source.said) == self._said:
            return
        try:
            await in_thread(said.save, self._paths.root, now)
            self._said, self._unsaid = now, None
        except OSError as exc:
            if exc.errno != self._unsaid:
                log.warning("cannot write down what ConfigMaps and Secrets there are: %s", exc)
            self._unsaid = exc.errno

    async def _admit(self, uid: str, path: str, pod: Pod) -> None:
        worker = self.workers.get(uid)
        if worker is None and (path in self._found.unread or uid in self._gone or uid in self._sweeping):
            return  # what it said before is what is to run on, not what is to be begun
        if worker is None:
            known = Record(pod, source=path)
            await in_thread(record.save, self._paths, known)  # instead of one that cannot be read
            self._damaged.pop(uid, None)
            self._begin(known)
            self._want()
        elif not worker.record.deleted_at and encode(worker.pod) != encode(pod):
            if only_images(worker.pod, pod):
                await worker.update(pod)
                self._want()
            else:
                log.info("pod %s is another one now: the old one goes first", uid)
                await self._delete(worker)

    async def _delete(self, worker: Worker) -> None:
        try:
            await worker.delete()
            self._refused.pop(worker.uid, None)
        except OSError as exc:
            self._is_refused(worker.uid, exc)

    def _is_refused(self, uid: str, exc: OSError) -> None:
        """It is tried again at each look, and told once."""
        if self._refused.get(uid) != exc.errno:
            log.warning("cannot write down what is to become of pod %s: %s", uid, exc)
        self._refused[uid] = exc.errno


def only_images(before: Pod, after: Pod) -> bool:
    """Whether nothing but containers' images has changed: what Kubernetes lets be changed of a pod that runs."""

    def same(one: Iterable[Container]) -> tuple[Container, ...]:
        return tuple(replace(container, image="-") for container in one)

    def bare(pod: Pod) -> Pod:
        spec = pod.spec
        inits, mains = same(spec.init_containers), same(spec.containers)
        return replace(pod, spec=replace(spec, containers=mains, init_containers=inits))

    return bool(encode(bare(before)) == encode(bare(after)))


def host_addresses() -> tuple[str, ...]:
    """That which others would see; nothing is sent to find it out."""
    found = []
    for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((other, 9))
            except OSError:
                continue
            found.append(str(probe.getsockname()[0]))
    return tuple(found)


def node_of(name: str, log_root: str, cgroup_root: str) -> Node:
    """This machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        text = files.read_bounded(RESOLV, RESOLV_LIMIT).decode(errors="replace")
    except OSError:
        text = ""
    return Node(name or os.uname().nodename, log_root, cgroup_root, memory, names.parse_resolv(text))
