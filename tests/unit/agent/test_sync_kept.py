"""Checkpoints that the agent keeps: within their quota, not too old, and made of pods that nobody probes meanwhile."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from kit.cri import Scripted
from kit.workers import SECONDS, Cgroups, hurry

from holdfast.agent.sync import agent as agents
from holdfast.agent.sync.agent import Agent, Settings
from holdfast.agent.sync.api import Api
from holdfast.agent.sync.convert import Node
from holdfast.agent.sync.kept import Kept, Retention, surplus
from holdfast.proto import agent_pb2 as pb
from holdfast.proto import node_pb2
from holdfast.proto.agent_pb2_grpc import AgentStub
from holdfast.proto.node_pb2_grpc import NodeServicer, add_NodeServicer_to_server

POD = """
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: 'i:1',
  livenessProbe: {exec: {command: [well]}, periodSeconds: 1, failureThreshold: 1}}]}}
"""

KEPT = st.builds(Kept, st.integers(0, 100), st.uuids().map(str), st.integers(0, 50))


def test_the_oldest_goes_first() -> None:
    kept = [Kept(at, str(at), 10) for at in (3, 1, 2)]
    assert surplus(kept, Retention(), 100) == []
    assert [one.at for one in surplus(kept, Retention(quota=25), 100)] == [1]
    assert [one.at for one in surplus(kept, Retention(quota=9), 100)] == [1, 2, 3]
    assert [one.at for one in surplus(kept, Retention(age=97), 100)] == [1, 2]
    assert [one.at for one in surplus(kept, Retention(quota=10, age=98), 100)] == [1, 2]


@given(st.lists(KEPT), st.integers(0, 200), st.integers(0, 100), st.integers(100, 200))
def test_what_stays_is_within_both_limits_and_no_more_goes_than_must(
    kept: list[Kept], quota: int, age: int, now: int
) -> None:
    gone = surplus(kept, Retention(quota, age), now)
    stay = [one for one in kept if one not in gone]
    assert not quota or sum(one.bytes for one in stay) <= quota
    assert not age or all(now - one.at <= age for one in stay)
    if gone and (not age or now - gone[-1].at <= age):
        assert sum(one.bytes for one in stay) + gone[-1].bytes > quota


class Capturing(Scripted, NodeServicer):
    """A runtime that can: it writes so many bytes, and does not answer before it is told to."""

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self.size = 100
        self.asked: list[node_pb2.CheckpointPodRequest] = []
        self.go = asyncio.Event()
        self.go.set()
        self.fails: tuple[grpc.StatusCode, str] | None = None

    def register(self, server: Any) -> None:
        super().register(server)
        add_NodeServicer_to_server(self, server)

    async def CheckpointPod(self, request: node_pb2.CheckpointPodRequest, context: Any) -> Any:
        self.asked.append(request)
        await self.go.wait()
        if self.fails is not None:
            return await context.abort(*self.fails)
        Path(request.location).write_bytes(bytes(self.size))
        return node_pb2.CheckpointPodReply(bytes=self.size, frozen_seconds=0.25)


class There:
    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "root"
        (base / "manifests").mkdir()
        self.root.mkdir()
        self.cri = Capturing(base / "cri.sock")
        node = Node("here", log_root=str(base / "logs"), cgroup_root="/a", memory=1 << 30)
        settings = Settings(str(self.cri.socket), self.root, (base / "manifests",), node, kept=Retention(quota=250))
        self.agent = Agent(settings)
        self.channel = grpc.aio.insecure_channel(f"unix:{base}/agent.sock")
        self.stub = AgentStub(self.channel)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.agent.run())
            group.create_task(Api(self.agent).serve(self.base / "agent.sock"))

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, timeout=SECONDS, wait_for_ready=True)

    async def until(self, condition: Any) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.cri.calls[-9:]
            await asyncio.sleep(0.005)

    async def make(self) -> pb.KeptCheckpoint:
        made: pb.KeptCheckpoint = await self.call("Checkpoint", pb.CheckpointRequest(namespace="default", name="a"))
        return made

    async def names(self) -> list[str]:
        found = await self.call("ListCheckpoints", pb.ListCheckpointsRequest())
        return [one.name for one in found.checkpoints]


@pytest_asyncio.fixture
async def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[There]:
    hurry(monkeypatch)
    Cgroups(monkeypatch)
    monkeypatch.setattr(agents, "LOOK", 0.02)
    one = There(tmp_path)
    await one.cri.up()
    task = asyncio.get_running_loop().create_task(one.run())
    await one.call("Apply", pb.ApplyRequest(manifest=POD.encode()))
    await one.until(lambda: one.cri.running("a"))
    await one.until(lambda: one.agent.named("default", "a")[0].there.current)
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await one.channel.close()
        await one.cri.down()


async def test_they_are_made_listed_and_removed(there: There) -> None:
    made = await there.make()
    assert (made.bytes, made.frozen_seconds) == (100, 0.25)
    assert Path(made.path).parent == there.root / "checkpoints"
    assert Path(made.path).stat().st_size == 100
    (asked,) = there.cri.asked
    assert (asked.leave_running, asked.limit) == (True, 250)
    assert asked.pod_id in there.cri.sandboxes
    assert await there.names() == [made.name]
    await there.call("RemoveCheckpoint", pb.RemoveCheckpointRequest(name=made.name))
    assert await there.names() == []
    for name in (made.name, "../lock", ""):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await there.call("RemoveCheckpoint", pb.RemoveCheckpointRequest(name=name))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await there.call("Checkpoint", pb.CheckpointRequest(namespace="default", name="other"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_quota_is_kept_and_one_that_is_too_large_is_not(there: There) -> None:
    first, second, third = [await there.make() for _ in range(3)]
    assert await there.names() == [second.name, third.name]
    assert not Path(first.path).exists()
    there.cri.size = 300
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await there.make()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await there.names() == [second.name, third.name] == sorted(os.listdir(there.root / "checkpoints"))


async def test_what_the_runtime_refuses_is_told_in_its_words(there: There) -> None:
    there.cri.fails = (grpc.StatusCode.FAILED_PRECONDITION, "cannot checkpoint: it is not to be")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await there.make()
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "it is not to be" in str(raised.value.details())
    assert await there.names() == []


async def test_a_pod_is_asked_by_no_probe_while_it_stands_still(there: There) -> None:
    await there.until(lambda: ("a", ("well",)) in there.cri.commands)
    there.cri.go.clear()
    making = asyncio.get_running_loop().create_task(there.make())
    await there.until(lambda: there.cri.asked)
    before = len(there.cri.commands)
    await asyncio.sleep(1.5)  # longer than the probe's period: it would have been asked by now
    assert len(there.cri.commands) == before
    there.cri.go.set()
    await making
    await there.until(lambda: len(there.cri.commands) > before)
    assert len(there.cri.of("a")) == 1
