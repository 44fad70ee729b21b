"""What processes hold: to see that nothing grows with the number of calls."""

import os
from dataclasses import dataclass
from pathlib import Path

from holdfast.runtime import keeper
from kit.node import Node

ROUNDING = 4096  # KiB by which memory may differ: what allocators keep, a few hundred bytes for each of 10,000 calls
POOLED = 4  # threads that pools and gRPC may have at one time and not at another


@dataclass(frozen=True, slots=True)
class Held:
    """By one process: descriptors, children, threads, and its own memory in KiB."""

    descriptors: int
    children: int
    threads: int
    memory: int

    def grew(self, before: "Held") -> bool:
        """Beyond what allocators and pools of threads account for."""
        exactly = self.descriptors > before.descriptors or self.children > before.children
        return exactly or self.threads > before.threads + POOLED or self.memory > before.memory + ROUNDING


def held(pid: int) -> Held:
    place = Path(f"/proc/{pid}")
    rollup = dict(line.split(":") for line in (place / "smaps_rollup").read_text().splitlines()[1:])
    memory = sum(int(rollup[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
    children = (place / "task" / str(pid) / "children").read_text().split()
    return Held(len(os.listdir(place / "fd")), len(children), len(os.listdir(place / "task")), memory)


def keeper_pid(node: Node) -> int:
    answer = keeper._ask(node.state / keeper.SOCKET, "hello")
    assert answer is not None
    return int(answer["pid"])


def of_node(node: Node, pod: str) -> dict[str, Held]:
    """What daemon and keeper hold, and the shim of that pod."""
    assert node.process is not None
    (shim,) = [worker.pid for worker in keeper.workers(node.state) if worker.id == pod]
    return {"daemon": held(node.process.pid), "keeper": held(keeper_pid(node)), "shim": held(shim)}


def grown(now: dict[str, Held], before: dict[str, Held]) -> dict[str, tuple[Held, Held]]:
    """Those that hold more than before: (before, now)."""
    return {name: (before[name], now[name]) for name in before if now[name].grew(before[name])}
