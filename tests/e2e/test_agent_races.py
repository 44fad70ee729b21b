"""Pods are made and deleted in a loop while somebody mounts his own in their volumes and swaps directories for links.

The volume manager alone is raced in tests/root/test_agent_volumes.py; here it is the agent with a daemon, whose guard
detaches mounts as well when a sandbox is stopped.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import disk
from kit.agent import IMAGE, Agent, running_agent
from kit.node import Node

from holdfast.linux import mount

FILES = 20
OTHERS = 2  # pods that come and go beside each other
UP_SECONDS = 10.0  # a container whose subPath leads out of its volume at each try does not start
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, uid: NAME-uid}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: NAME
    image: IMAGE
    command: [sh, -c, "echo mine > /part/mine; echo mine > /work/mine; while sleep 0.1; do :; done"]
    volumeMounts:
    - {name: work, mountPath: /work, mountPropagation: HostToContainer}
    - {name: work, mountPath: /part, subPath: a/b}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
"""
RACER = """
import glob, os, random, sys, time
from holdfast.linux import mount
verb, root, canary = sys.argv[1:]
opened = {}
done = 0

def attempt(call, *arguments):
    try:
        call(*arguments)
        return 1
    except OSError:
        return 0

def race(place, number):
    if verb == "mount":
        below = f"{place}/d{number % 3}"
        attempt(os.mkdir, below)
        made = attempt(mount.bind, canary, below)
        if number % 2:
            attempt(mount.detach, below)
        return made
    attempt(os.rename, f"{place}/a", f"{place}/a.{number}")
    made = attempt(os.symlink, canary, f"{place}/a")
    time.sleep(0.0003)
    attempt(os.unlink, f"{place}/a")
    attempt(os.rename, f"{place}/a.{number}", f"{place}/a")
    time.sleep(0.001)
    return made

number = 0
while True:
    time.sleep(random.uniform(0, 0.4))
    over = time.monotonic() + random.uniform(0, 0.4)  # in between others come to what they want
    while time.monotonic() < over:
        number += 1
        for place in glob.glob(f"{root}/pods/*/volumes/kubernetes.io~empty-dir/*") + glob.glob(f"{root}/trash/*"):
            try:
                if place not in opened:
                    opened[place] = os.open(place, os.O_PATH)
            except OSError:
                continue
        for place, directory in list(opened.items()):
            if os.fstat(directory).st_nlink:
                done += race(f"/proc/self/fd/{directory}", number)
            else:
                os.close(opened.pop(place))
        time.sleep(0.001)
    print(done, flush=True)
"""


@contextlib.contextmanager
def racer(verb: str, root: Path, canary: Path, said: Path) -> Iterator[None]:
    with said.open("wb") as output:
        command = [sys.executable, "-c", RACER, verb, str(root), str(canary)]
        process = subprocess.Popen(command, stdout=output)
        try:
            yield
        finally:
            assert process.poll() is None, "it has raced to the end"
            process.kill()
            process.wait()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with disk.handed_on(tmp_path / "place") as found:
        yield found


@pytest.fixture
def agent(shared: Node, place: Path) -> Iterator[Agent]:
    with running_agent(shared, place / "root") as one:
        yield one


@pytest.fixture
def canary(place: Path) -> Iterator[Path]:
    """A directory of somebody else's on the same filesystem, to be found whole in the end, with nothing made in it."""
    found = place / "canary"
    (found / "deep").mkdir(parents=True)
    for number in range(FILES):
        (found / "deep" / f"file-{number}").write_text(str(number))
    yield found
    assert sorted(os.listdir(found)) == ["deep"]
    assert sorted(os.listdir(found / "deep")) == sorted(f"file-{number}" for number in range(FILES))
    assert all((found / "deep" / f"file-{number}").read_text() == str(number) for number in range(FILES))


def left(agent: Agent, name: str) -> list[str]:
    found = [f"pod {one.id}" for one in agent.node.pods() if one.metadata.name == name]
    places = (agent.root / "pods", agent.root / "trash")
    return found + [str(path) for place in places if place.exists() for path in place.glob(f"{name}-uid*")]


def race(agent: Agent, canary: Path, seconds: float) -> tuple[int, int]:
    """How many pods there were, and how many of them have run."""
    pods, ran = 0, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        names = [f"p{pods + number}" for number in range(OTHERS)]
        for name in names:
            agent.write(f"{name}.yaml", MANIFEST.replace("NAME", name).replace("IMAGE", IMAGE))
        up = time.monotonic() + UP_SECONDS
        while time.monotonic() < up and not all(agent.running(name) for name in names):
            time.sleep(0.01)
        ran += sum(bool(agent.running(name)) for name in names)
        for name in names:
            (agent.manifests / f"{name}.yaml").unlink()
        for name in names:
            agent.until(lambda name=name: not left(agent, name), f"the end of {name}", 120)
        pods += OTHERS
    return pods, ran


def nothing_is_left(agent: Agent) -> None:
    agent.until(lambda: not agent.left(), "nothing to be left", 150)


def raced(agent: Agent, canary: Path, tmp_path: Path, seconds: float) -> int:
    agent.until(lambda: (agent.root / "agent.sock").exists(), "the agent")
    said = {verb: tmp_path / verb for verb in ("mount", "swap")}
    with racer("mount", agent.root, canary, said["mount"]), racer("swap", agent.root, canary, said["swap"]):
        pods, ran = race(agent, canary, seconds)
    nothing_is_left(agent)
    done = {verb: int(path.read_text().split()[-1]) for verb, path in said.items()}
    print(f"{pods} pods, of which {ran} have run; {done['mount']} mounts, {done['swap']} links")
    assert all(done.values())
    assert [one for one in mount.mountinfo() if str(agent.root) in one.target] == []
    return pods


def test_f31_pods_come_and_go_while_somebody_mounts_and_swaps(agent: Agent, canary: Path, tmp_path: Path) -> None:
    assert raced(agent, canary, tmp_path, 5.0)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_minute_of_pods_while_somebody_mounts_and_swaps(agent: Agent, canary: Path, tmp_path: Path) -> None:
    assert raced(agent, canary, tmp_path, 60.0) >= OTHERS * 4
