"""F24: containers whose exits cannot even be read, for their bundles never answer, hold up nobody else's."""

import contextlib
import os
import signal
import time
from collections import defaultdict

from kit import invariants
from kit.hung import hung
from kit.node import Node, until

from holdfast.linux import process, threads
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb

SICK = threads.WORKING + 2  # more than there are places for blocking calls
WELL, PODS = 50, 5
VISIBLE_SECONDS = 10.0  # in less than one, on a machine that does nothing else


def codes(life: Node, ids: list[str]) -> dict[str, int]:
    """Exit codes of those of them that are shown as exited."""
    over = {one.id for one in life.containers() if one.state == pb.CONTAINER_EXITED}
    return {one: life.status(one).exit_code for one in ids if one in over}


def kinds(life: Node) -> dict[str, list[str]]:
    """What happened to each container, in the order in which it was told."""
    found: dict[str, list[str]] = defaultdict(list)
    request = node_pb2.EventsRequest(since=0, only_known=True)
    for event in node_pb2_grpc.NodeStub(life.channel).Events(request, timeout=20):
        if event.object == "container":
            found[event.id].append(event.kind)
    return found


def test_f24_fifty_exit_while_the_exits_of_eighteen_cannot_be_read(life: Node) -> None:
    gate = life.base / "gate"
    os.mkfifo(gate)
    mounts = [pb.Mount(host_path=str(life.base), container_path="/data")]
    sick_pod, *pods = [life.run_pod() for _ in range(PODS + 1)]
    sick = [life.run(sick_pod, ["/bin/sleep", "100000"], f"sick-{number}") for number in range(SICK)]
    well = {
        life.run(pods[number % PODS], f"read x < /data/gate; exit {number + 1}", f"well-{number}", mounts=mounts): (
            number + 1
        )
        for number in range(WELL)
    }
    inits = {one: life.pid(one) for one in sick}
    begun = {pid: process.start_time(pid) for pid in inits.values()}
    bundles = life.state / "pods" / sick_pod
    with contextlib.ExitStack() as stack:
        dead = [stack.enter_context(hung(bundles / one)) for one in sick]
        for one in sick:
            os.kill(inits[one], signal.SIGKILL)
        until(lambda: sum(one.waiting > 0 for one in dead) >= threads.WORKING, "the sick to be stuck")
        began = time.monotonic()
        with gate.open("wb", buffering=0) as lines:
            lines.write(b"\n" * WELL)  # one for each, also for one that comes late
            until(lambda: len(codes(life, list(well))) == WELL, "fifty exits to be seen", VISIBLE_SECONDS)
        taken = time.monotonic() - began
        print(f"{WELL} exits visible after {taken:.2f} s, with {SICK} stuck")
        assert codes(life, list(well)) == well
        assert not codes(life, sick)
        another = life.run_pod()
        assert life.exited(life.run(another, "exit 5")).exit_code == 5
        life.remove_pod(another)
        for pod in pods:
            life.remove_pod(pod)
        assert not codes(life, sick)
    until(lambda: codes(life, sick) == dict.fromkeys(sick, 137), "the sick to settle")
    assert not [pid for pid in begun if process.start_time(pid) == begun[pid] and process.state(pid) != "Z"]
    seen = kinds(life)
    assert all(seen[one][:3] == ["created", "started", "stopped"] for one in (*sick, *well)), seen
    life.remove_pod(sick_pod)
    invariants.check(life)
    until(lambda: not life.leftovers(), "nothing to be left")
