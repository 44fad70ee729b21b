"""The CRI's lists with many running containers, Holdfast and Debian's containerd in turns: the time until the answer
is there, and the memory that each takes for it.

    python bench/lists.py [--runtime crun|runc] [--pods N] [--containers N] [--calls N] [--statistics N] [--created N]

Both daemons have the same pods at the same time; every list is asked of one and of the other before the next. Lists
without statistics are asked again with `--created` more containers that were never started. Needs root.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from holdfast.linux import files
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
sys.path.insert(0, str(Path(__file__).parent))
from peers import Containerd, Holdfast, Peer, container_config, environment, images, pod_config, pss, running
from run import Samples, empty, percentile, timed

PLAIN = {
    "ListContainers": ("containers", pb.ListContainersRequest()),
    "ListPodSandbox": ("items", pb.ListPodSandboxRequest()),
}
STATISTICS = {
    "ListContainerStats": ("stats", pb.ListContainerStatsRequest()),
    "ListPodSandboxStats": ("stats", pb.ListPodSandboxStatsRequest()),
}
WARM_UP = 5


def populate(peer: Peer, pods: int, each: int, *, start: bool = True) -> None:
    """So many pods with so many containers each."""
    stub = peer.stub()
    first = 20_000 if start else 30_000
    for number in range(first, first + pods):
        pod = pod_config(peer, number)
        pod_id = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=pod), timeout=60).pod_sandbox_id
        for one in range(each):
            config = container_config(one)
            create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
            made = stub.CreateContainer(create, timeout=60).container_id
            if start:
                stub.StartContainer(pb.StartContainerRequest(container_id=made), timeout=60)


def ask(
    peers: list[Peer], lists: dict[str, tuple[str, Any]], expected: dict[str, int], calls: int, more: str
) -> dict[str, Samples]:
    """Milliseconds of each list by peer. Who does not serve one has no samples of it."""
    samples: dict[str, Samples] = {peer.name: {} for peer in peers}
    for step, (field, request) in lists.items():
        for number in range(calls + WARM_UP):
            for peer in peers if number % 2 else reversed(peers):
                kept = samples[peer.name] if number >= WARM_UP else {}
                call = getattr(peer.stub(), step)
                try:
                    answer = timed(kept, step + more, lambda call=call, request=request: call(request, timeout=60))
                except grpc.RpcError as exc:
                    if exc.code() is not grpc.StatusCode.UNIMPLEMENTED:
                        raise
                    continue
                found = len(getattr(answer, field))
                assert found == expected[step], f"{peer.name} shows {found} of {expected[step]} in {step}"
    return samples


def memory(peer: Peer, containers: int) -> Samples:
    """KiB for each container, of the daemons and of what exists because of pods."""
    daemons = sum(pss(pid) for pid in peer.daemon_pids())
    shims = sum(pss(pid) for pid in peer.shim_pids())
    return {
        "PSS of daemons, MiB": [daemons / 1024],
        "PSS of shims and pauses, KiB a container": [shims / containers],
        "PSS of all, KiB a container": [(daemons + shims) / containers],
    }


def report(samples: dict[str, Samples], where: str) -> dict[str, dict[str, float]]:
    columns = ("", "holdfast p50", "p99", "containerd p50", "p99", "ratio of p50")
    table = Table(title="milliseconds, and memory", box=None)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    figures = {}
    for step, mine in samples["holdfast"].items():
        other = samples["containerd"].get(step)
        ours, theirs = statistics.median(mine), statistics.median(other) if other else float("nan")
        cells = [f"{ours:.2f}", f"{percentile(mine, 0.99):.2f}", f"{theirs:.2f}"]
        table.add_row(step, *cells, f"{percentile(other, 0.99):.2f}" if other else "", f"{ours / theirs:.2f}")
        figures[step] = {"holdfast": ours, "containerd": theirs, "ratio": ours / theirs}
    Console(width=110).print(table, where)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="crun", choices=("crun", "runc"))
    parser.add_argument("--pods", type=int, default=200)
    parser.add_argument("--containers", type=int, default=1, help="in each pod")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--statistics", type=int, default=50, help="calls of the lists with statistics")
    parser.add_argument("--created", type=int, default=800)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    archives = images(base)
    many = options.pods * options.containers
    expected = {"ListContainers": many, "ListPodSandbox": options.pods, "ListContainerStats": many}
    expected["ListPodSandboxStats"] = options.pods
    with ExitStack() as stack:
        peers = [stack.enter_context(running(kind(base, options.runtime), archives)) for kind in (Holdfast, Containerd)]
        for peer in peers:
            stack.callback(empty, peer)
            populate(peer, options.pods, options.containers)
        samples = ask(peers, PLAIN, expected, options.calls, f", {many} running")
        more = ask(peers, STATISTICS, expected, options.statistics, f", {many} running")
        for peer in peers:
            samples[peer.name] |= more[peer.name] | memory(peer, many)
        if options.created:
            for peer in peers:
                populate(peer, 1, options.created, start=False)
            there = {"ListContainers": many + options.created, "ListPodSandbox": options.pods + 1}
            more = ask(peers, PLAIN, there, options.calls, f", {options.created} more")
            for peer in peers:
                samples[peer.name] |= more[peer.name]
        where = environment()
        figures = report(samples, f"{options.runtime}; {where}")
    if options.json:
        options.json.write_text(json.dumps({"where": where, "runtime": options.runtime, "figures": figures}, indent=1))
    files.remove_tree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
