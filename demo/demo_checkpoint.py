"""A gVisor pod of two containers moves to another node, with the workspace that they share.

The agent has written 64 MiB to an emptyDir on disk and counts into a file there; its sidecar reads along. The pod
becomes one archive, and is removed; another daemon, with other directories, makes it again from that archive. Both
containers go on where they stood, with the same files, which they still share. Needs root and runsc; no network. Exits
non-zero unless every claim it prints was checked.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.table import Table

from holdfast.linux import files
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent))
from image import build_busybox_image

from demo import BIN, Demo, Failed, claim, console, end_keeper, leftovers, until

IMAGE = "demo/busybox:latest"
MIB = 1 << 20
SIZE = 64 * MIB
SCRIPTS = {
    "agent": f"""
        head -c {SIZE} /dev/urandom > /workspace/blob; n=0
        while :; do n=$((n+1)); echo $n > /workspace/new; mv /workspace/new /workspace/count; echo $n; sleep 0.1; done
    """,
    "sidecar": "while :; do cat /workspace/count 2>/dev/null; sleep 0.1; done",
}


@dataclass
class Pod:
    """The pod on one of the nodes, with the ids of its containers."""

    node: Demo
    id: str
    containers: dict[str, str]

    def run(self, name: str, script: str) -> str:
        request = pb.ExecSyncRequest(container_id=self.containers[name], cmd=["/bin/sh", "-c", script], timeout=60)
        with self.node.stub() as stub:
            done = stub.ExecSync(request, timeout=90)
        if done.exit_code:
            raise Failed(f"{script!r} in {name} ended with {done.exit_code}: {done.stderr.decode()}")
        return str(done.stdout.decode()).strip()

    def count(self, name: str) -> list[int]:
        """What a container has said, from its log."""
        with self.node.stub() as stub:
            request = pb.ContainerStatusRequest(container_id=self.containers[name])
            log = Path(stub.ContainerStatus(request, timeout=15).status.log_path)
        return [int(line.split()[3]) for line in log.read_text().splitlines()]

    def goes_on(self) -> None:
        for name in self.containers:
            seen = len(self.count(name))
            until(lambda name=name, seen=seen: len(self.count(name)) > seen + 3, f"{name} to go on", 60)  # type: ignore[misc]

    def remove(self) -> None:
        with self.node.stub() as stub:
            stub.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=self.id), timeout=60)
            stub.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=self.id), timeout=60)


def holdfast(node: Demo, *words: str) -> str:
    command = [str(BIN / "holdfast"), "--socket", str(node.socket), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"holdfast {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def make_pod(node: Demo) -> tuple[Pod, Path]:
    """As a kubelet would: an emptyDir in the pod's directory, an annotation that says how it is to be had."""
    volume = node.base / "kubelet/pods/demo-uid/volumes/kubernetes.io~empty-dir/workspace"
    volume.mkdir(parents=True)
    volume.chmod(0o777)
    sandbox = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="demo", namespace="default", uid="demo-uid"),
        annotations={"dev.holdfast.volume.workspace": "shared-disk"},
        log_directory=str(node.base / "logs"),
        linux=pb.LinuxPodSandboxConfig(),
    )
    with node.stub() as stub:
        request = pb.RunPodSandboxRequest(config=sandbox, runtime_handler="runsc")
        pod = Pod(node, stub.RunPodSandbox(request, timeout=60).pod_sandbox_id, {})
        for name, script in SCRIPTS.items():
            config = pb.ContainerConfig(
                metadata=pb.ContainerMetadata(name=name),
                image=pb.ImageSpec(image=IMAGE),
                command=["/bin/sh", "-c", script],
                log_path=f"{name}.log",
                mounts=[pb.Mount(container_path="/workspace", host_path=str(volume))],
            )
            config.linux.security_context.namespace_options.pid = pb.CONTAINER
            create = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=sandbox)
            pod.containers[name] = stub.CreateContainer(create, timeout=60).container_id
            stub.StartContainer(pb.StartContainerRequest(container_id=pod.containers[name]), timeout=60)
    return pod, volume


def restore(node: Demo, archive: Path) -> Pod:
    id = holdfast(node, "restore", str(archive), "--name", "moved").split()[-1]
    with node.stub() as stub:
        found = stub.ListContainers(pb.ListContainersRequest(), timeout=15).containers
    return Pod(node, id, {one.metadata.name: one.id for one in found})


def move(first: Demo, second: Demo) -> None:
    pod, volume = make_pod(first)
    until(lambda: len(pod.count("agent")) > 10, "the agent to count", 60)
    blob = pod.run("sidecar", "md5sum < /workspace/blob")
    (store,) = volume.iterdir()
    claim(store.stat().st_blocks * 512 >= SIZE, f"what both see is on the first node's disk, in {store.name[:24]}...")
    archive = first.base / "pod.tar.zst"
    console.print(holdfast(first, "checkpoint", pod.id, "--output", str(archive), "--compress", "zstd"))
    at = {name: pod.count(name)[-1] for name in pod.containers}
    pod.remove()
    claim(not list(volume.iterdir()), "the pod is removed, and nothing of it is left in its volume")
    again = restore(second, archive)
    again.goes_on()
    table = Table(title="the pod before, and on the other node")
    for column in ("container", "counted to", "goes on with"):
        table.add_column(column)
    for name, last in at.items():
        table.add_row(name, str(last), " ".join(map(str, again.count(name)[:4])))
    console.print(table)
    numbers = again.count("agent")
    claim(
        numbers[0] in (at["agent"], at["agent"] + 1),
        f"the agent counted to {at['agent']} and goes on with {numbers[0]}",
    )
    claim(numbers == list(range(numbers[0], numbers[0] + len(numbers))), "it leaves out no number")
    claim(again.run("sidecar", "md5sum < /workspace/blob") == blob, f"the sidecar finds {SIZE // MIB} MiB as they were")
    again.run("sidecar", "echo hello > /workspace/said")
    claim(again.run("agent", "cat /workspace/said") == "hello", "what one writes the other reads, there too")
    again.remove()


def begin(base: Path, name: str, runsc: str) -> Demo:
    """A node: a daemon with its own directories and the image."""
    place = base / name
    place.mkdir()
    settings = f'checkpoints = true\nvolume_roots = ["{place}/kubelet"]\n[runtimes.runsc]\nbinary = "{runsc}"\n'
    node = Demo(place, f"/{base.name}-{name}", settings)
    node.start()
    holdfast(node, "image", "import", str(build_busybox_image(place, IMAGE)))
    return node


def main() -> int:
    if os.geteuid() != 0:
        print("demo: needs root", file=sys.stderr)
        return 1
    runsc = shutil.which("runsc", path=f"{BIN.parents[1]}/.tools/bin:{os.environ['PATH']}")
    if runsc is None:
        print("demo: needs runsc, in PATH or from `make setup`", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="hf-demo-"))
    nodes: list[Demo] = []
    try:
        nodes += (begin(base, name, runsc) for name in ("first", "second"))
        move(*nodes)
        for node in nodes:
            node.end(signal.SIGTERM)
            end_keeper(node)
            until(lambda node=node: not leftovers(node), "processes, mounts and cgroups to be gone")  # type: ignore[misc]
        claim(True, "no process, mount, namespace or cgroup is left")
    except (Failed, grpc.RpcError, subprocess.SubprocessError) as exc:
        print(f"demo: FAILED: {exc}", file=sys.stderr)
        for node in nodes:
            print(f"left: {leftovers(node)}\n{node.log_tail()}", file=sys.stderr)
        print(f"demo: kept for you to look at: {base}", file=sys.stderr)
        return 1
    files.remove_tree(base)
    print("demo: the pod went on, on the other node, with its workspace")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
