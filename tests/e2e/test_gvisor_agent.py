"""Pods of the agent under gVisor: an init container fills a workspace on disk, and two containers share it."""

import signal
from collections.abc import Iterator

import pytest
from kit.agent import IMAGE, Agent, running_agent
from kit.gvisor import filestores, gvisor_node, kill_sentry
from kit.node import Node
from kit.tools import needs_runsc

pytestmark = needs_runsc

POD = f"""
apiVersion: v1
kind: Pod
metadata:
  name: shared
  annotations: {{dev.holdfast.volume.workspace: shared-disk}}
spec:
  runtimeClassName: runsc
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: fill
    image: {IMAGE}
    command: [sh, -c, "echo filled > /workspace/first"]
    volumeMounts: [{{name: workspace, mountPath: /workspace}}]
  containers:
  - name: writer
    image: {IMAGE}
    command: [sh, -c, "trap exit TERM; while sleep 0.1; do date > /workspace/now; done"]
    volumeMounts: [{{name: workspace, mountPath: /workspace}}]
  - name: reader
    image: {IMAGE}
    command: [sh, -c, "trap exit TERM; while sleep 0.1; do :; done"]
    volumeMounts: [{{name: workspace, mountPath: /workspace, readOnly: true}}]
  volumes:
  - {{name: workspace, emptyDir: {{sizeLimit: 32Mi}}}}
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with gvisor_node() as one:
        yield one


@pytest.fixture
def there(shared: Node) -> Iterator[Agent]:
    with running_agent(shared) as one:
        (shared.base / "kubelet").symlink_to(one.root)  # which the daemon's configuration names
        yield one
        (shared.base / "kubelet").unlink()


def said(there: Agent, name: str, *command: str) -> str:
    return str(there.node.exec(there.running(name), command).stdout.decode())


def test_f38_a_workspace_of_the_agents_is_shared_and_ends_with_its_pod(there: Agent) -> None:
    there.write("shared.yaml", POD)
    there.until(lambda: there.shown("shared") == ["default", "shared", "2/2", "Running"], "the pod to run")
    assert said(there, "reader", "cat", "/workspace/first") == "filled\n"
    there.until(lambda: said(there, "reader", "cat", "/workspace/now"), "what the writer writes")
    (volume,) = there.root.glob("pods/*/volumes/*/workspace")
    (store,) = filestores(volume)
    assert not (volume / "first").exists() and store.stat().st_blocks
    there.restart(signal.SIGKILL)
    there.node.restart()
    there.until(lambda: there.shown("shared") == ["default", "shared", "2/2", "Running"], "the pod to be seen again")
    before = there.running("writer")
    there.node.stop_container(before)
    there.until(lambda: there.running("writer") not in ("", before), "the writer to be back")
    assert said(there, "writer", "cat", "/workspace/first") == "filled\n"
    dead = there.running("reader")
    kill_sentry(there.node, dead)
    there.until(lambda: there.running("reader") not in ("", dead), "another sandbox to be made")
    there.until(lambda: there.shown("shared") == ["default", "shared", "2/2", "Running"], "the pod to run again")
    assert said(there, "reader", "cat", "/workspace/first") == "filled\n"  # by the init container, which ran anew
    assert len(filestores(volume)) == 1
    (there.manifests / "shared.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")
    assert there.end(signal.SIGTERM) == 0
