"""A shim's whole life, played through in the keeper before any shim is forked.

A page that a shim writes to is a page of its own, and the interpreter writes while it merely runs code: it specialises
instructions, fills method caches, counts references. So the code is run here first, and before that the functions
that are used at all get copies of their code that lie side by side, not scattered over everything that was imported.
Last, what is free between existing objects is filled up. Together this saves each shim more than half a megabyte.

The OCI runtime is played by true(1), the container by a child that says a few words.
"""

import gc
import json
import marshal
import os
import shutil
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message

from holdfast.linux import files, process, sockets
from holdfast.model.witness import ExitRecord
from holdfast.proto import task_pb2, ttrpc_pb2
from holdfast.ttrpc.codec import REQUEST, Decoder, Frame, encode
from holdfast.workers import context
from holdfast.workers.shim import adopt
from holdfast.workers.shim.oci import Runtime
from holdfast.workers.shim.operations import Operations
from holdfast.workers.shim.server import Shim
from holdfast.workers.shim.task import Task

ROUNDS: Final = 10  # the interpreter specialises a function at its eighth call
ANSWER_SECONDS: Final = 2.0
SERVICE: Final = "containerd.task.v2.Task"
POOL_BYTES: Final = 16 * 1024
_ballast: list[bytes] = []


def rehearse(directory: Path, rounds: int = ROUNDS) -> None:
    """Play in `directory`, which is made and removed. Nothing depends on it: what goes wrong is left out."""
    program = shutil.which("true")
    before = signal.getsignal(signal.SIGCHLD)
    try:
        if program is not None:
            gather(functions_of(lambda: play(directory, program)))
            for _ in range(rounds):
                play(directory, program)
            gc.collect()  # it would make holes again
            _ballast.extend(fill_holes())
    except (OSError, TimeoutError):
        return  # shims are as good without it, only larger
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, before)
        files.remove_tree(directory)


def play(directory: Path, program: str) -> None:
    files.make_private(directory)
    Play(directory, program).run()
    files.remove_tree(directory)


def functions_of(action: Callable[[], None]) -> list[types.FunctionType]:
    """The Python functions that an action calls, in the order of the first call."""
    called: dict[types.CodeType, None] = {}
    sys.setprofile(lambda frame, event, _: called.setdefault(frame.f_code) if event == "call" else None)
    try:
        action()
    finally:
        sys.setprofile(None)
    by_code = {one.__code__: one for one in gc.get_objects() if isinstance(one, types.FunctionType)}
    return [by_code[code] for code in called if code in by_code]


def gather(functions: Iterable[types.FunctionType]) -> None:
    """Give functions copies of their code and its constants, made one after the other and so neighbours in memory."""
    for function in functions:
        function.__code__ = marshal.loads(marshal.dumps(function.__code__))


def fill_holes() -> list[bytes]:
    """Objects for all free places between those that exist: what a shim makes later then lies together, in new pages.

    CPython's allocator serves each multiple of 16 bytes, up to 512, from pools of its own, and a new pool in order of
    addresses (Objects/obmalloc.c): a run of neighbours says that the old pools are full.
    """
    made: list[bytes] = []
    for size in range(48, 513, 16):
        before, run = 0, 0
        for _ in range(POOL_BYTES):
            one = bytes(size - bytes.__basicsize__)
            made.append(one)
            run = run + size if id(one) == before + size else 0
            before = id(one)
            if run > POOL_BYTES // 2:
                break
    return made


class Play:
    """One shim, with one container and one exec."""

    def __init__(self, directory: Path, program: str) -> None:
        self._bundle = directory / "c"
        self._streams = iter(range(1, 1000, 2))
        self._children: list[int] = []
        self._answered: set[int] = set()
        self._decoder = Decoder()
        (self._bundle / "rootfs").mkdir(parents=True)
        self._log = f"cri://{directory}/log"
        self._keeper, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC), line.detach()]
        fds.append(sockets.listen(directory / "shim.sock").detach())
        runtime = {"name": "true", "binary": program, "root": str(directory / "oci"), "hide": []}
        message = {"id": "x", "kind": "shim", "listens": True, "args": {"runtime": runtime}}
        self._context = context.over(json.loads(json.dumps(message)), fds)
        self._context.ready()
        self._shim = Shim(self._context, Runtime.from_args(self._context.args["runtime"], -1))
        self._second: Operations | None = None
        self._peer = sockets.connect(directory / "shim.sock", timeout=0)

    def run(self) -> None:
        try:
            self._act()
        finally:
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)
            self._peer.close()
            self._shim.loop.turn()
            for task in self._second.tasks.values() if self._second is not None else ():
                task.init.stdio.close()
                if task.init.pinned is not None:
                    task.init.pinned.close()
            self._shim.loop.close()
            self._keeper.close()
            if self._context.listener is not None:
                self._context.listener.close()

    def _act(self) -> None:
        self._actor(self._bundle / "init.pid")
        request = task_pb2.CreateTaskRequest(id="c", bundle=str(self._bundle), stdout=self._log, stderr=self._log)
        self._call("Create", request)
        self._call("Start", task_pb2.StartRequest(id="c"))
        wait = self._ask("Wait", task_pb2.WaitRequest(id="c"))
        self._call("State", task_pb2.StateRequest(id="c"))
        self._actor(self._bundle / "exec.e.pid")
        exec_request = task_pb2.ExecProcessRequest(id="c", exec_id="e")
        exec_request.spec.value = b"{}"
        self._call("Exec", exec_request)
        self._call("Start", task_pb2.StartRequest(id="c", exec_id="e"))
        self._call("Kill", task_pb2.KillRequest(id="c", exec_id="e", signal=signal.SIGKILL))
        self._call("Wait", task_pb2.WaitRequest(id="c", exec_id="e"))
        self._call("Delete", task_pb2.DeleteRequest(id="c", exec_id="e"))
        self._adopt()
        self._call("Kill", task_pb2.KillRequest(id="c", signal=signal.SIGKILL))
        self._await(wait)
        self._children.clear()
        self._call("Delete", task_pb2.DeleteRequest(id="c"))

    def _adopt(self) -> None:
        """The same container is taken over by a second shim, which only listens, and lets go of it at its end."""
        self._second = Operations(self._shim.loop, self._shim.operations.runtime, self._context)
        adopt.adopt(self._shim.loop, self._second, _let_go, self._bundle.parent, self._context)

    def _actor(self, pid_file: Path) -> None:
        """A child in the part of a container's process; true(1) does not write its pid file, so it is there before."""
        pid = process.fork()
        if pid == 0:
            _act_container(self._bundle / "stdout")
        self._children.append(pid)
        pid_file.write_text(str(pid))

    def _call(self, method: str, request: Message) -> None:
        self._await(self._ask(method, request))

    def _ask(self, method: str, request: Message) -> int:
        stream = next(self._streams)
        envelope = ttrpc_pb2.Request(service=SERVICE, method=method, payload=request.SerializeToString())
        envelope.timeout_nano = 1 << 40
        self._peer.send(encode(Frame(stream, REQUEST, envelope.SerializeToString())))
        return stream

    def _await(self, stream: int) -> None:
        """Let the shim work until it has answered this one."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while stream not in self._answered:
            if time.monotonic() > deadline:
                raise TimeoutError
            self._shim.loop.timers.add(ANSWER_SECONDS, _nothing)
            self._shim.loop.turn()
            try:
                self._answered.update(frame.stream_id for frame in self._decoder.feed(self._peer.recv(65536)))
            except BlockingIOError:
                continue


def _let_go(task: Task, _: ExitRecord) -> None:
    task.init.stdio.close()


def _nothing(*_: Any) -> None:
    pass


def _act_container(stdout: Path) -> None:
    """Say a few words as soon as there is somebody to hear them, and wait to be killed."""
    try:
        signal.set_wakeup_fd(-1)
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            try:
                fd = os.open(stdout, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                time.sleep(0.0002)
                continue
            for words in (b"line\n", b"part", b" of a line\n"):
                os.write(fd, words)
                time.sleep(0.001)
            signal.pause()
    finally:
        os._exit(0)
