"""F38, google/gvisor#13595: whole gVisor pods as archives, with an emptyDir on disk that two containers share."""

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.checkpoints import emptied
from kit.cni import network
from kit.crash import Inject, recovered
from kit.gvisor import (
    RUNTIMES,
    emptydir,
    filestores,
    gvisor_node,
    last_number,
    lines,
    mounted,
    numbers,
    resident,
    used,
)
from kit.node import Node, until
from kit.tools import needs_runsc

from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = needs_runsc

MIB = 1 << 20
SECONDS = 120.0
PRIVATE = {"network": pb.POD}
SHARED = {"dev.holdfast.volume.workspace": "shared-disk"}
HINTS = "dev.gvisor.spec.mount.workspace."
WRITER = """
test -e /workspace/blob || head -c {size} /dev/urandom > /workspace/blob
echo layer > /mine; echo shm > /dev/shm/x; n=0
while true; do n=$((n+1)); echo $n > /workspace/new; mv /workspace/new /workspace/count; echo $n; usleep 50000; done
"""
READER = "while true; do cat /workspace/count 2>/dev/null; usleep 50000; done"


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with gvisor_node(checkpoints=True, inject=True) as one:
        yield one


@pytest.fixture
def one(shared: Node) -> Iterator[Node]:
    with emptied(shared):
        yield shared


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
        assert numbers(one, reader)[0] >= begins - 2  # what it had read when all stood still, and the writer one more
        assert sh(one, reader, "md5sum < /workspace/blob") == blob
        assert sh(one, writer, "cat /mine /dev/shm/x /plain/file") == "layer\nshm\nplain\n"
        sh(one, reader, "echo hello > /workspace/said")
        assert sh(one, writer, "cat /workspace/said") == "hello\n"
        assert sh(one, reader, "cat /plain/file") == "plain\n"
        archive, _ = checkpoint(one, new, f"{generation}.tar")
        assert one.exited(writer).exit_code == one.exited(reader).exit_code == 137
        at = numbers(one, writer)[-1]
        one.remove_pod(new)


@pytest.mark.parametrize("size", [64 * MIB, pytest.param(200 * MIB, marks=pytest.mark.soak)], ids=["small", "large"])
def test_f38_written_by_one_while_the_other_reads_and_moved_twice(one: Node, size: int) -> None:
    pod = Pod(one, 0)
    sentry = one.pid(pod.writer)
    before = resident(sentry)
    look = "n=$(cat /workspace/large 2>/dev/null | wc -c); test $n = 0 || touch /workspace/seen"
    half = f"head -c {size // 2} /dev/urandom >> /workspace/large"  # the other half comes when somebody has seen of it
    write = f"{half}; until test -e /workspace/seen; do usleep 10000; done; {half}; touch /workspace/whole"
    with ThreadPoolExecutor() as pool:
        read = pool.submit(sh, one, pod.reader, f"until test -e /workspace/whole; do {look}; done")
        wanted = sh(one, pod.writer, f"{write}; md5sum < /workspace/large")
        read.result()
    assert list(pod.volume.iterdir()) == filestores(pod.volume)
    assert used(pod.volume) >= size
    assert resident(sentry) - before < size // 2
    print(f"{size} bytes: {used(pod.volume)} on disk, {resident(sentry) - before} more in memory")
    id, members, volume = pod.id, {"writer": pod.writer, "reader": pod.reader}, pod.volume
    for generation in ("second", "third"):
        archive, reply = checkpoint(one, id, f"{generation}.tar")
        print(f"{generation}: {reply.bytes} bytes, frozen for {reply.frozen_seconds:.3f} s")
        assert one.exited(members["writer"]).exit_code == 137
        at = numbers(one, members["writer"])[-1]
        one.remove_pod(id)
        assert not volume.exists() or not filestores(volume)
        id, members = restore(one, archive, generation)
        archive.unlink()
        counting(one, *members.values())
        assert 0 < numbers(one, members["writer"])[0] - at <= 2
        assert {sh(one, container, "md5sum < /workspace/large") for container in members.values()} == {wanted}
        for container, other in zip(members.values(), reversed(members.values()), strict=True):
            sh(one, container, f"echo {container} > /workspace/said")
            assert sh(one, other, "cat /workspace/said") == f"{container}\n"
        (volume,) = (one.root / "volumes" / id).glob("pods/*/volumes/*/workspace")
        assert used(volume) >= size
        assert resident(one.pid(members["writer"])) < before + size


@pytest.mark.parametrize(
    ("annotations", "on_disk", "by_both", "captured"),
    [
        pytest.param({}, True, True, False, id="bind"),
        pytest.param({f"{HINTS}type": "bind", f"{HINTS}share": "shared"}, True, True, False, id="passthrough"),
        pytest.param({f"{HINTS}type": "tmpfs"}, False, False, True, id="memory"),
        pytest.param({f"{HINTS}type": "tmpfs", f"{HINTS}share": "pod"}, True, True, True, id="wanted"),
    ],
)
def test_f38_the_shapes_of_gvisor_13595(
    one: Node, annotations: dict[str, str], on_disk: bool, by_both: bool, captured: bool
) -> None:
    """On disk, shared, in the sandbox's images: upstream two of the three at most. What is not there is beside them."""
    config = one.pod_config(annotations=annotations, **PRIVATE)
    volume = emptydir(one, config)
    pod = one.run_pod(config)
    script = "echo ready; exec sleep 100000"
    names = ("first", "second")
    first, second = (one.run(pod, script, name, mounts=[mounted(volume)], **PRIVATE) for name in names)
    blob = sh(one, first, f"head -c {4 * MIB} /dev/urandom > /workspace/blob; md5sum < /workspace/blob")
    assert (used(volume) >= 4 * MIB) == on_disk
    assert (sh(one, second, "cat /workspace/blob | md5sum") == blob) == by_both
    archive, _ = checkpoint(one, pod)
    with tarfile.open(archive) as found:
        assert ("volumes/workspace.tar" not in found.getnames()) == captured
    one.remove_pod(pod)
    _, members = restore(one, archive, "again")
    assert sh(one, members["first"], "md5sum < /workspace/blob") == blob
    assert (sh(one, members["second"], "cat /workspace/blob | md5sum") == blob) == by_both


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


def test_processes_that_have_ended_are_not_written(one: Node) -> None:
    """Each that looks at /proc/self is remembered by the sentry with a hundred KiB, and 5 ms of standing still."""
    config = one.pod_config(annotations=SHARED, **PRIVATE)
    emptydir(one, config)
    pod = one.run_pod(config)
    members = [
        one.run(
            pod, "for i in $(seq 300); do /bin/true; done; echo 1; exec sleep 100000", name, network=pb.POD, pid=pid
        )
        for name, pid in (("own", pb.CONTAINER), ("shared", pb.POD))
    ]
    until(lambda: all(lines(one, container) for container in members), "them to have run their programs")
    _, reply = checkpoint(one, pod, leave_running=True)
    assert reply.bytes < 8 * MIB  # 36 MiB for each of them otherwise
    assert all(map(one.works, members))


@pytest.mark.parametrize("dead", ["daemon", "shim"])
def test_a_pod_that_was_to_be_left_running_runs_whoever_dies(one: Node, dead: str) -> None:
    pod, inject = Pod(one), Inject(one)
    inject.arm("shim.frozen", 1)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(checkpoint, one, pod.id, leave_running=True)
        stands = until(lambda: inject.hit("shim.frozen"), "it to be frozen")
        assert inject.strike(stands, dead, set())
        assert isinstance(asked.exception(), grpc.RpcError)
    inject.disarm("shim.frozen")
    if dead == "daemon":
        one.start()
        until(lambda: recovered(one), "recovery")
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
