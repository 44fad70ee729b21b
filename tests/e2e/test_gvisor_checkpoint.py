"""F38, google/gvisor#13595: whole gVisor pods as archives, with an emptyDir on disk that two containers share."""

import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.cni import network
from kit.gvisor import RUNTIMES, emptydir, filestores, gvisor_node, last_number, mounted, numbers, shim
from kit.node import Node, until
from kit.tools import needs_runsc

from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = needs_runsc

MIB = 1 << 20
SECONDS = 120.0
PRIVATE = {"network": pb.POD}
SHARED = {"dev.holdfast.volume.workspace": "shared-disk"}
WRITER = """
test -e /workspace/blob || head -c {size} /dev/urandom > /workspace/blob
echo layer > /mine; echo shm > /dev/shm/x; n=0
while true; do n=$((n+1)); echo $n > /workspace/new; mv /workspace/new /workspace/count; echo $n; sleep 0.05; done
"""
READER = "while true; do cat /workspace/count 2>/dev/null; sleep 0.05; done"


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with gvisor_node(checkpoints=True) as one:
        yield one


@pytest.fixture
def one(shared: Node) -> Iterator[Node]:
    yield shared
    for pod in shared.pods():
        shared.remove_pod(pod.id)
    for name in ("checkpoints", "restores", "volumes"):
        assert not (shared.root / name).exists() or not os.listdir(shared.root / name)
    shutil.rmtree(shared.base / "archives", ignore_errors=True)  # noqa: TID251  (of files only)
    assert not shared.leftovers()


class Pod:
    """A writer and a reader with a workspace between them, and a plain volume on the host."""

    def __init__(self, one: Node, size: int = 4 * MIB) -> None:
        self.node, config = one, one.pod_config(annotations=SHARED, **PRIVATE)
        self.volume, self.plain = emptydir(one, config), emptydir(one, config, "plain")
        self.id = one.run_pod(config)
        mounts = [mounted(self.volume), mounted(self.plain, "/plain")]
        self.writer = one.run(self.id, WRITER.format(size=size), "writer", mounts=mounts, **PRIVATE)
        self.reader = one.run(self.id, READER, "reader", mounts=mounts, **PRIVATE)
        self.sh(self.writer, "echo plain > /plain/file")
        counting(one, self.writer, self.reader)
        self.blob = self.sh(self.writer, "md5sum < /workspace/blob")

    def sh(self, container: str, script: str) -> str:
        return sh(self.node, container, script)


def sh(one: Node, container: str, script: str) -> str:
    done = one.exec(container, ["/bin/sh", "-c", script], seconds=60)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout.decode())


def counting(one: Node, *containers: str) -> None:
    before = {container: last_number(one, container) for container in containers}
    until(lambda: all(last_number(one, container) > before[container] + 2 for container in containers), "them to count")


def checkpoint(one: Node, pod: str, name: str = "pod.tar", **how: Any) -> tuple[Path, Any]:
    target = one.base / "archives" / name
    target.parent.mkdir(exist_ok=True)
    request = node_pb2.CheckpointPodRequest(pod_id=pod, location=str(target), **how)
    return target, node_pb2_grpc.NodeStub(one.channel).CheckpointPod(request, timeout=SECONDS)


def restore(one: Node, archive: Path, name: str) -> tuple[str, dict[str, str]]:
    """The id of the new pod, and its containers by name."""
    request = node_pb2.RestorePodRequest(location=str(archive), name=name)
    pod = str(node_pb2_grpc.NodeStub(one.channel).RestorePod(request, timeout=SECONDS).pod_id)
    return pod, {found.metadata.name: found.id for found in one.containers() if found.pod_sandbox_id == pod}


def test_f38_a_pod_goes_on_with_its_workspace_and_so_does_the_one_after_it(one: Node) -> None:
    pod = Pod(one)
    archive, reply = checkpoint(one, pod.id, leave_running=True)
    assert 0 < reply.frozen_seconds < SECONDS and reply.bytes == archive.stat().st_size
    at, blob = last_number(one, pod.writer), pod.blob
    counting(one, pod.writer, pod.reader)  # it was left running
    one.remove_pod(pod.id)
    assert not filestores(pod.volume)
    for generation in ("second", "third"):
        new, members = restore(one, archive, generation)
        writer, reader = members["writer"], members["reader"]
        counting(one, writer, reader)
        begins, *rest = numbers(one, writer)
        assert 3 < begins <= at + 2 and rest == list(range(begins + 1, begins + 1 + len(rest)))
        assert numbers(one, reader)[0] >= begins - 1
        assert sh(one, reader, "md5sum < /workspace/blob") == blob
        assert sh(one, writer, "cat /mine /dev/shm/x /plain/file") == "layer\nshm\nplain\n"
        sh(one, reader, "echo hello > /workspace/said")
        assert sh(one, writer, "cat /workspace/said") == "hello\n"
        assert sh(one, reader, "cat /plain/file") == "plain\n"
        archive, _ = checkpoint(one, new, f"{generation}.tar")
        assert one.exited(writer).exit_code == one.exited(reader).exit_code == 137
        at = numbers(one, writer)[-1]
        one.remove_pod(new)


def test_an_archive_says_what_is_in_it(one: Node) -> None:
    pod = Pod(one)
    archive, _ = checkpoint(one, pod.id, compress="zstd")
    assert one.exited(pod.writer).exit_code == 137
    restored, members = restore(one, archive, "unpacked")
    counting(one, *members.values())
    plain, _ = checkpoint(one, restored, "plain.tar")
    with tarfile.open(plain) as found:
        names = found.getnames()
    assert "sandbox/checkpoint/checkpoint.img" in names and "volumes/plain.tar" in names
    assert "volumes/workspace.tar" not in names
    assert {"containers/writer/config.dump", "containers/reader/spec.dump"} <= set(names)


def test_what_cannot_be_checkpointed_is_refused_and_runs_on(one: Node) -> None:
    pod = one.run_pod(one.pod_config(network=pb.NODE))
    container = one.run(pod, READER.replace("cat /workspace/count", "echo 1"))
    with pytest.raises(grpc.RpcError) as refused:
        checkpoint(one, pod)
    assert "on the host's network" in str(refused.value.details())
    assert one.works(container)


@pytest.mark.parametrize("dead", ["daemon", "shim"])
def test_a_pod_that_was_to_be_left_running_runs_whoever_dies(one: Node, dead: str) -> None:
    pod = Pod(one, 64 * MIB)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(checkpoint, one, pod.id, leave_running=True)
        until(lambda: list((one.state / "pods" / pod.id).glob("*/frozen")), "it to be frozen")
        if dead == "daemon":
            one.kill()
        else:
            os.kill(shim(one, pod.id), signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            asked.result()
    if dead == "daemon":
        one.start()
    counting(one, pod.writer, pod.reader)
    assert not (one.base / "archives/pod.tar").exists()
    assert pod.sh(pod.reader, "md5sum < /workspace/blob") == pod.blob
    checkpoint(one, pod.id, "again.tar", leave_running=True)
    counting(one, pod.writer, pod.reader)


def test_a_restored_pod_answers_at_another_address() -> None:
    with network(default_runtime="runsc", runtimes=RUNTIMES, checkpoints=True) as net:
        node = net.node
        first, asking = (node.run_pod(node.pod_config(name, **PRIVATE)) for name in ("server", "client"))
        node.run(first, "while true; do nc -l -p 80 -e /bin/echo hello; done", "server", **PRIVATE)
        client = node.run(asking, ["/bin/sleep", "100000"], **PRIVATE)

        def address(pod: str) -> str:
            request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
            return str(node.call("PodSandboxStatus", request).status.network.ip)

        def answers(where: str) -> bool:
            return bool(node.exec(client, ["/bin/sh", "-c", f"nc {where} 80"]).stdout == b"hello\n")

        before = address(first)
        until(lambda: answers(before), "an answer")
        archive, _ = checkpoint(node, first)
        second, _ = restore(node, archive, "again")
        after = address(second)
        assert after != before
        until(lambda: answers(after), "an answer from the other address")
