"""What hangs: processes that are stopped, and a filesystem that never answers.

The filesystem is FUSE whose server reads requests and says nothing, like a dead NFS server.

Whoever waits for it cannot even be killed: a request that the server has taken is waited for uninterruptibly.
"""

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fuse

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper
from kit.node import Node, until

API_SECONDS = 4.0  # from exec to the first list; 0.3 where nothing else is done, and 5 if a hang had been waited for
TRIES = 5


class Hung(fuse.Server):
    """`waiting` is how many requests have had no answer."""

    name = "hung"

    def __init__(self, path: Path) -> None:
        self.waiting = 0
        super().__init__(path)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        self.waiting += 1
        return None


@contextlib.contextmanager
def hung(path: Path) -> Iterator[Hung]:
    path.mkdir(parents=True, exist_ok=True)
    one = Hung(path)
    try:
        yield one
    finally:
        one.release()


def served_in_time(node: Node, prepare: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Kill and start the daemon; it answers before any hang could be over, on a busy machine in one of
    several tries. What is always true when it does is to be seen after each."""
    taken: list[float] = []
    while not taken or (taken[-1] > API_SECONDS and len(taken) < TRIES):
        prepare()
        taken.append(node.restart())
        yield
    assert taken[-1] <= API_SECONDS, taken


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[Callable[[int], None]]:
    """These are under SIGSTOP, and those for which what is yielded is called; they go on in the end."""
    with contextlib.ExitStack() as stack:

        def stop(pid: int) -> None:
            one = stack.enter_context(process.pin(pid, None))
            assert one is not None
            stack.callback(one.send, signal.SIGCONT)
            one.send(signal.SIGSTOP)
            until(lambda: process.state(pid) == "T", f"{pid} to stop")

        for pid in pids:
            stop(pid)
        yield stop


def shim_of(node: Node, pod_id: str) -> int:
    """Its pid."""
    return next(one.pid for one in keeper.workers(node.state) if (one.kind, one.id) == ("shim", pod_id))


@contextlib.contextmanager
def unknown(node: Node, pod_id: str, container_id: str, end: Callable[[], object]) -> Iterator[int]:
    """A container of which nobody can tell anything: it ended (`end` sees to that) while no daemon was there, its exit
    file is damaged, and its shim, who knows, is stopped: that one's pid. It goes on in the end, if it is there."""
    pid, shim = node.pid(container_id), shim_of(node, pod_id)
    bundle = node.state / "pods" / pod_id / container_id
    node.kill()
    end()
    until((bundle / "exit.json").exists, "the exit file")
    until(lambda: process.state(pid) == "", "it to be reaped")
    with stopped(shim):
        for name in ("exit.json", "init.json"):
            (bundle / name).write_text("{torn")
        node.start()
        until(lambda: node.status(container_id).state == pb.CONTAINER_UNKNOWN, "it to be UNKNOWN")
        yield shim


SLOW = """#!/bin/sh
for word in "$@"; do
    if [ "$word" = exec ]; then
        : > {base}/asked
        while [ -e {base}/hold ]; do sleep 0.02; done
        {runtime} "$@"
        code=$?
        : > {base}/executed
        exit $code
    fi
done
exec {runtime} "$@"
"""


def slow_exec(base: Path, runtime: str) -> Path:
    """An OCI runtime whose exec, once `asked` for, takes as long as there is a file `hold`; then it is `executed`."""
    program = base / runtime
    program.write_text(SLOW.format(base=base, runtime=shutil.which(runtime)))
    program.chmod(0o755)
    return program
