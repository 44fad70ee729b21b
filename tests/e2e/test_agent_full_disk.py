"""The agent on a disk without a byte or an inode to be had: what runs is kept and shown, what is to go goes."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import disk
from kit.agent import IMAGE, Agent, running_agent
from kit.node import Node

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, uid: NAME-uid}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: NAME
    image: IMAGE
    command: [sh, -c, "trap 'exit 0' TERM; while sleep 0.1; do :; done"]
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
    volumeMounts:
    - {name: work, mountPath: /work}
    - {name: work, mountPath: /part, subPath: a}
    - {name: memory, mountPath: /memory}
    - {name: conf, mountPath: /conf}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: conf, configMap: {name: NAME}}
---
{kind: ConfigMap, metadata: {name: NAME}, data: {said: v1}}
"""


@pytest.fixture
def agent(shared: Node, tmp_path: Path) -> Iterator[Agent]:
    with disk.small("ext4", tmp_path) as place:
        try:
            with running_agent(shared, place) as one:
                yield one
        finally:
            disk.free(place)


def fill(agent: Agent) -> None:
    """However much the agent gives back meanwhile, of what it replaces or removes."""
    agent.until(lambda: (disk.fill(agent.root), disk.is_full(agent.root))[1], "the disk to be full")


def write(agent: Agent, name: str) -> None:
    agent.write(f"{name}.yaml", MANIFEST.replace("NAME", name).replace("IMAGE", IMAGE))


def is_up(agent: Agent, name: str) -> bool:
    return agent.shown(name)[2:] == ["1/1", "Running"] and bool(agent.running(name))


def left(agent: Agent, name: str) -> list[str]:
    found = [f"pod {one.id}" for one in agent.node.pods() if one.metadata.name == name]
    places = (agent.root / "pods", agent.root / "trash", agent.logs)
    return found + [
        str(one) for place in places if place.exists() for one in place.iterdir() if f"{name}-uid" in one.name
    ]


def test_a_full_disk_ends_and_doubles_nothing_and_pods_can_be_deleted(agent: Agent) -> None:
    names = ("a", "b", "c")
    for name in names:
        write(agent, name)
    for name in names:
        agent.until(lambda name=name: is_up(agent, name), f"{name} to be ready")
    runs = {name: agent.running(name) for name in names}
    for name in names:
        (agent.root / f"pods/{name}-uid/volumes/kubernetes.io~empty-dir/work/mark").write_text(name)
    fill(agent)

    (agent.manifests / "a.yaml").unlink()
    agent.until(lambda: not left(agent, "a"), "the end of a pod on a full disk")
    fill(agent)
    assert [agent.running(name) for name in ("b", "c")] == [runs["b"], runs["c"]]

    agent.restart(signal.SIGKILL)
    agent.until(lambda: is_up(agent, "b") and is_up(agent, "c"), "an agent that begins on a full disk to show them")
    os.kill(agent.node.pid(runs["c"]), signal.SIGKILL)
    write(agent, "d")
    agent.until(lambda: "pod d-uid" in agent.log(), "it to be said that no pod can be begun")
    agent.until(
        lambda: "Running" not in agent.shown("c") or is_up(agent, "c"), "what has ended not to be shown as running"
    )
    assert agent.running("b") == runs["b"]
    assert len(agent.runs("c")) <= 2
    assert not agent.running("d")
    (agent.manifests / "b.yaml").unlink()
    agent.until(lambda: not left(agent, "b"), "the end of a pod whose agent has begun on a full disk")
    assert agent.log().count("pod d-uid") == 1, "it is said once"

    disk.free(agent.root)
    for name in ("c", "d"):
        agent.until(lambda name=name: is_up(agent, name), f"{name}, now that there is room")
    assert len(agent.runs("c")) == 2, "it has ended once, and was begun anew once"
    assert (agent.root / "pods/c-uid/volumes/kubernetes.io~empty-dir/work/mark").read_text() == "c"
    for name in ("c", "d"):
        (agent.manifests / f"{name}.yaml").unlink()
    agent.until(lambda: not agent.left(), "nothing to be left")
    with contextlib.suppress(FileNotFoundError):
        assert not list((agent.root / "trash").iterdir())
