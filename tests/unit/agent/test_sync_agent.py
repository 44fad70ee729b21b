"""The agent as a whole, by its socket and its directory of manifests, against a runtime that does what it is told."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from kit.cri import UID, Scripted
from kit.workers import SECONDS, Cgroups, hurry

from holdfast.agent.sync import agent, orphans, said, users
from holdfast.agent.sync.agent import Agent, Settings, only_images
from holdfast.agent.sync.api import Api
from holdfast.agent.sync.convert import AGENT_ROOT, Node
from holdfast.agent.sync.record import to_json
from holdfast.linux import threads
from holdfast.proto import agent_pb2 as pb
from holdfast.proto import runtime_v1_pb2 as cri
from holdfast.proto import runtime_v1_pb2 as pb_runtime
from holdfast.proto.agent_pb2_grpc import AgentStub

POD = """
{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {
  containers: [{name: %s, image: 'i:1', volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}]}],
  volumes: [{name: v, emptyDir: {}}, {name: m, configMap: {name: m}}]}}
"""
MAP = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {k: v}}\n"


class There:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.manifests, self.root = base / "manifests", base / "root"
        self.manifests.mkdir()
        self.root.mkdir()
        self.cri = Scripted(base / "cri.sock")
        self.agent: Agent | None = None
        self.channel = grpc.aio.insecure_channel(f"unix:{base}/agent.sock")
        self.stub = AgentStub(self.channel)
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        node = Node("here", log_root=str(self.base / "logs"), cgroup_root="/a", memory=1 << 30)
        self.agent = one = Agent(Settings(str(self.cri.socket), self.root, (self.manifests,), node))

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(one.run())
                group.create_task(Api(one).serve(self.base / "agent.sock"))

        self._task = asyncio.get_running_loop().create_task(run())

    async def die(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        working = threads._threads[asyncio.get_running_loop()]
        while len(working._idle) < working.count:  # a thread goes on without its caller; a process does not
            await asyncio.sleep(0.001)

    async def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        deadline = asyncio.get_running_loop().time() + SECONDS
        while not (value := condition()):
            assert self._task is not None
            assert not self._task.done(), self._task.result()
            said = {uid: one.status() for uid, one in self.agent.workers.items()} if self.agent is not None else None
            assert asyncio.get_running_loop().time() < deadline, f"in vain for {what}: {self.cri.calls[-9:]}, {said}"
            await asyncio.sleep(0.005)
        return value

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, timeout=SECONDS, wait_for_ready=True)

    def write(self, file: str, text: str) -> None:
        (self.manifests / f".{file}").write_text(text)
        (self.manifests / f".{file}").rename(self.manifests / file)

    async def at_rest(self) -> Path:
        """A pod "a" that runs, and its record, with nothing about it to be written any more."""
        self.write("a.yaml", POD % ("a", "a") + MAP)
        await self.until(lambda: self.cri.running("a"))
        (record,) = self.root.glob("pods/*/record.json")
        assert self.agent is not None
        (worker,) = self.agent.workers.values()
        await self.until(  # else a write that is under way would mend it
            lambda: (
                getattr(worker.record.turned.get("Ready"), "holds", False)
                and record.read_bytes().rstrip() == to_json(worker.record)
            ),
            "it to rest",
        )
        return record

    def uids(self) -> list[str]:
        return [path.name for path in (self.root / "pods").iterdir()]

    def left(self) -> list[str]:
        found = [
            path for place in (self.root / "pods", self.base / "logs") if place.exists() for path in place.iterdir()
        ]
        return [*map(str, found), *self.cri.sandboxes, *self.cri.containers]


@pytest_asyncio.fixture
async def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[There]:
    hurry(monkeypatch)
    Cgroups(monkeypatch)
    monkeypatch.setattr(agent, "LOOK", 0.02)
    monkeypatch.setattr(agent, "SEEK", 0.05)
    one = There(tmp_path)
    await one.cri.up()
    await one.begin()
    try:
        yield one
    finally:
        await one.die()
        await one.channel.close()
        await one.cri.down()
    assert not one.cri.wrong


async def test_a_directory_of_manifests(there: There) -> None:
    there.write("a.yaml", POD % ("a", "a") + MAP)
    await there.until(lambda: there.cri.running("a"))
    (config,) = there.cri.configs.values()
    mounts = {one.container_path: Path(one.host_path) for one in config.mounts}
    assert (mounts["/m"] / "k").read_text() == "v"
    assert "emptydir" in str(mounts["/v"]).replace("-", "")
    (mounts["/v"] / "data").write_text("kept")
    there.write("a.yaml", POD.replace("i:1", "i:2") % ("a", "a") + MAP)
    there.cri.images.add("i:2")
    await there.until(lambda: len(there.cri.of("a")) == 2 and there.cri.running("a"), "another image")
    assert (mounts["/v"] / "data").read_text() == "kept", "it is the same pod"
    await there.die()
    await there.begin()
    there.write("a.yaml", POD.replace("spec: {", "spec: {hostname: other, ") % ("a", "a") + MAP)
    sandbox = next(iter(there.cri.sandboxes.values())).created_at
    await there.until(
        lambda: there.cri.running("a") and next(iter(there.cri.sandboxes.values())).created_at != sandbox, "another pod"
    )
    (there.manifests / "a.yaml").unlink()
    await there.until(lambda: not there.left(), "nothing to be left")


async def test_what_is_applied_stays_until_it_is_deleted(there: There) -> None:
    reply = await there.call("Apply", pb.ApplyRequest(manifest=(POD % ("a", "a") + MAP).encode()))
    assert list(reply.applied) == ["configmap/default/m", "pod/default/a"]
    watch = there.stub.WatchPods(pb.ListPodsRequest(), wait_for_ready=True)
    async for listed in watch:
        if listed.pods and json.loads(listed.pods[0].json)["status"]["phase"] == "Running":
            break
    watch.cancel()
    await there.die()
    await there.begin()
    await there.until(lambda: there.agent is not None and there.agent.workers)
    assert len(there.cri.of("a")) == 1
    await there.call("Delete", pb.DeleteRequest(kind="pod", namespace="default", name="a", grace=0))
    await there.until(lambda: not there.left(), "nothing to be left")
    calls = there.cri.asked("RunPodSandbox")
    with pytest.raises(grpc.aio.AioRpcError, match="there is no pod default/a"):
        await there.call("Delete", pb.DeleteRequest(kind="pod", namespace="default", name="a"))
    await there.call("Delete", pb.DeleteRequest(kind="configmap", namespace="default", name="m"))
    assert not list((there.root / "applied").iterdir())
    assert there.cri.asked("RunPodSandbox") == calls, "it does not come back"
    await there.call("Apply", pb.ApplyRequest(manifest=(POD % ("a", "a") + MAP).encode()))
    await there.until(lambda: there.cri.running("a"))


async def test_without_its_directory_of_manifests_it_does_what_it_is_asked_for(there: There) -> None:
    await there.die()
    there.manifests.rmdir()
    await there.begin()
    await there.call("Apply", pb.ApplyRequest(manifest=(POD % ("a", "a") + MAP).encode()))
    await there.until(lambda: there.cri.running("a"))
    assert str(there.manifests) in (await there.call("ListPods", pb.ListPodsRequest())).unread
    await there.call("Delete", pb.DeleteRequest(kind="pod", namespace="default", name="a"))
    await there.until(lambda: not there.left(), "nothing to be left")


async def test_what_is_refused(there: There) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="'Service' is none of"):
        await there.call("Apply", pb.ApplyRequest(manifest=b"kind: Service"))
    there.write("a.yaml", POD % ("a", "a") + MAP)
    await there.until(lambda: there.cri.running("a"))
    with pytest.raises(grpc.aio.AioRpcError, match=r"is what .*a\.yaml says: change it there"):
        await there.call("Apply", pb.ApplyRequest(manifest=(POD % ("a", "a")).encode()))
    with pytest.raises(grpc.aio.AioRpcError, match="change it there"):
        await there.call("Delete", pb.DeleteRequest(kind="pod", namespace="default", name="a"))
    with pytest.raises(grpc.aio.AioRpcError, match="is no name"):
        await there.call("Delete", pb.DeleteRequest(kind="pod", namespace="..", name="a"))
    assert there.cri.running("a")


async def test_one_sick_pod_holds_up_no_other(there: There) -> None:
    """Nor does a record that cannot be read: what its pod has is left alone, and the others' volumes too."""
    record = await there.at_rest()
    await there.die()
    whole = record.read_bytes()
    record.write_bytes(whole[:50])
    (there.manifests / "a.yaml").rename(there.manifests / "a.off")
    there.write("b.yaml", POD % ("b", "b") + MAP)
    there.write("broken.yaml", "kind: [")
    await there.begin()
    await there.until(lambda: there.cri.running("b"), "the other pod")
    assert there.cri.running("a")
    assert record.read_bytes() == whole[:50]
    reply = await there.call("ListPods", pb.ListPodsRequest())
    assert [(pod.name, json.loads(pod.json)["status"].get("reason", "")) for pod in reply.pods] == [
        ("b", ""),
        ("a", orphans.UNREADABLE),
    ]
    assert any("not YAML" in why for why in reply.unread.values())
    with pytest.raises(grpc.aio.AioRpcError, match="put its manifest back"):
        await there.call("Delete", pb.DeleteRequest(kind="pod", namespace="default", name="a"))
    (there.manifests / "b.yaml").unlink()
    await there.until(lambda: there.uids() == [record.parent.name], "the other pod's end, volumes and all")
    assert (record.parent / "volumes/kubernetes.io~empty-dir/v").is_dir()
    (there.manifests / "a.off").rename(there.manifests / "a.yaml")
    await there.until(lambda: record.read_bytes() != whole[:50], "its manifest to be read again")
    assert len(there.cri.of("a")) == 1
    (there.manifests / "a.yaml").unlink()
    await there.until(lambda: not there.left(), "nothing to be left, whatever else cannot be read")


async def test_a_record_that_is_mended_counts_again(there: There) -> None:
    record = await there.at_rest()
    await there.die()
    whole = record.read_bytes()
    record.write_bytes(b"{")
    (there.manifests / "a.yaml").unlink()
    await there.begin()
    await there.until(lambda: there.agent is not None and there.agent.orphans("default", "a"), "it to be told")
    record.write_bytes(whole)
    await there.until(lambda: not there.left(), "it to be known and, as its manifest is gone, ended")


@pytest.mark.parametrize("all_of_it", [False, True])
async def test_a_pod_whose_record_is_lost_is_told_and_left_alone(there: There, all_of_it: bool) -> None:
    record = await there.at_rest()
    manifest = (there.manifests / "a.yaml").read_text()
    (there.manifests / "a.yaml").unlink()
    await there.die()
    there.cri.exit("a", 1)
    record.unlink()
    if all_of_it:
        shutil.rmtree(record.parent)  # noqa: TID251  (a test's own)
    before = sorted(there.root.rglob("pods/**"))
    await there.begin()
    await there.until(lambda: there.agent is not None and there.agent.orphans(), "it to be told")
    assert there.agent is not None
    looks = there.agent._looks
    await there.until(lambda: there.agent is not None and there.agent._looks > looks + 20, "it to have thought it over")
    (shown,) = (await there.call("ListPods", pb.ListPodsRequest(namespace="default", name="a"))).pods
    assert json.loads(shown.json)["status"]["reason"] == orphans.LOST
    assert "holdfast rmp -f s-" in json.loads(shown.json)["status"]["message"]
    assert sorted(there.root.rglob("pods/**")) == before
    assert (len(there.cri.sandboxes), len(there.cri.containers)) == (1, 1)
    there.write("a.yaml", manifest)
    await there.until(lambda: there.cri.running("a"), "it to be looked after again")
    assert len(there.cri.sandboxes) == 1
    (there.manifests / "a.yaml").unlink()
    await there.until(lambda: not there.left(), "nothing to be left")


async def test_a_lost_pod_that_its_runtime_has_no_more_leaves_nothing(there: There) -> None:
    record = await there.at_rest()
    (there.manifests / "a.yaml").unlink()
    await there.die()
    record.unlink()
    await there.begin()
    await there.until(lambda: there.agent is not None and there.agent.orphans(), "it to be told")
    there.cri.sandboxes.clear()
    there.cri.containers.clear()
    await there.until(lambda: not there.uids(), "its volumes to go")


async def test_a_sandbox_without_anything_in_it_goes(there: There) -> None:
    """The rest of a call that has outlived its caller. Another agent's stay."""
    record = await there.at_rest()
    (there.manifests / "a.yaml").unlink()
    await there.die()
    record.unlink()
    there.cri.containers.clear()
    (one,) = there.cri.sandboxes.values()
    other = pb_runtime.PodSandboxStatus()
    other.CopyFrom(one)
    other.id, other.annotations[AGENT_ROOT] = "other", "/another"
    other.metadata.uid = other.labels[UID] = "other"
    there.cri.sandboxes["other"] = other
    await there.begin()
    await there.until(lambda: [*there.cri.sandboxes] == ["other"], "it to go")
    await there.until(lambda: not there.uids(), "its volumes to go")


async def test_config_maps_are_known_without_their_directory(there: There) -> None:
    await there.at_rest()
    await there.until(lambda: (there.root / said.FILE).exists(), "it to be written down")
    await there.die()
    there.manifests.rename(there.base / "away")
    await there.begin()
    await there.until(lambda: there.agent is not None and there.agent.workers)
    there.cri.exit("a", 1)
    await there.until(lambda: there.cri.running("a"), "it to be restarted, with what its ConfigMap said")
    await there.die()
    (there.root / said.FILE).write_bytes(b"{")
    (there.base / "away").rename(there.manifests)
    await there.begin()
    await there.until(lambda: there.agent is not None and there.agent._looks > 2, "a look")
    assert there.cri.running("a")
    await there.until(lambda: said.load(there.root), "it to be written anew")


def test_what_may_be_changed_of_a_pod_that_runs() -> None:
    from kit.workers import pod_of

    before = pod_of("{name: a, image: 'i:1'}")
    assert only_images(before, pod_of("{name: a, image: 'i:2'}"))
    assert not only_images(before, pod_of("{name: a, image: 'i:1', args: [x]}"))
    assert not only_images(before, pod_of("{name: a, image: 'i:1'}, {name: b, image: 'i:1'}"))
    assert not only_images(before, pod_of("{name: a, image: 'i:1'}", "hostNetwork: true"))


def first_of(there: There, uid: str) -> int:
    """The first of the ids that a pod has of its own, as its sandbox that runs was told."""
    for one in there.cri.sandboxes.values():
        if one.metadata.uid == uid and one.state == cri.SANDBOX_READY:
            (found,) = one.linux.namespaces.options.userns_options.uids
            return int(found.host_id)
    return 0


async def test_pods_with_users_of_their_own_never_have_the_same(there: There) -> None:
    own = POD.replace("spec: {", "spec: {hostUsers: false, ").replace("metadata: {", "metadata: {uid: %s, ")
    there.write("a.yaml", own % ("a", "a", "a") + MAP)
    await there.until(lambda: there.cri.running("a"))
    assert first_of(there, "a") == users.FIRST
    (config,) = there.cri.configs.values()
    assert {one.uidMappings[0].host_id for one in config.mounts} == {users.FIRST}
    await there.die()
    (there.root / "pods" / "a" / "record.json").write_text("{")
    there.write("0.yaml", own % ("b", "b", "b"))
    await there.begin()
    await there.until(lambda: there.cri.running("b"), "another one, though the record of the first cannot be read")
    assert first_of(there, "b") == users.FIRST + 65536
    there.cri.exit("a", 1)
    await there.until(lambda: len(there.cri.of("a")) == 2 and there.cri.running("a"), "the first to be restarted")
    there.cri.lose_sandbox()
    await there.until(lambda: there.cri.running("a") and first_of(there, "a"), "another sandbox")
    assert first_of(there, "a") == users.FIRST, "its own for as long as it is there"
    (there.manifests / "a.yaml").unlink()
    (there.manifests / "0.yaml").unlink()
    await there.until(lambda: not there.left(), "nothing to be left")
    there.write("c.yaml", own % ("c", "c", "c") + MAP)
    await there.until(lambda: there.cri.running("c"))
    assert first_of(there, "c") == users.FIRST, "what is released is given out again"


async def test_users_of_a_pod_whose_record_is_lost_are_nobody_elses(there: There) -> None:
    own = POD.replace("spec: {", "spec: {hostUsers: false, ").replace("metadata: {", "metadata: {uid: %s, ")
    there.write("a.yaml", own % ("a", "a", "a") + MAP)
    await there.until(lambda: there.cri.running("a"))
    await there.die()
    (there.root / "pods" / "a" / "record.json").unlink()
    (there.manifests / "a.yaml").unlink()
    there.write("b.yaml", own % ("b", "b", "b") + MAP)
    await there.begin()
    await there.until(lambda: there.cri.running("b"), "another one")
    assert (first_of(there, "a"), first_of(there, "b")) == (users.FIRST, users.FIRST + 65536)
