"""Records that are lost or damaged, and manifests that are out of reach: it concerns that pod, and destroys nothing."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import IMAGE, Agent, running_agent
from kit.node import Node

from holdfast.linux import mount

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
    command: [sh, -c, "echo $SAID > /work/said; trap 'exit 0' TERM; while sleep 0.1; do :; done"]
    env: [{name: SAID, valueFrom: {configMapKeyRef: {name: NAME, key: said}}}]
    volumeMounts: [{name: work, mountPath: /work}, {name: conf, mountPath: /conf}]
  volumes:
  - {name: work, emptyDir: {}}
  - {name: conf, configMap: {name: NAME}}
---
{kind: ConfigMap, metadata: {name: NAME}, data: {said: something}}
"""


@pytest.fixture
def agent(shared: Node) -> Iterator[Agent]:
    with running_agent(shared) as one:
        for name in ("a", "b"):
            one.write(f"{name}.yaml", MANIFEST.replace("NAME", name).replace("IMAGE", IMAGE))
        for name in ("a", "b"):
            one.until(lambda name=name: one.shown(name)[2:] == ["1/1", "Running"], name)
        yield one


def work(agent: Agent, name: str) -> Path:
    return agent.root / f"pods/{name}-uid/volumes/kubernetes.io~empty-dir/work"


SOAK = [pytest.param(one, marks=pytest.mark.soak) for one in ("lost", "all of it lost")]


@pytest.mark.parametrize("how", ["damaged", *SOAK])
def test_f31_a_record_that_is_no_more_concerns_its_pod_alone(agent: Agent, how: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("alive")
    (work(agent, "a") / "in").mkdir()
    mount.bind(tmp_path, work(agent, "a") / "in")
    run = agent.running("a")
    agent.end(signal.SIGKILL)
    record = agent.root / "pods/a-uid/record.json"
    if how == "damaged":
        record.write_bytes(record.read_bytes()[:100])
    elif how == "lost":
        record.unlink()
    else:
        mount.detach(work(agent, "a") / "in")
        shutil.rmtree(agent.root / "pods/a-uid")  # noqa: TID251  (somebody's)
    os.kill(agent.node.pid(run), signal.SIGKILL)  # that it has ended is no proof that nobody wants it
    for name in ("a", "b"):
        (agent.manifests / f"{name}.yaml").rename(agent.base / f"{name}.yaml")
    agent.start()
    word = "RecordUnreadable" if how == "damaged" else "RecordLost"
    agent.until(lambda: agent.shown("a") == ["default", "a", "0/0", word], "it to be shown")
    told = agent.cli("describe", "pod", "a").stdout
    assert "put its manifest back" in told
    (pod,) = (one for one in agent.node.pods() if one.metadata.name == "a")
    assert f"holdfast rmp -f {pod.id[:13]}" in told
    agent.until(lambda: not (agent.root / "pods/b-uid").exists(), "the end of the other, with its volumes")
    assert [one.metadata.name for one in agent.node.pods()] == ["a"]
    assert [one.metadata.name for one in agent.node.containers()] == ["a"]
    if how == "all of it lost":
        (agent.base / "a.yaml").rename(agent.manifests / "a.yaml")
        agent.until(lambda: agent.shown("a")[2:] == ["1/1", "Running"], "it to be looked after again")
        (agent.manifests / "a.yaml").unlink()
    else:
        assert (work(agent, "a") / "said").read_text() == "something\n"
        assert (work(agent, "a") / "in/file").read_text() == "alive"
        record.unlink(missing_ok=True)
        assert agent.node.cli("rmp", "-f", pod.id[:13]).returncode == 0
    agent.until(
        lambda: not (agent.root / "pods/a-uid").exists(), "all that it had to go, now that the runtime has nothing"
    )
    assert (tmp_path / "file").read_text() == "alive"
    assert agent.cli("get", "pods").stdout == ""


def test_containers_are_restarted_while_manifests_are_out_of_reach(agent: Agent) -> None:
    agent.until(lambda: (agent.root / "data.json").exists(), "what the ConfigMaps say to be written down")
    agent.end(signal.SIGKILL)
    agent.manifests.rename(agent.base / "away")
    agent.start()
    agent.until(lambda: agent.shown("a")[2:] == ["1/1", "Running"], "it to be known")
    run = agent.running("a")
    (work(agent, "a") / "said").unlink()
    os.kill(agent.node.pid(run), signal.SIGKILL)
    agent.until(lambda: agent.running("a") not in ("", run), "it to be restarted")
    said = work(agent, "a") / "said"
    agent.until(lambda: said.exists() and said.read_text() == "something\n", "it to be told what its ConfigMap says")
    assert f"Warning: {agent.manifests}: " in agent.cli("get", "pods").stderr
    (agent.base / "away").rename(agent.manifests)
    for name in ("a", "b"):
        (agent.manifests / f"{name}.yaml").unlink()
    agent.until(lambda: not agent.left(), "nothing to be left")
