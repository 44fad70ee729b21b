"""Workers of pods against a runtime that does what a test says, with an agent that may die at any moment."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.plan import backoff
from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.manifest import parse
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import parts, record, runtime, worker
from holdfast.agent.sync.convert import Node
from holdfast.agent.sync.parts import Parts
from holdfast.agent.sync.record import Record
from holdfast.agent.sync.runtime import Runtime
from holdfast.agent.sync.worker import Worker
from holdfast.agent.volumes.paths import Paths
from holdfast.linux import cgroup
from kit.cri import Scripted
from kit.volumes import PlainVolumes

SECONDS = 20.0
MS = 1_000_000


def pod_of(containers: str, more: str = "", init: str = "") -> Pod:
    """Of YAML flow mappings; the uid is "u"."""
    text = f"{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: n, uid: u}}, spec: {{ {more}"
    text += f"{', ' if more else ''}initContainers: [{init}], containers: [{containers}] }} }}"
    return parse(text.encode(), "test").pods[0]


class Cgroups:
    """Of a kernel that has none: by path, who is in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: dict[str, set[int]] = {}
        monkeypatch.setattr(cgroup, "create", lambda path: self.pids.setdefault(path, set()))
        monkeypatch.setattr(cgroup, "has", lambda path, controller, name: False)
        monkeypatch.setattr(cgroup, "pids", lambda path: self.pids.get(path, set()))
        monkeypatch.setattr(cgroup, "exists", lambda path: path in self.pids)
        monkeypatch.setattr(cgroup, "populated", lambda path: bool(self.pids.get(path)))
        monkeypatch.setattr(cgroup, "remove", lambda path: self.pids.pop(path, None))
        monkeypatch.setattr(cgroup, "remove_if_empty", lambda path: None)


class Life:
    """One pod, its runtime, and the agent's part of it."""

    def __init__(self, base: Path, cgroups: Cgroups, *, events: bool = True) -> None:
        self.cri = Scripted(base / "cri.sock", events=events)
        self.volumes = PlainVolumes(base / "volumes")
        self.paths = Paths(base / "agent")
        self.cgroups = cgroups
        self.node = Node("here", log_root=str(base / "logs"), cgroup_root="/a", memory=1 << 30)
        self.worker: Worker | None = None
        self.runtime: Runtime | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    async def begin(self, pod: Pod) -> Worker:
        """As an agent does: what it remembers of the pod comes first."""
        found = [record.load(path) for path in record.records(self.paths)]
        self.runtime = Runtime(str(self.cri.socket), self.node.cgroup_root)
        if not any(one.leaving for one in found):
            self.volumes.want(pod)
        shared = Parts(self.runtime, self.volumes, self.paths, self.node, lambda _: Facts("here"), self.volumes.leaving)
        self.worker = Worker(shared, found[0] if found else Record(pod))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.worker.run()), loop.create_task(self._listen(self.runtime, self.worker))]
        return self.worker

    async def _listen(self, runtime: Runtime, worker: Worker) -> None:
        async for uid in runtime.changed():
            if uid in ("", worker.uid):
                worker.wake()

    async def die(self) -> None:
        """The agent is no more, at whatever it was."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self.runtime is not None:
            await self.runtime.close()

    @property
    def ended(self) -> bool:
        """The worker has seen its pod to the end."""
        task = self._tasks[0]
        return task.done() and not task.cancelled() and task.exception() is None

    def stop_at_once(self) -> None:
        """The worker does nothing more, and does not get what it has asked for."""
        self._tasks[0].cancel()

    async def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        deadline = asyncio.get_running_loop().time() + SECONDS
        while not (value := condition()):
            if self._tasks and self._tasks[0].done():
                self._tasks[0].result()
            said = self.worker.status() if self.worker is not None else None
            assert asyncio.get_running_loop().time() < deadline, f"in vain for {what}: {self.cri.calls[-9:]}, {said}"
            await asyncio.sleep(0.002)
        return value

    async def delete(self, grace: int | None = None) -> None:
        """And wait until nothing is left of it."""
        assert self.worker is not None
        await self.worker.delete(grace)
        await self.until(lambda: self.ended, "the end")
        self.check_gone()

    def check_gone(self) -> None:
        assert not self.cri.sandboxes
        assert not self.cri.containers
        assert not self.cgroups.pids
        assert not list(record.records(self.paths))
        assert not list(self.paths.root.glob("pods/*"))
        assert not list(self.volumes.root.glob("*"))
        assert not list(Path(self.node.log_root).glob("*"))

    def word(self, name: str) -> str:
        """Why a container does not run; "" when it does."""
        assert self.worker is not None
        found = self.worker.status()
        (one,) = [
            one
            for one in itertools.chain(found.get("initContainerStatuses", ()), found.get("containerStatuses", ()))
            if one["name"] == name
        ]
        return str(one["state"].get("waiting", {}).get("reason", ""))

    async def close(self) -> None:
        await self.die()
        for event in self.cri.hanging.values():
            event.set()
        await self.cri.down()
        assert not self.cri.wrong, self.cri.wrong


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for seconds waits for milliseconds."""
    monkeypatch.setattr(worker, "RETRY", 0.02)
    monkeypatch.setattr(runtime, "RECONNECT", 0.02)
    monkeypatch.setattr(runtime, "POLL", 0.02)
    monkeypatch.setattr(parts, "PAUSE", 20 * MS)
    monkeypatch.setattr(backoff, "FIRST", 20 * MS)


@contextlib.asynccontextmanager
async def life(base: Path, monkeypatch: pytest.MonkeyPatch, *, events: bool = True) -> Any:
    hurry(monkeypatch)
    one = Life(base, Cgroups(monkeypatch), events=events)
    await one.cri.up()
    try:
        yield one
    finally:
        await one.close()
