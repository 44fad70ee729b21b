"""Holdfast against Debian's containerd, alternating in the same run: figures that matter, as ratios.

    python bench/run.py [--runtime crun|runc] [--cycles N] [--pods N] [--json FILE]

Machines are noisy; a ratio of medians taken in turns is what can be compared. Needs root.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from holdfast.linux import files
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
sys.path.insert(0, str(Path(__file__).parent))
from peers import Containerd, Holdfast, Peer, container_config, environment, images, pod_config, pss, running

Samples = dict[str, list[float]]  # milliseconds by step
WARM_UP = 3


def timed(samples: Samples, step: str, call: Callable[[], object]) -> object:
    began = time.perf_counter()
    result = call()
    samples.setdefault(step, []).append((time.perf_counter() - began) * 1000)
    return result


def cycle(peer: Peer, number: int, samples: Samples) -> None:
    """Run, create, start, stop, remove, stop, remove: one pod with one container."""
    stub, pod = peer.stub(), pod_config(peer, number)
    began = time.perf_counter()
    run = timed(samples, "RunPodSandbox", lambda: stub.RunPodSandbox(pb.RunPodSandboxRequest(config=pod), timeout=60))
    pod_id = run.pod_sandbox_id  # type: ignore[attr-defined]
    create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container_config(number), sandbox_config=pod)
    made = timed(samples, "CreateContainer", lambda: stub.CreateContainer(create, timeout=60))
    one = made.container_id  # type: ignore[attr-defined]
    timed(
        samples, "StartContainer", lambda: stub.StartContainer(pb.StartContainerRequest(container_id=one), timeout=60)
    )
    stop = pb.StopContainerRequest(container_id=one, timeout=0)
    timed(samples, "StopContainer", lambda: stub.StopContainer(stop, timeout=60))
    remove = pb.RemoveContainerRequest(container_id=one)
    timed(samples, "RemoveContainer", lambda: stub.RemoveContainer(remove, timeout=60))
    stop_pod = pb.StopPodSandboxRequest(pod_sandbox_id=pod_id)
    timed(samples, "StopPodSandbox", lambda: stub.StopPodSandbox(stop_pod, timeout=60))
    remove_pod = pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
    timed(samples, "RemovePodSandbox", lambda: stub.RemovePodSandbox(remove_pod, timeout=60))
    samples.setdefault("whole cycle", []).append((time.perf_counter() - began) * 1000)


def fill(peer: Peer, pods: int, there: int = 0) -> list[str]:
    """Start pods with one running container each, beside those that are there. Returns the container ids."""
    stub, ids = peer.stub(), []
    for number in range(10_000 + there, 10_000 + there + pods):
        pod = pod_config(peer, number)
        pod_id = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=pod), timeout=60).pod_sandbox_id
        request = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container_config(number), sandbox_config=pod)
        ids.append(stub.CreateContainer(request, timeout=60).container_id)
        stub.StartContainer(pb.StartContainerRequest(container_id=ids[-1]), timeout=60)
    return ids


def empty(peer: Peer) -> None:
    stub = peer.stub()
    for pod in stub.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=60).items:
        stub.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
        stub.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)


def measure(peers: list[Peer], cycles: int, pods: int) -> dict[str, Samples]:
    """All samples by peer. Everything is done in turns, so that a slow minute hits all of them."""
    samples: dict[str, Samples] = {peer.name: {} for peer in peers}
    for number in range(cycles + WARM_UP):
        for peer in peers:
            cycle(peer, number, samples[peer.name] if number >= WARM_UP else {})
    ids = {peer.name: fill(peer, pods) for peer in peers}
    for number in range(50):
        for peer in peers:
            mine, one = samples[peer.name], ids[peer.name][number % pods]
            request = pb.ExecSyncRequest(container_id=one, cmd=["/bin/true"], timeout=10)
            timed(mine, "ExecSync", lambda peer=peer, request=request: peer.stub().ExecSync(request, timeout=60))
            every = pb.ListContainersRequest()
            timed(
                mine,
                f"ListContainers ({pods})",
                lambda peer=peer, every=every: peer.stub().ListContainers(every, timeout=60),
            )
    for peer in peers:
        sizes = [pss(pid) for pid in peer.shim_pids()]
        samples[peer.name][f"shim PSS, KiB ({pods} pods)"] = [float(size) for size in sizes]
        peer.kill()
        samples[peer.name][f"restart to served ({pods} pods)"] = [peer.start() * 1000]
        found = peer.stub().ListContainers(
            pb.ListContainersRequest(
                filter=pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING))
            )
        )
        if len(found.containers) != pods:
            raise SystemExit(
                f"{peer.name} shows {len(found.containers)} of {pods} running containers after its restart"
            )
        empty(peer)
    return samples


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def report(samples: dict[str, Samples]) -> dict[str, dict[str, float]]:
    """Print the table; returns the figures."""
    ours, theirs = samples["holdfast"], samples["containerd"]
    table = Table(title="milliseconds; ratio = holdfast / containerd, medians")
    for column in ("step", "holdfast p50", "p95", "containerd p50", "p95", "ratio"):
        table.add_column(column, justify="left" if column == "step" else "right")
    figures = {}
    for step in ours:
        mine, other = statistics.median(ours[step]), statistics.median(theirs[step])
        high, other_high = percentile(ours[step], 0.95), percentile(theirs[step], 0.95)
        figures[step] = {"holdfast": mine, "containerd": other, "ratio": mine / other}
        cells = (f"{mine:.1f}", f"{high:.1f}", f"{other:.1f}", f"{other_high:.1f}", f"{mine / other:.2f}")
        table.add_row(step, *cells)
    Console(width=110).print(table)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="crun", choices=("crun", "runc"))
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--pods", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    archives = images(base)
    with ExitStack() as stack:
        peers = [stack.enter_context(running(kind(base, options.runtime), archives)) for kind in (Holdfast, Containerd)]
        figures = report(measure(peers, options.cycles, options.pods))
    where = environment()
    print(f"{options.runtime}; {where}")
    if options.json:
        options.json.write_text(json.dumps({"where": where, "runtime": options.runtime, "figures": figures}, indent=1))
    files.remove_tree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
