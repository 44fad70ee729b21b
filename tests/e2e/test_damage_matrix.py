"""Every file under root and state is damaged in turn, with the daemon down: it starts all the same, shows every
container as it is, harms none, and everything can be stopped and removed.

CI takes each file once, damaged in a way that the seed chooses; `make soak` takes every way, with the shim dead too.
Replay one with HOLDFAST_DAMAGE=file:damage:victim (or patterns of such).
"""

import os
import random
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from kit.invariants import check
from kit.node import Node, node, until

from holdfast.linux import mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper
from holdfast.snapshots import witness

SEED = os.environ.get("HOLDFAST_SEED", "1")
WANTED = os.environ.get("HOLDFAST_DAMAGE", "")
DAMAGES = ("missing", "empty", "truncated", "flipped", "garbage")
VICTIMS = ("daemon", "both")
TRAP = "trap 'exit 42' TERM; > /ready; while :; do sleep 0.02; done"
CREATED, RUNNING, EXITED = pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED
# Nobody's but the users' own: what is in a layer, in a volume or in a log.
NOT_OURS = ("root/snapshots/*/fs/*", "root/snapshots/*/work/*", "*/rootfs/*", "*/shm/*")


@dataclass(frozen=True)
class Case:
    file: str
    damage: str
    victim: str

    def __str__(self) -> str:
        return f"{self.file}:{self.damage}:{self.victim}"


class Ward:
    """A pod with a container in each state, and one beside it that must never notice."""

    def __init__(self, one: Node) -> None:
        self.node = one
        self.bystanders_pod = one.run_pod(one.pod_config("bystander"))
        self.bystander = one.run(self.bystanders_pod, TRAP)
        self.witness = one.pid(self.bystander)
        self.fill()

    def fill(self) -> None:
        one = self.node
        self.pod = one.run_pod()
        self.exited = one.run(self.pod, "exit 7", "exited")
        one.exited(self.exited)
        self.running = one.run(self.pod, TRAP, "running")
        until(lambda: one.exec(self.running, ["test", "-e", "/ready"]).exit_code == 0)
        self.pid = one.pid(self.running)
        self.start_time = process.start_time(self.pid)
        self.created = one.create(self.pod, one.container_config("sleep 1000", "created"))

    def files(self) -> dict[str, Path]:
        """Each file by a name in which ids are what they stand for; those of the bystander left out."""
        names = {self.pod: "POD", self.exited: "EXITED", self.running: "RUNNING", self.created: "CREATED"}
        names |= {
            f"snapshots/{row.directory}/": f"snapshots/{names.get(row.key, 'LAYER')}/"
            for row in witness.read_all(self.node.root / "snapshots")
        }
        other = {pod.id for pod in self.node.pods()} | {one.id for one in self.node.containers()}
        found = {}
        for top in (self.node.root, self.node.state):
            for path in _files(top):
                name = str(path.relative_to(self.node.base))
                if any(fnmatch(name, pattern) for pattern in NOT_OURS) or any(
                    id in name for id in other - names.keys()
                ):
                    continue
                for id, word in names.items():
                    name = name.replace(id, word)
                found[name] = path
        return found

    def strike(self, case: Case) -> None:
        one = self.node
        path = self.files()[case.file]
        (shim,) = (worker.pid for worker in keeper.workers(one.state) if worker.id == self.pod)
        one.kill()
        if os.path.lexists(path):  # what was done with may be gone by now
            damage(path, case.damage)
        if case.victim == "both":
            os.kill(shim, signal.SIGKILL)
            until(lambda: process.state(shim) in ("", "Z"), "the shim's end")
        one.start()
        until(lambda: "recovered" in one.log().rpartition(" serving ")[2], "the end of recovery")

    def judge(self, case: Case) -> None:
        one = self.node
        states = {container.id: container.state for container in one.containers()}
        assert states[self.bystander] == RUNNING
        assert one.pid(self.bystander) == self.witness
        assert one.exec(self.bystander, ["true"]).exit_code == 0
        assert process.start_time(self.pid) == self.start_time, "a container that ran was ended"
        assert states[self.exited] == EXITED
        assert one.status(self.exited).exit_code == 7
        assert states[self.created] == CREATED
        until(lambda: one.status(self.running).state == RUNNING, "it to be seen running")
        one.stop_container(self.running, 10)
        status = one.exited(self.running)
        assert status.exit_code == 42 or (case.victim == "both" and status.exit_code == 255 and status.message), status
        for pod in one.pods():  # also one whose removal was what the store has lost
            if pod.id != self.bystanders_pod:
                one.remove_pod(pod.id)
        one.busybox()  # what has become of a blob is repaired when it comes in again
        check(one, 15)


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "empty":
        os.truncate(path, 0)
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "garbage":
        path.write_bytes(os.urandom(max(path.stat().st_size, 64)))
    else:
        with path.open("r+b") as file:
            at = path.stat().st_size // 3
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0x04]))


def ways(path: Path) -> tuple[str, ...]:
    """A socket or a pipe can only be missing, what is empty can be nothing less, and what is gone by now nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ()
    if not stat.S_ISREG(status.st_mode):
        return DAMAGES[:1]
    return DAMAGES if status.st_size else ("missing", "garbage")


def cases(ward: Ward) -> Iterator[Case]:
    for name, path in sorted(ward.files().items()):
        for how in ways(path):
            yield from (Case(name, how, victim) for victim in VICTIMS)


def _files(top: Path) -> Iterator[Path]:
    mounted = {entry.target for entry in mount.mountinfo()}
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if f"{directory}/{name}" not in mounted]
        yield from (Path(directory, name) for name in files if f"{directory}/{name}" not in mounted)


def play(chosen: list[Case], ward: Ward) -> None:
    for case in chosen:
        if case.file not in ward.files():  # what was damaged before is not needed, so it is not there again
            continue
        print(case, flush=True)
        ward.strike(case)
        ward.judge(case)
        ward.fill()


@pytest.mark.timeout(900)
def test_each_file_in_some_way() -> None:
    """The seed is printed when it fails, and HOLDFAST_SEED replays it."""
    with node() as one:
        ward = Ward(one)
        every = list(cases(ward))
        if WANTED:
            chosen = [case for case in every if fnmatch(str(case), WANTED)]
        else:
            dice = random.Random(SEED)
            files = sorted({case.file for case in every})
            chosen = [dice.choice([case for case in every if case.file == file]) for file in files]
        print(f"HOLDFAST_SEED={SEED}: {len(chosen)} of {len(every)} cases")
        assert chosen
        play(chosen, ward)


@pytest.mark.soak
def test_each_file_in_every_way() -> None:
    with node() as one:
        ward = Ward(one)
        play(list(cases(ward)), ward)
