"""The agent's side of the CRI, over real gRPC: what an answer means, and what none does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from kit.cri import NAME, UID, Scripted
from kit.workers import Cgroups

from holdfast.agent.plan.observed import State
from holdfast.agent.sync import runtime
from holdfast.agent.sync.runtime import Runtime
from holdfast.model import errors
from holdfast.proto import runtime_v1_pb2 as pb


class There:
    def __init__(self, cri: Scripted, asked: Runtime, cgroups: Cgroups) -> None:
        self.cri = cri
        self.runtime = asked
        self.cgroups = cgroups

    async def pod(self, uid: str, *names: str) -> str:
        """A sandbox with running containers."""
        meta = pb.PodSandboxMetadata(name="p", namespace="n", uid=uid)
        config = pb.PodSandboxConfig(metadata=meta, labels={UID: uid})
        sandbox = await self.runtime.run_pod(config, "")
        for name in names:
            labels = {UID: uid, NAME: name}
            one = pb.ContainerConfig(metadata=pb.ContainerMetadata(name=name), labels=labels)
            await self.runtime.start(await self.runtime.create(sandbox, one, config))
        return sandbox


@pytest_asyncio.fixture
async def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[There]:
    cri = Scripted(tmp_path / "s")
    await cri.up()
    one = There(cri, Runtime(str(cri.socket), "/a"), Cgroups(monkeypatch))
    yield one
    await one.runtime.close()
    await cri.down()
    assert not cri.wrong


async def test_what_there_is_of_one_pod(there: There) -> None:
    sandbox = await there.pod("u", "a", "b")
    await there.pod("other", "x")
    there.cri.exit("b", 3)
    found = await there.runtime.observe("u")
    assert found.current is not None
    assert (found.current.id, found.current.ready, found.current.addresses) == (sandbox, True, ("127.0.0.1",))
    assert {run.name: (run.state, run.code) for run in found.runs} == {"a": (State.RUNNING, 0), "b": (State.EXITED, 3)}
    there.cri.of("a")[0].state = pb.CONTAINER_UNKNOWN
    assert (await there.runtime.observe("u")).latest("a").state is State.UNKNOWN  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNKNOWN, errors.HoldfastError),
    ],
)
async def test_errors_by_what_can_be_done(there: There, code: grpc.StatusCode, kind: type[Exception]) -> None:
    there.cri.fail("ListContainers", code, "in words")
    with pytest.raises(kind, match="in words"):
        await there.runtime.observe("u")


async def test_no_answer_is_no_absence(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    await there.pod("u", "a")
    monkeypatch.setattr(Runtime._call, "__defaults__", (0.05,))
    hang = there.cri.hang("ListContainers")
    with pytest.raises(errors.Unavailable, match="no answer"):
        await there.runtime.observe("u")
    assert "cannot be found out" in await there.runtime.why_alive("u")
    hang.set()
    await there.cri.down()
    with pytest.raises(errors.Unavailable):
        await there.runtime.observe("u")
    assert not await there.runtime.proven_dead("u")
    await there.cri.up()


async def test_the_proof(there: There) -> None:
    await there.pod("u", "a", "b")
    stops = lambda: there.cri.asked("StopPodSandbox")  # noqa: E731
    assert "container a" in await there.runtime.why_alive("u")
    there.cri.exit("a")
    assert "container b (s-u-0-b-0) is running" in await there.runtime.why_alive("u")
    for state, said in ((pb.CONTAINER_UNKNOWN, "unknown"), (pb.CONTAINER_CREATED, "created")):
        there.cri.of("b")[0].state = state
        assert said in await there.runtime.why_alive("u")
    assert not stops(), "nobody is killed to find out"
    there.cri.of("b")[0].state = pb.CONTAINER_EXITED
    there.cri.fail("StopPodSandbox", grpc.StatusCode.UNAVAILABLE)
    assert "cannot be found out" in await there.runtime.why_alive("u")
    there.cgroups.pids["/a/burstable/podu"] = {4711}
    assert "4711" in await there.runtime.why_alive("u")
    assert stops() == 2
    there.cgroups.pids.clear()
    assert await there.runtime.proven_dead("u")
    assert await there.runtime.proven_dead("somebody the runtime has never heard of")


async def test_a_container_of_nobodys_in_the_sandbox_counts(there: There) -> None:
    """Whoever has put it there has not labelled it."""
    sandbox = await there.pod("u")
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="z"), labels={UID: "", NAME: "z"})
    await there.runtime.start(await there.runtime.create(sandbox, config, pb.PodSandboxConfig()))
    assert "container z" in await there.runtime.why_alive("u")


@pytest.mark.parametrize("events", [True, False])
async def test_what_has_changed(there: There, monkeypatch: pytest.MonkeyPatch, events: bool) -> None:
    monkeypatch.setattr(runtime, "POLL", 0.02)
    monkeypatch.setattr(runtime, "RECONNECT", 0.02)
    there.cri.has_events = events
    await there.pod("u", "a")
    told: list[str] = []

    async def listen() -> None:
        async for uid in there.runtime.changed():
            told.append(uid)  # noqa: PERF401  (it never ends)

    task = asyncio.get_running_loop().create_task(listen())

    async def until(*uids: str) -> None:
        async with asyncio.timeout(10):
            while not set(uids) & set(told):
                await asyncio.sleep(0.005)

    await until("")
    told.clear()
    there.cri.exit("a")
    await (until("u") if events else until("u", ""))
    if events:  # who polls has missed nothing
        told.clear()
        await there.cri.down()
        await there.cri.up()
        await until("")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
