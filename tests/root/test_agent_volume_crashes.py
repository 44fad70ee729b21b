"""F31: SIGKILL at every step of making volumes, finding them again and tearing them down: the next manager comes right.

A process forks a manager for each command: "up" (all volumes of two pods, parts bound) or "down" (nothing is wanted).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import disk
from kit.node import until

from holdfast.agent.volumes.paths import Paths
from holdfast.linux import loop, mount, quota

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: UID, uid: UID}
spec:
  securityContext: {fsGroup: 12345}
  containers:
  - {name: main, image: i, volumeMounts: [{name: plain, mountPath: /p, subPath: a/b}, {name: sized, mountPath: /s}]}
  volumes:
  - {name: plain, emptyDir: {}}
  - {name: sized, emptyDir: {sizeLimit: 4Mi}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: conf, configMap: {name: conf}}
  - {name: key, secret: {secretName: key}}
---
"""
DATA = """
{kind: ConfigMap, metadata: {name: conf}, data: {key: value}}
---
{kind: Secret, metadata: {name: key}, stringData: {key: hidden}}
"""
UIDS = ("uid-1", "uid-2")
VOLUMES = ("plain", "sized", "memory", "conf", "key")
PROGRAM = """
import asyncio, json, os, sys, traceback
from pathlib import Path
from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.manifest import parse
from holdfast.agent.volumes.manager import Manager, NotReady

found = parse(Path(sys.argv[2]).read_bytes(), "test")
data = {(one.kind, one.namespace, one.name): one for one in found.data}

async def dead(uid):
    return True

async def bound(volumes, pod):
    for _ in range(1000):
        try:
            return await volumes.mounts(pod, pod.spec.containers[0], {})
        except NotReady as exc:
            why = exc
            await asyncio.sleep(0.05)
    raise why

async def act(verb):
    volumes = Manager(Path(sys.argv[1]), dead, lambda pod: Facts(memory=1 << 30, data=data))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(volumes.run())
        volumes.want(found.pods if verb == "up" else [], complete=True)
        for pod in found.pods:
            if verb == "up":
                await volumes.ready(pod.metadata.uid, 60)
                await bound(volumes, pod)
            elif left := await volumes.gone(pod.metadata.uid, 60):
                raise AssertionError(left)
        running.cancel()

for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            asyncio.run(act(line.strip()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Host:
    """Where two pods are brought up and down, by managers that end when and how the test wants them to."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.paths = Paths(root)
        self._projects: set[int] = set()
        self._inject = directory / "inject"
        self._inject.mkdir()
        manifest = directory / "pods.yaml"
        manifest.write_text("".join(MANIFEST.replace("UID", uid) for uid in UIDS) + DATA)
        self._program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root), str(manifest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "HOLDFAST_INJECT": str(self._inject)},
        )

    def close(self) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait()
        self._program.stdout.close()

    def run(self, verb: str) -> None:
        """To its end, and well."""
        self._begin(verb)
        assert self._status() == 0, verb

    def trace(self, verb: str) -> Counter[str]:
        """The crash points that it passes, and the calls that may fail, with how often."""
        (self._inject / "trace").write_text("")
        self.run(verb)
        lines = (self._inject / "trace").read_text().splitlines()
        (self._inject / "trace").unlink()
        return Counter(line.split()[1] for line in lines)

    def kill_at(self, verb: str, point: str, count: int) -> bool:
        """Whether it came to that point."""
        hit = self._inject / f"{point}.hit"
        (self._inject / point).write_text(str(count))
        try:
            pid = self._begin(verb)
            while not (was_hit := hit.exists()) and not self._has_ended():
                time.sleep(0.001)
            if was_hit:
                os.kill(pid, signal.SIGKILL)
            status = self._status()
            self._learn_projects()
            assert status == (signal.SIGKILL if was_hit else 0), (verb, point, count)
            return was_hit
        finally:
            (self._inject / point).unlink(missing_ok=True)
            hit.unlink(missing_ok=True)

    def run_failing(self, verb: str, call: str, count: int, error: int) -> bool:
        """It comes to its end, and well, although a call fails. Returns whether one did."""
        armed = self._inject / call
        armed.write_text(f"{count} {error}")
        self.run(verb)
        hit = (self._inject / f"{call}.hit").exists()
        for path in (armed, self._inject / f"{call}.hit"):
            path.unlink(missing_ok=True)
        return hit

    def _begin(self, verb: str) -> int:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{verb}\n".encode())
        return int(self._program.stdout.readline())

    def _has_ended(self) -> bool:
        return bool(select.select([self._program.stdout], [], [], 0)[0])

    def _status(self) -> int:
        assert self._program.stdout is not None
        return int(self._program.stdout.readline())

    # -- what is to be seen

    def places(self) -> list[Path]:
        kinds = {"plain": "empty-dir", "memory": "empty-dir", "conf": "configmap", "key": "secret"}
        found = [self.paths.volume(uid, kind, name) for uid in UIDS for name, kind in kinds.items()]
        for uid in UIDS:
            sized = self.paths.sized(uid, "sized")
            found.append(sized if sized.exists() else self.paths.volume(uid, "empty-dir", "sized"))
        return found

    def is_up(self) -> None:
        targets = [one.target for one in mount.mountinfo() if one.target.startswith(f"{self.paths.root}/")]
        assert len(set(targets)) == len(targets), "mounted twice"
        assert all(place.is_dir() for place in self.places())
        for uid in UIDS:
            assert (self.paths.volume(uid, "configmap", "conf") / "key").read_text() == "value"
            assert (self.paths.volume(uid, "secret", "key") / "key").read_text() == "hidden"
            assert (self.paths.volume(uid, "empty-dir", "plain") / "a/b").is_dir()
            assert str(self.paths.subpath(uid, "plain", "main", 0)) in targets
            assert len(list(self.paths.journals(uid).glob("*.json"))) == len(VOLUMES)
        for place in self.places():
            if place.name in ("plain", "sized", "memory"):
                assert (place.stat().st_gid, place.stat().st_mode & 0o7777) == (12345, 0o2777), place
        self._learn_projects()
        limits = [quota.project(self.paths.pods, number).limit for number in sorted(self._projects)]
        assert set(limits) <= {4 << 20}
        assert len(limits) in (0, len(UIDS))
        assert not self.is_trash()

    def _learn_projects(self) -> None:
        for path in self.paths.pods.glob("*/volumes.d/*.json"):
            if number := json.loads(path.read_text())["project"]:
                self._projects.add(number)

    def is_trash(self) -> bool:
        return self.paths.trash.is_dir() and any(self.paths.trash.iterdir())

    def is_down(self) -> None:
        root = self.paths.root
        assert [one.target for one in mount.mountinfo() if one.target.startswith(f"{root}/")] == []
        assert sorted(path.name for path in root.rglob("*")) in (["pods", "trash"], ["pods"])
        images = [
            self.paths.image(uid, "sized") for uid in UIDS
        ]  # others' new namespaces have mounts of it for a moment
        until(lambda: not any(map(loop.device_of, images)), "the loop devices to go")
        os.sync()  # the filesystem counts what is gone
        until(lambda: all(quota.project(root, number).free for number in self._projects), "it to be counted")

    def mark(self) -> None:
        for place in self.places():
            if place.name in ("plain", "sized", "memory"):
                (place / "mark").write_text(str(place))

    def is_marked(self) -> None:
        for place in self.places():
            if place.name in ("plain", "sized", "memory"):
                assert (place / "mark").read_text() == str(place)


@contextlib.contextmanager
def host(root: Path, directory: Path) -> Iterator[Host]:
    one = Host(root, directory)
    try:
        yield one
    finally:
        one.close()
        mount.unmount_tree(root / "pods")


@pytest.fixture(params=["images", "quotas"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "quotas":
        image = disk.with_quotas("xfs", tmp_path)
        with disk.mounted(image, tmp_path / "root", "prjquota") as root, host(root, tmp_path) as one:
            yield one
        return
    root = tmp_path / "root"
    root.mkdir()
    mount.mount("agent", root, "tmpfs")
    try:
        with host(root, tmp_path) as one:
            yield one
    finally:
        mount.unmount_tree(root)


def points(passed: Counter[str], *, all_of_them: bool) -> list[tuple[str, int]]:
    """Each point, at the first time that it is passed, or at every one."""
    names = sorted(name for name in passed if not name.startswith(("fail-", "hang-")))
    return [(name, count) for name in names for count in range(1, passed[name] + 1 if all_of_them else 2)]


def cut_short_while_made(one: Host, *, all_of_them: bool) -> int:
    passed = one.trace("up")
    one.is_up()
    one.run("down")
    one.is_down()
    hits = 0
    for number, (point, count) in enumerate(points(passed, all_of_them=all_of_them)):
        hits += one.kill_at("up", point, count)
        if number % 2 or all_of_them:
            one.run("up")
            one.is_up()
            hits += all_of_them and one.kill_at("down", "volume.unbound", 1)
        one.run("down")
        one.is_down()
        if all_of_them:
            one.kill_at("up", point, count)
            one.run("down")
            one.is_down()
    return hits


def cut_short_while_found_again(one: Host, *, all_of_them: bool) -> int:
    """What is in a volume that is wanted is there whatever happens to managers."""
    one.run("up")
    one.mark()
    passed = one.trace("up")
    hits = 0
    for point, count in points(passed, all_of_them=all_of_them):
        hits += one.kill_at("up", point, count)
        one.is_marked()
    one.run("up")
    one.is_up()
    one.is_marked()
    one.run("down")
    one.is_down()
    return hits


def cut_short_while_torn_down(one: Host, canary: Path, *, all_of_them: bool) -> int:
    def up() -> None:
        one.run("up")
        for place in one.places():
            if place.name in ("plain", "sized", "memory"):
                (place / "in").mkdir(exist_ok=True)
                mount.bind(canary, place / "in")
                (place / "mark").touch()

    up()
    passed = one.trace("down")
    one.is_down()
    hits = 0
    for number, (point, count) in enumerate(points(passed, all_of_them=all_of_them)):
        up()
        hits += one.kill_at("down", point, count)
        if number % 2 or all_of_them:  # it is wanted again
            one.run("up")
        one.run("down")
        one.is_down()
        assert sorted(os.listdir(canary)) == ["file"]
    return hits


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    place = tmp_path / "canary"
    place.mkdir()
    (place / "file").write_text("alive")
    return place


def test_f31_killed_while_volumes_are_made(place: Host) -> None:
    assert cut_short_while_made(place, all_of_them=False) > 10


def test_f31_killed_while_volumes_are_found_again(place: Host) -> None:
    assert cut_short_while_found_again(place, all_of_them=False) > 3


def test_f31_killed_while_volumes_are_torn_down(place: Host, canary: Path) -> None:
    assert cut_short_while_torn_down(place, canary, all_of_them=False) > 6
    assert (canary / "file").read_text() == "alive"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_every_step_each_time(place: Host, canary: Path) -> None:
    made = cut_short_while_made(place, all_of_them=True)
    found = cut_short_while_found_again(place, all_of_them=True)
    ended = cut_short_while_torn_down(place, canary, all_of_them=True)
    print(f"killed {made} times while made, {found} while found again, {ended} while torn down")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_call_fails_once(place: Host) -> None:
    ups = place.trace("up")
    downs = place.trace("down")
    failures = 0
    for verb, passed in (("up", ups), ("down", downs)):
        for call in sorted(name for name in passed if name.startswith("fail-")):
            for count in sorted({1, passed[call] // 2 + 1, passed[call]}):
                if verb == "down":
                    place.run("up")
                failures += place.run_failing(verb, call, count, 5)
                if verb == "up":
                    place.is_up()
                    place.run("down")
                place.is_down()
    print(f"{failures} calls have failed")
    assert failures > 20
