"""F16: shims do not pile up. Whatever dies when, each pod that lives has one, and no other pod has any."""

import contextlib
import os
import random
import signal
import threading
import time

import grpc
import pytest
from kit import invariants
from kit.crash import recovered
from kit.node import Node, node, until

from holdfast.linux import process, table
from holdfast.proto import runtime_v1_pb2 as pb

LONG = (pytest.mark.soak, pytest.mark.timeout(3600))
WITHIN = 0.3  # seconds of an operation in which somebody is killed
SCRIPTS = ("exit 0", "sleep 1000", "sleep 1000 & exit 1", "trap 'exit 3' TERM; while :; do sleep 0.05; done")


def shims(one: Node) -> list[int]:
    """The node's shims as the kernel knows them, whoever their parent is; what a shim has forked is not one."""
    found, _ = table.processes()
    alive = {entry.pid: entry for entry in found if entry.alive and entry.name == "hf-shim"}
    mine = [pid for pid, entry in alive.items() if str(one.state) in entry.argv]
    return [pid for pid in mine if alive[pid].parent not in alive]


def live(one: Node) -> int:
    return sum(pod.state == pb.SANDBOX_READY for pod in one.pods())


class Chaos:
    """Kills shims and the daemon while something is done."""

    def __init__(self, one: Node, seed: int) -> None:
        self.node = one
        self.random = random.Random(seed)

    def during(self, operation: threading.Thread) -> None:
        victim = self.random.choice(("nobody", "shims", "daemon", "daemon", "both"))
        operation.start()
        time.sleep(self.random.uniform(0, WITHIN))
        if victim in ("shims", "both"):
            for pid in shims(self.node):
                if self.random.random() < 0.5:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        if victim in ("daemon", "both"):
            assert self.node.process is not None
            self.node.process.kill()
        operation.join()
        if victim in ("daemon", "both"):
            self.node.hang_up()
            assert self.node.process is not None
            self.node.process.wait()
            self.node.start()

    def cycle(self, number: int) -> None:
        """A pod comes, does something and goes, if it is let; what was there before may go instead."""
        pods = [pod.id for pod in self.node.pods()]
        script = self.random.choice(SCRIPTS)
        victim = self.random.choice(pods) if len(pods) > 2 else ""

        def play() -> None:
            with contextlib.suppress(grpc.RpcError):
                pod = self.node.run_pod(self.node.pod_config(f"cycle-{number}"))
                container = self.node.run(pod, script)
                if number % 2:
                    self.node.stop_container(container)
                    self.node.remove_pod(pod)
            with contextlib.suppress(grpc.RpcError):
                if victim:
                    self.node.remove_pod(victim)

        self.during(threading.Thread(target=play))


def settled(one: Node) -> bool:
    """Whether there are as many shims as pods that live, and they are theirs."""
    found = shims(one)
    return len(found) == live(one) and all(process.state(pid) not in ("", "Z") for pid in found)


@pytest.mark.parametrize(("count", "every"), [(15, 3), pytest.param(200, 5, marks=LONG)], ids=["sample", "soak"])
def test_f16_there_are_as_many_shims_as_pods_that_live(count: int, every: int) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"HOLDFAST_SEED={seed}")
    with node() as one:
        chaos = Chaos(one, seed)
        for number in range(count):
            chaos.cycle(number)
            if number % every == every - 1:
                until(lambda: recovered(one), "recovery to end")
                until(lambda: settled(one), f"as many shims ({shims(one)}) as pods that live ({live(one)})")
        until(lambda: recovered(one), "recovery to end")
        for pod in one.pods():
            one.remove_pod(pod.id)
        until(lambda: not shims(one), "no shim to be left")
        invariants.check(one)
        until(lambda: not one.leftovers(), "nothing to be left")
