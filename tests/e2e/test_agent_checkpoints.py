"""Checkpoints that the agent keeps of its pods, with a real daemon, runc and CRIU: made, listed, restored, removed."""

import concurrent.futures
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import IMAGE, Agent, running_agent
from kit.checkpoints import follow, numbers
from kit.node import Node, node, until
from kit.tools import CRIU, needs_criu

from holdfast.linux import files

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_criu]

POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: count
    image: {IMAGE}
    command: [sh, -c, "n=0; while :; do n=$((n+1)); echo $n; echo $n > /work/n; sleep 0.02; done"]
    livenessProbe: {{exec: {{command: ["true"]}}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}}
    volumeMounts: [{{name: work, mountPath: /work}}, {{name: fast, mountPath: /fast}}]
  volumes:
  - name: work
    emptyDir: {{}}
  - name: fast
    emptyDir: {{medium: Memory, sizeLimit: 1Mi}}
"""


@pytest.fixture(scope="module")
def one() -> Iterator[Node]:
    with node("runc", checkpoints=True, criu_path=CRIU) as made:
        yield made


@pytest.fixture
def agent(one: Node) -> Iterator[Agent]:
    with running_agent(one) as found:
        yield found


def test_a_checkpoint_is_kept_and_a_pod_is_made_of_it_again(one: Node, agent: Agent) -> None:
    agent.write("web.yaml", POD)
    first = agent.until(lambda: agent.running("count"), "the pod to run")
    until(lambda: len(numbers(one, first)) > 10)
    said = agent.cli("checkpoints", "make", "web", "--compress", "zstd").stdout
    path = Path(said.partition(":")[0])
    assert path.parent == agent.root / "checkpoints" and "stood still for" in said
    [listed] = json.loads(agent.cli("checkpoints", "list", "-o", "json").stdout)["items"]
    assert (listed["path"], int(listed["bytes"])) == (str(path), path.stat().st_size)
    at = len(numbers(one, first))
    until(lambda: len(numbers(one, first)) > at + 5)  # it goes on, and no probe has failed for it
    assert agent.running("count") == first
    assert follow(numbers(one, first))
    clash = one.cli("restore", str(path), check=False)
    assert clash.returncode == 1 and "default/web is there and runs; give this one another name" in clash.stderr
    assert len(one.pods()) == 1 and agent.running("count") == first
    (agent.manifests / "web.yaml").unlink()
    agent.until(lambda: not one.pods(), "the pod to go")
    pod = one.cli("restore", str(path), "--name", "again").stdout.strip()
    [again] = [found.id for found in one.containers() if found.pod_sandbox_id == pod]
    until(lambda: len(numbers(one, again)) > 5)
    assert follow(numbers(one, again)) and numbers(one, again)[0] > 10
    volume = next((one.root / "volumes" / pod).glob("pods/*/volumes/kubernetes.io~empty-dir/work"))
    written = until((volume / "n").read_text, "a number")  # it is written anew each time
    assert int(written) >= numbers(one, again)[0]
    memory = os.statvfs(volume.with_name("fast"))
    assert memory.f_blocks * memory.f_frsize == 1 << 20
    assert "again" not in agent.cli("get", "pods").stdout
    assert "again" in one.cli("pods").stdout
    agent.write("other.yaml", POD.replace("name: web", "name: other"))  # the agent looks at all pods there are, now
    agent.until(lambda: agent.running("count"), "another pod to run")
    at = len(numbers(one, again))
    until(lambda: len(numbers(one, again)) > at + 5)
    assert follow(numbers(one, again))
    (agent.manifests / "other.yaml").unlink()
    agent.until(lambda: [found.id for found in one.pods()] == [pod], "that to go, and nothing else")
    one.remove_pod(pod)
    agent.cli("checkpoints", "remove", path.name)
    assert not path.exists()
    assert agent.cli("checkpoints", "remove", path.name, check=False).returncode == 1
    files.remove_tree(one.base / "logs")


@pytest.mark.parametrize(("point", "kept"), [("agent.checkpoint", 0), ("agent.checkpointed", 1)])
def test_the_agent_is_killed_while_one_is_made(one: Node, agent: Agent, point: str, kept: int) -> None:
    """It is kept as a whole or not at all, and the pod goes on."""
    agent.write("web.yaml", POD)
    first = agent.until(lambda: agent.running("count"), "the pod to run")
    until(lambda: len(numbers(one, first)) > 10)
    (agent.inject / point).write_text("1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(agent.cli, "checkpoints", "make", "web", check=False)
        until((agent.inject / f"{point}.hit").exists, "the point to be passed")
        agent.end()
        (agent.inject / point).unlink(missing_ok=True)
        assert asked.result().returncode == 1
    agent.start()
    agent.until(lambda: agent.shown("web")[2:] == ["1/1", "Running"], "the pod to be seen again")
    listed = json.loads(agent.cli("checkpoints", "list", "-o", "json").stdout).get("items", [])
    assert len(listed) == kept
    assert sorted(os.listdir(agent.root / "checkpoints")) == [Path(found["path"]).name for found in listed]
    at = len(numbers(one, first))
    until(lambda: len(numbers(one, first)) > at + 5)
    assert agent.running("count") == first and follow(numbers(one, first))
    (agent.manifests / "web.yaml").unlink()
    agent.until(lambda: not one.pods(), "the pod to go")
    files.remove_tree(one.base / "logs")
