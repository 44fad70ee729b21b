"""What hangs: processes that are stopped, and a filesystem that never answers.

The filesystem is FUSE whose server reads requests and says nothing, like a dead NFS server.

Whoever waits for it cannot even be killed: a request that the server has taken is waited for uninterruptibly.

The protocol is that of linux/fuse.h; only FUSE_INIT is answered.
"""

import contextlib
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast.linux import mount, process
from kit.node import Node, until

INIT = 26
IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")  # major, minor, readahead, flags, background, ..., flags2
REQUEST_BYTES = 1 << 18

API_SECONDS = 2.0  # from exec to the first list; on a machine that does nothing else it takes 0.3
TRIES = 5


class Hung:
    """Mounted at `path`. `waiting` is how many requests have had no answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = 0
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount.mount("hung", path, "fuse.hung", 0, f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other")
        self._thread = threading.Thread(target=self._serve, name="hung filesystem", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, REQUEST_BYTES)
            except OSError:  # ENODEV: unmounted
                return
            _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
            if opcode == INIT:
                body = INIT_OUT.pack(7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0)
                os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body)
            else:
                self.waiting += 1

    def release(self) -> None:
        """Its server is gone for good: whoever waits gets an error (umount2(2), MNT_FORCE, and fuse_abort_conn)."""
        if self._fd >= 0:
            quiet = subprocess.DEVNULL
            subprocess.run(["umount", "-i", "-f", self.path], stderr=quiet, check=False)  # EBUSY, but all is aborted
            subprocess.run(["umount", "-i", "-l", self.path], stderr=quiet, check=False)
            self._thread.join()
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def hung(path: Path) -> Iterator[Hung]:
    path.mkdir(parents=True, exist_ok=True)
    one = Hung(path)
    try:
        yield one
    finally:
        one.release()


def served_in_time(node: Node, prepare: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Kill and start the daemon; it answers within two seconds, on a machine that does other things as well in one of
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
