"""Restart with more and more pods, Holdfast and Debian's containerd in turns: does the time per pod grow?

    python bench/recovery.py [--runtime crun|runc] [--pods N,N,...] [--restarts N]

"served" is exec to the first list; for Holdfast also "complete": the end of recovery, when every object is settled.
Needs root.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

from holdfast.linux import files
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
sys.path.insert(0, str(Path(__file__).parent))
from peers import Containerd, Holdfast, Peer, environment, images, running
from run import empty, fill

COMPLETE_SECONDS = 60.0


def restart(peer: Peer, pods: int) -> tuple[float, float]:
    """(served, complete) in milliseconds; complete is 0 where the peer does not tell."""
    peer.kill()
    began = time.monotonic()
    served = peer.start() * 1000
    complete = 0.0
    if isinstance(peer, Holdfast):
        with grpc.insecure_channel(f"unix:{peer.socket}") as channel:
            stub = node_pb2_grpc.NodeStub(channel)
            while not json.loads(stub.Recovery(node_pb2.RecoveryRequest()).json)["total_milliseconds"]:
                assert time.monotonic() < began + COMPLETE_SECONDS, "recovery does not end"
                time.sleep(0.002)
        complete = (time.monotonic() - began) * 1000
    found = peer.stub().ListContainers(pb.ListContainersRequest(), timeout=60).containers
    lively = [one for one in found if one.state == pb.CONTAINER_RUNNING]
    assert len(lively) == pods, f"{peer.name} shows {len(lively)} of {pods} running containers"
    return served, complete


def measure(peers: list[Peer], steps: list[int], restarts: int) -> Table:
    columns = ("pods", "served", "complete", "complete, per pod", "containerd served", "ratio of served")
    table = Table(*columns, title="milliseconds, medians", box=None)
    there = 0
    for pods in steps:
        for peer in peers:
            fill(peer, pods - there, there)
        there = pods
        taken: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
        for _ in range(restarts):
            for peer in peers:
                taken[peer.name].append(restart(peer, pods))
        served, complete = (statistics.median(one[part] for one in taken["holdfast"]) for part in (0, 1))
        other = statistics.median(one[0] for one in taken["containerd"])
        figures = (served, complete, complete / pods, other)
        table.add_row(str(pods), *(f"{figure:.1f}" for figure in figures), f"{served / other:.2f}")
    for peer in peers:
        empty(peer)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", default="crun", choices=("crun", "runc"))
    parser.add_argument("--pods", default="25,50,100,200")
    parser.add_argument("--restarts", type=int, default=5)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    archives = images(base)
    with ExitStack() as stack:
        peers = [stack.enter_context(running(kind(base, options.runtime), archives)) for kind in (Holdfast, Containerd)]
        table = measure(peers, [int(pods) for pods in options.pods.split(",")], options.restarts)
    Console().print(table, environment())
    files.remove_tree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
