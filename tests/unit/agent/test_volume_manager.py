"""The manager with volumes that need no mounts: what pods ask it for, what hangs and fails, what a crash leaves."""

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.manifest import Data, parse
from holdfast.agent.pod.spec import Pod
from holdfast.agent.pod.volumes import HostPath
from holdfast.agent.volumes import executor, hostpath, manager, operations, plan
from holdfast.agent.volumes.manager import ContainerMount, Manager, NotReady
from holdfast.agent.volumes.operations import Kept
from holdfast.agent.volumes.paths import Key, Paths
from holdfast.agent.volumes.world import Desired

SECONDS = 20.0


def pod(uid: str, volumes: str, mounts: str = "") -> Pod:
    text = f"""
apiVersion: v1
kind: Pod
metadata: {{name: {uid}, uid: {uid}}}
spec:
  containers: [{{name: main, image: i, volumeMounts: [{mounts}]}}]
  volumes: [{volumes}]
"""
    return parse(text.encode(), "test").pods[0]


PLAIN = "{name: work, emptyDir: {}}, {name: conf, configMap: {name: conf}}"


@dataclass
class Runtime:
    """What the manager asks others for."""

    dead: set[str] = field(default_factory=set)
    data: dict[str, bytes] = field(default_factory=lambda: {"key": b"value"})
    asked: int = 0
    error: Exception | None = None

    async def proven_dead(self, uid: str) -> bool:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return uid in self.dead

    def facts(self, one: Pod) -> Facts:
        found = Data("ConfigMap", "default", "conf", self.data)
        return Facts(data={("ConfigMap", "default", "conf"): found} if self.data else {})


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "PERIOD", 0.02)
    monkeypatch.setattr(plan, "FIRST", 20 * plan.MS)


@contextlib.asynccontextmanager
async def running(root: Path, runtime: Runtime) -> AsyncIterator[Manager]:
    one = Manager(root, runtime.proven_dead, runtime.facts)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one.run())
        try:
            yield one
        finally:
            task.cancel()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_a_pod_gets_its_volumes_and_they_go_with_it(tmp_path: Path, runtime: Runtime) -> None:
    host = f"{{name: host, hostPath: {{path: {tmp_path}/made, type: DirectoryOrCreate}}}}"
    one = pod("a", f"{PLAIN}, {host}, {{name: data, image: {{reference: i}}}}")
    async with running(tmp_path / "root", runtime) as volumes:
        with pytest.raises(NotReady, match="was not named yet"):
            await volumes.ready("a")
        volumes.want([one], complete=False)
        paths = await volumes.ready("a", SECONDS)
        at = tmp_path / "root/pods/a/volumes"
        assert paths == {
            "work": f"{at}/kubernetes.io~empty-dir/work",
            "conf": f"{at}/kubernetes.io~configmap/conf",
            "host": f"{tmp_path}/made",
            "data": "",
        }
        assert Path(paths["work"]).stat().st_mode & 0o7777 == 0o777
        assert (Path(paths["conf"]) / "key").read_bytes() == b"value"
        (Path(paths["work"]) / "file").touch()
        assert volumes.told("a") == []

        volumes.want([], complete=False)
        runtime.dead.add("a")
        assert await volumes.gone("a", 0.2) != []
        assert runtime.asked == 0, "what is wanted is not known yet"
        runtime.dead.clear()
        volumes.want([], complete=True)
        await until(lambda: runtime.asked > 0)
        await until(lambda: "not proven that all of its containers are dead" in " ".join(volumes.told("a")))
        assert (Path(paths["work"]) / "file").exists()
        runtime.dead.add("a")
        assert await volumes.gone("a", SECONDS) == []
        assert not (tmp_path / "root/pods/a").exists()
        assert list((tmp_path / "root/trash").iterdir()) == []
        assert (tmp_path / "made").is_dir(), "it is the host's"
        assert volumes.told("a") == []


async def test_no_answer_is_no_proof(tmp_path: Path, runtime: Runtime) -> None:
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", PLAIN)], complete=True)
        await volumes.ready("a", SECONDS)
        runtime.error = OSError(errno.EIO, "no runtime")
        volumes.want([], complete=True)
        await until(lambda: "cannot be told whether" in " ".join(volumes.told("a")))
        assert (tmp_path / "pods/a/volumes").exists()
        runtime.error, runtime.dead = None, {"a"}
        assert await volumes.gone("a", SECONDS) == []


async def test_a_proof_is_good_for_one_attempt(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, real = 0, operations.tear_down

    def tear_down(paths: Paths, key: Key) -> object:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            runtime.dead.clear()  # somebody has started it again by hand
            raise Kept("busy", ())
        return real(paths, key)

    monkeypatch.setattr(operations, "tear_down", tear_down)
    monkeypatch.setattr(plan, "FIRST", 1)
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", "{name: work, emptyDir: {}}")], complete=True)
        await volumes.ready("a", SECONDS)
        runtime.dead.add("a")
        volumes.want([], complete=True)
        await until(lambda: attempts == 1 and runtime.asked > 5)
        assert attempts == 1
        runtime.dead.add("a")
        assert await volumes.gone("a", SECONDS) == []


async def test_files_follow_their_source(tmp_path: Path, runtime: Runtime) -> None:
    runtime.data = {}
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", PLAIN)], complete=True)
        await until(lambda: "learnt" not in " ".join(volumes.told("a")))
        with pytest.raises(NotReady, match="volume conf: there is no ConfigMap 'conf'"):
            await volumes.ready("a")
        runtime.data = {"key": b"1"}
        path = Path((await volumes.ready("a", SECONDS))["conf"])
        runtime.data = {"key": b"2", "more": b"3"}
        await until(lambda: (path / "more").exists() and (path / "key").read_bytes() == b"2")
        runtime.data = {}
        await until(lambda: "there is no ConfigMap" in " ".join(volumes.told("a")))
        await volumes.ready("a")
        assert (path / "key").read_bytes() == b"2", "what there was stays"


async def test_a_volume_that_hangs_or_fails_holds_up_no_other(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, real = threading.Event(), operations.set_up

    def set_up(paths: Paths, wanted: Desired) -> str:
        if wanted.key.uid == "hangs":
            stuck.wait()
        if wanted.key.uid == "fails":
            raise RuntimeError("a bug")
        return real(paths, wanted)

    monkeypatch.setattr(operations, "set_up", set_up)
    monkeypatch.setattr(executor, "SLOW", 0.05)
    async with running(tmp_path, runtime) as volumes:
        pods = [pod(uid, PLAIN) for uid in ("hangs", "fails", *(f"p{number}" for number in range(30)))]
        volumes.want(pods, complete=True)
        for number in range(30):
            await volumes.ready(f"p{number}", SECONDS)
        with pytest.raises(NotReady, match="volume work: RuntimeError: a bug"):
            await volumes.ready("fails")
        await until(lambda: "the kernel does not answer" in " ".join(volumes.told("hangs")))
        volumes.want([], complete=True)
        runtime.dead = {one.metadata.uid for one in pods}
        assert await volumes.gone("p3", SECONDS) == []
        assert len(await volumes.gone("hangs")) == 2
        stuck.set()
        assert await volumes.gone("hangs", SECONDS) == []
        assert await volumes.gone("fails", SECONDS) == []


async def test_what_failed_is_tried_again(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hostpath.check
    failure: Exception | None = OSError(errno.EIO, "bad disk", "/x")

    def check(wanted: HostPath) -> str:
        if failure is not None:
            raise failure
        return real(wanted)

    monkeypatch.setattr(hostpath, "check", check)
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", f"{{name: host, hostPath: {{path: {tmp_path}}}}}")], complete=True)
        await until(lambda: volumes.told("a") == ["volume host: /x: bad disk"])
        failure = ValueError("no directory")
        await until(lambda: volumes.told("a") == ["volume host: no directory"])
        failure = None
        assert await volumes.ready("a", SECONDS) == {"host": str(tmp_path)}
        assert volumes.told("a") == []


async def test_what_an_earlier_manager_has_made_is_kept_or_goes(tmp_path: Path, runtime: Runtime) -> None:
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", PLAIN), pod("b", PLAIN)], complete=True)
        kept = Path((await volumes.ready("a", SECONDS))["work"])
        await volumes.ready("b", SECONDS)
    (kept / "file").write_text("content")
    runtime.dead = {"a", "b"}
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", PLAIN)], complete=False)
        await volumes.ready("a", SECONDS)
        assert await volumes.gone("b", 0.1) != []
        volumes.want([pod("a", PLAIN)], complete=True)
        assert await volumes.gone("b", SECONDS) == []
        assert (kept / "file").read_text() == "content"


async def test_a_volume_that_becomes_another_kind(tmp_path: Path, runtime: Runtime) -> None:
    async with running(tmp_path, runtime) as volumes:
        volumes.want([pod("a", "{name: v, emptyDir: {}}")], complete=True)
        before = Path((await volumes.ready("a", SECONDS))["v"])
        (before / "file").touch()
        volumes.want([pod("a", "{name: v, configMap: {name: conf}}")], complete=True)
        with pytest.raises(NotReady, match="has to go first"):
            await volumes.ready("a", 0.2)
        assert (before / "file").exists()
        runtime.dead.add("a")
        after = Path((await volumes.ready("a", SECONDS))["v"])
        assert (after / "key").read_bytes() == b"value"
        assert not before.exists()


async def test_what_containers_are_given(tmp_path: Path, runtime: Runtime) -> None:
    mounts = """{name: work, mountPath: /w, mountPropagation: Bidirectional}, {name: conf, mountPath: /c},
      {name: data, mountPath: /d, subPath: part}, {name: work, mountPath: /r, readOnly: true}"""
    volumes_of = f"{PLAIN}, {{name: data, image: {{reference: 'i:1', pullPolicy: Always}}}}"
    one = pod("a", volumes_of, mounts)
    main = one.spec.containers[0]
    async with running(tmp_path, runtime) as volumes:
        with pytest.raises(NotReady):
            await volumes.mounts(one, main, {})
        volumes.want([one], complete=True)
        paths = await volumes.ready("a", SECONDS)
        assert await volumes.mounts(one, main, {}) == [
            ContainerMount("work", "/w", paths["work"], propagation="Bidirectional"),
            ContainerMount("conf", "/c", paths["conf"], readonly=True),
            ContainerMount("data", "/d", readonly=True, image="i:1", image_pull_policy="Always", image_sub_path="part"),
            ContainerMount("work", "/r", paths["work"], readonly=True),
        ]
        (mount,) = main.volume_mounts[:1]
        unset = replace(main, volume_mounts=(replace(mount, sub_path_expr="$(NO)/x"),))
        with pytest.raises(NotReady, match="there is no variable NO"):
            await volumes.mounts(one, unset, {})
        up = replace(main, volume_mounts=(replace(mount, sub_path_expr="$(UP)"),))
        with pytest.raises(NotReady, match="not a path below the volume"):
            await volumes.mounts(one, up, {"UP": "../.."})


async def test_a_root_that_cannot_be_read_is_said(tmp_path: Path, runtime: Runtime) -> None:
    real = manager.world.find
    failing = True

    def find(paths: Paths) -> object:
        if failing:
            raise OSError(errno.EIO, "bad disk")
        return real(paths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager.world, "find", find)
        async with running(tmp_path, runtime) as volumes:
            volumes.want([pod("a", PLAIN)], complete=True)
            with pytest.raises(NotReady, match="cannot be learnt"):
                await volumes.ready("a", 0.2)
            assert await volumes.gone("b") != []
            failing = False
            await volumes.ready("a", SECONDS)
            assert await volumes.gone("b") == []


def test_events_are_of_few_pods(tmp_path: Path) -> None:
    one = executor.Executor(Paths(tmp_path))
    for number in range(executor.MOST_PODS + 5):
        for event in range(executor.MOST_EVENTS + 5):
            one.remember(f"p{number}", f"e{event}")
    assert one.events("p4") == []
    assert one.events("p5")[0] == "e5"
    assert one.words(Key("u", "secret", "v")) == ""
