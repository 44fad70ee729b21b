"""For how long does a pod stand still while it is checkpointed, and how long is a copy of the same bytes, in turns?

    python bench/checkpoint.py [--mebibytes N] [--rounds N]

The frozen window is what Holdfast reports of pods that are left running. A copy is that of a file with as many bytes,
from the page cache to the same filesystem, by the kernel. What there is to be done for a pod that has nothing is the
floor. Needs root, and runc with CRIU, or runsc, from .tools or PATH.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from holdfast.linux import files
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
sys.path.insert(0, str(Path(__file__).parent))
from peers import Holdfast, container_config, images, pod_config, running

TOOLS = Path(__file__).parent.parent / ".tools/bin"
MIB = 1 << 20
SECONDS = 300.0
SHARED = {"dev.holdfast.volume.work": "shared-disk"}
WAIT = "echo ready; exec sleep 100000"
# By runtime: what a pod has, its annotations, and what has it.
LOADS = {
    "runc": {
        "nothing": ({}, WAIT),
        "memory": ({}, "echo ready; dd if=/dev/{kind} bs={size} count=1 iflag=fullblock 2>/dev/null | sleep 100000"),
        "writable layer": ({}, "head -c {size} /dev/{kind} > /blob; " + WAIT),
        "emptyDir": ({}, "head -c {size} /dev/{kind} > /work/blob; " + WAIT),
        "emptyDir, 16 KiB files": (
            {}, "head -c {size} /dev/{kind} | split -a 5 -b 16384 - /work/part-; " + WAIT,
        ),
    },
    "runsc": {
        "nothing": ({}, WAIT),
        "1,500 programs run": ({}, "for i in $(seq 1500); do /bin/true; done; " + WAIT),
        "emptyDir on the host": ({}, "head -c {size} /dev/{kind} > /work/blob; " + WAIT),
        "emptyDir in the pod": (SHARED, "head -c {size} /dev/{kind} > /work/blob; " + WAIT),
        "the same, of one letter": (SHARED, "tr '\\0' a < /dev/zero | head -c {size} > /work/blob; " + WAIT),
    },
}  # fmt: skip


def find(program: str) -> str:
    return shutil.which(program, path=f"{TOOLS}:{os.environ['PATH']}") or ""


class Node(Holdfast):
    """One that can checkpoint."""

    def command(self) -> list[str]:
        command = super().command()
        with (self.base / "config.toml").open("a") as config:
            config.write(f'checkpoints = true\ncriu_path = "{find("criu")}"\nvolume_roots = ["{self.base}/kubelet"]\n')
            if self.runtime == "runsc":
                config.write(f'[runtimes.runsc]\nbinary = "{find("runsc")}"\n')
        return command


def begin(node: Node, number: int, annotations: dict[str, str], script: str) -> str:
    """A pod that has what it is to have. Returns its id."""
    config = pod_config(node, number)
    config.annotations.update(annotations)
    config.linux.security_context.namespace_options.network = pb.POD
    volume = node.base / "kubelet/pods" / config.metadata.uid / "volumes/kubernetes.io~empty-dir/work"
    volume.mkdir(parents=True)
    volume.chmod(0o777)
    container = container_config(number)
    container.command[:] = ["/bin/sh", "-c", script]
    container.linux.security_context.namespace_options.network = pb.POD
    container.mounts.append(pb.Mount(host_path=str(volume), container_path="/work"))
    stub = node.stub()
    pod = str(stub.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
    id = stub.CreateContainer(request).container_id
    stub.StartContainer(pb.StartContainerRequest(container_id=id))
    log = node.base / "pod-logs" / container.log_path
    deadline = time.monotonic() + SECONDS
    while not log.exists() or b"ready" not in log.read_bytes():
        assert time.monotonic() < deadline, "the pod does not get ready"
        time.sleep(0.05)
    if "dd " in script:
        time.sleep(1)  # no condition tells that all has been read: a pipe that is full says nothing
    return pod


def frozen(node: Node, pod: str) -> float:
    """Checkpoint a pod that goes on. Returns for how many seconds it stood still."""
    archive = node.base / "archive.tar"
    request = node_pb2.CheckpointPodRequest(pod_id=pod, location=str(archive), leave_running=True)
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        reply = node_pb2_grpc.NodeStub(channel).CheckpointPod(request, timeout=SECONDS)
    archive.unlink()
    return float(reply.frozen_seconds)


def copied(base: Path, size: int) -> float:
    """Seconds that the kernel takes to copy that many bytes from the page cache."""
    source, target = base / "source", base / "target"
    source.write_bytes(os.urandom(size))
    began = time.monotonic()
    shutil.copyfile(source, target)
    seconds = time.monotonic() - began
    source.unlink()
    target.unlink()
    return seconds


def in_turns(rounds: int, *calls: Callable[[], float]) -> list[float]:
    """The median of each, in milliseconds."""
    found = [[call() for call in calls] for _ in range(rounds)]
    return [statistics.median(times) * 1000 for times in zip(*found, strict=True)]


def remove(node: Node, pod: str) -> None:
    node.stub().StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    node.stub().RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = options.mebibytes * MIB
    columns = ("runtime", f"{options.mebibytes} MiB of", "frozen", "copy", "ratio", "beyond an empty pod", "ratio")
    table = Table(*columns, title="milliseconds, medians", box=None)
    for runtime, loads in LOADS.items():
        if not all(map(find, ("runsc",) if runtime == "runsc" else ("runc", "criu"))):
            print(f"no {runtime} here")
            continue
        with ExitStack() as stack:
            base = Path(tempfile.mkdtemp(prefix="hf-bench-"))
            stack.callback(files.remove_tree, base)
            node = Node(base, runtime)
            stack.enter_context(running(node, images(base)[:1]))
            floor = 0.0
            for number, (name, (annotations, script)) in enumerate(loads.items()):
                pod = begin(node, number, annotations, script.format(size=size, kind="urandom"))
                stood, copy = in_turns(options.rounds, partial(frozen, node, pod), partial(copied, base, size))
                floor = floor or stood
                beyond = stood - floor
                cells = [f"{value:.0f}" for value in (stood, copy)], f"{stood / copy:.1f}", f"{beyond:.0f}"
                table.add_row(runtime, name, *cells[0], cells[1], cells[2], f"{beyond / copy:.1f}")
                remove(node, pod)
    Console().print(table)


if __name__ == "__main__":
    main()
