"""The keeper: forks workers on request, holds descriptors, reaps. Small, single-threaded, outlives the daemon.

Started by exec, before the daemon has threads. It imports the worker modules once, freezes what they allocated, and
every worker shares those pages with it. It is a subreaper: what a dead shim leaves behind becomes its child, so that
an exit code is never lost with a shim.

Talk is JSON in SOCK_SEQPACKET messages with descriptors beside them, on `<state>/keeper.sock`. Each request has "op"
and "seq"; the reply has the same "seq" and either its result or "error".

    hello                                 -> version, pid, start_time
    fork kind id args [listen] + fds      -> pid, start_time, once the worker is ready
    hold key + fds, take key -> fds, drop key | prefix
    list                                  -> workers, held
    watch                                 -> then {"event": "exit", kind, id, pid, status} for each worker that ends
    shutdown                              -> ends it once no worker is left
"""

import argparse
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from holdfast import __version__
from holdfast.linux import files, process, sockets
from holdfast.workers import context, exits

MESSAGE_BYTES: Final = 128 * 1024
WORKERS: Final = {"shim": "holdfast.workers.shim.server", "unpack": "holdfast.workers.unpacker"}
NAMES: Final = {"shim": "hf-shim", "unpack": "hf-unpack"}


@dataclass(slots=True)
class Worker:
    """A child of the keeper. `control` is our end of its line to us, `listener` our copy of its socket."""

    kind: str
    id: str
    pid: int
    start_time: int
    control: socket.socket
    listener: socket.socket | None

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "id": self.id, "pid": self.pid, "start_time": self.start_time}


@dataclass(slots=True)
class Starting:
    """A fork that has not been answered yet: the worker has not said that it is ready."""

    worker: Worker
    client: socket.socket
    seq: int


@dataclass(slots=True)
class Keeper:
    """The whole state of the keeper."""

    state: Path
    listener: socket.socket
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    workers: dict[int, Worker] = field(default_factory=dict)
    held: dict[str, list[int]] = field(default_factory=dict)
    starting: dict[int, Starting] = field(default_factory=dict)
    watchers: set[socket.socket] = field(default_factory=set)
    ending: bool = False

    def run(self) -> None:
        """Serve until told to end and no worker is left, or until the state directory and all workers are gone."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ending", True))
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: self._woken(wake_read))
        while not self._over():
            for key, _ in self.selector.select(timeout=5 if not self.workers else None):
                if key.fileobj in self.selector.get_map():  # not gone by what an earlier one of these has done
                    key.data()

    def _over(self) -> bool:
        return not self.workers and (self.ending or not self.state.exists())

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        if sockets.peer_uid(client) != os.geteuid():
            client.close()
            return
        client.setblocking(False)
        self.selector.register(client, selectors.EVENT_READ, lambda: self._read(client))

    def _woken(self, wake: int) -> None:
        os.read(wake, 4096)
        while (found := process.peek_exited()) is not None:
            self._reap(*found)

    # -- requests

    def _read(self, client: socket.socket) -> None:
        try:
            data, fds = sockets.receive(client, MESSAGE_BYTES, 64)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._hang_up(client)
            return
        try:
            request = json.loads(data)
            answer, kept = self._serve(client, request, fds)
        except Exception as exc:  # whatever a message holds, the keeper goes on
            request, answer, kept = _as_dict(data), {"error": f"{type(exc).__name__}: {exc}"}, False
        if not kept:
            for fd in fds:
                os.close(fd)
        if answer is not None:
            give = self.held.get(request.get("key", ""), []) if answer.pop("with_fds", False) else []
            self._send(client, {"seq": request.get("seq"), **answer}, give)

    def _serve(
        self, client: socket.socket, request: dict[str, Any], fds: list[int]
    ) -> tuple[dict[str, Any] | None, bool]:
        """(reply or None when it comes later, whether the descriptors were kept)."""
        op = request["op"]
        if op == "hello":
            started = process.start_time(os.getpid())
            return {"version": __version__, "pid": os.getpid(), "start_time": started, "state": str(self.state)}, False
        if op == "fork":
            self._fork(client, request, fds)
            return None, False
        if op == "hold":
            self._drop(str(request["key"]))
            self.held[str(request["key"])] = fds
            return {}, True
        if op == "take":
            return {"count": len(self.held.get(request["key"], [])), "with_fds": True}, False
        if op == "drop":
            self._drop(str(request.get("key", "")), str(request.get("prefix", "")))
            return {}, False
        if op == "list":
            return {"workers": [one.describe() for one in self.workers.values()], "held": sorted(self.held)}, False
        if op == "watch":
            self.watchers.add(client)
            return {}, False
        if op == "shutdown":
            self.ending = True
            return {"workers": len(self.workers)}, False
        raise ValueError(f"unknown op {op!r}")

    def _send(self, client: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """A client that does not read its replies is dropped: nobody waits for the sick."""
        try:
            sockets.send(client, json.dumps(message).encode(), fds or [])
        except OSError:
            self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        self.watchers.discard(client)
        for starting in self.starting.values():
            if starting.client is client:
                starting.client = _nobody()
        if client.fileno() >= 0:
            self.selector.unregister(client)
            client.close()

    def _drop(self, key: str = "", prefix: str = "") -> None:
        for name in [name for name in self.held if name == key or (prefix and name.startswith(prefix))]:
            for fd in self.held.pop(name):
                os.close(fd)

    # -- workers

    def _fork(self, client: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        kind, worker_id = str(request["kind"]), str(request["id"])
        main = _entry(kind)
        listener = sockets.listen(request["listen"]) if request.get("listen") else None
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _run_worker(main, NAMES[kind], worker_id, request.get("args", {}), fds, listener, ready_write, theirs)
        os.close(ready_write)
        theirs.close()
        ours.setblocking(False)
        worker = Worker(kind, worker_id, pid, process.start_time(pid) or 0, ours, listener)
        self.workers[pid] = worker
        self.starting[ready_read] = Starting(worker, client, request.get("seq", 0))
        self.selector.register(ready_read, selectors.EVENT_READ, lambda: self._started(ready_read))
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear(worker))

    def _started(self, ready: int) -> None:
        said = os.read(ready, 4096)
        self.selector.unregister(ready)
        os.close(ready)
        starting = self.starting.pop(ready)
        if said == b"1":
            reply: dict[str, Any] = {"pid": starting.worker.pid, "start_time": starting.worker.start_time}
        else:
            reply = {"error": f"{starting.worker.kind} {starting.worker.id}: {said.decode(errors='replace') or 'died'}"}
        self._send(starting.client, {"seq": starting.seq, **reply})

    def _hear(self, worker: Worker) -> None:
        """A worker has something to hold or to drop; its keys are its own, below its id."""
        try:
            data, fds = sockets.receive(worker.control, MESSAGE_BYTES, 64)
        except OSError:
            data, fds = b"", []
        if not data:
            self.selector.unregister(worker.control)
            worker.control.close()
            return
        message = _as_dict(data)
        key = f"{worker.id}/{message.get('key', '')}"
        self._drop(key)
        if message.get("op") == "hold":
            self.held[key] = fds

    def _reap(self, pid: int, code: int, status: int) -> None:
        worker = self.workers.pop(pid, None)
        if worker is None:
            self._record_orphan(pid, code, status)
        process.reap(pid)
        if worker is None:
            return
        if worker.control.fileno() >= 0:
            self._hear_rest(worker)
        if worker.listener is not None:
            worker.listener.close()
        if (code, status) == (os.CLD_EXITED, 0):
            self._drop(prefix=f"{worker.id}/")
        for watcher in list(self.watchers):
            self._send(watcher, {"event": "exit", **worker.describe(), "status": status if code == 1 else 128 + status})

    def _hear_rest(self, worker: Worker) -> None:
        """What a worker said just before it ended."""
        while worker.control.fileno() >= 0:
            self._hear(worker)

    def _record_orphan(self, pid: int, code: int, status: int) -> None:
        """A process that a dead shim has left to us: if it is a container's init, its exit is written down."""
        try:
            found = exits.find_bundle(self.state / "pods", pid)
            if found is not None:
                bundle, init = found
                exits.write(bundle, exits.describe(init, code, status, "keeper"))
        except OSError:
            traceback.print_exc()


def _as_dict(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _nobody() -> socket.socket:
    """A socket to which nothing can be sent: stands for a client that has gone."""
    gone = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gone.close()
    return gone


def _entry(kind: str) -> Callable[[context.Context], None]:
    module = importlib.import_module(WORKERS[kind])
    main: Callable[[context.Context], None] = module.main
    return main


def _run_worker(
    main: Callable[[context.Context], None],
    name: str,
    worker_id: str,
    args: dict[str, Any],
    fds: list[int],
    listener: socket.socket | None,
    ready: int,
    control: socket.socket,
) -> None:
    """In the child: keep only what is the worker's own, run it, and leave without unwinding the keeper's frames."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        mine = [0, 1, 2, *fds, ready, control.fileno()]
        process.close_fds_except(mine + ([listener.fileno()] if listener is not None else []))
        process.set_name(name)
        main(context.over(control, ready, worker_id, args, fds, listener))
        status = 0
    except BaseException as exc:
        traceback.print_exc()
        _tell_failure(ready, exc)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _tell_failure(ready: int, error: BaseException) -> None:
    try:
        os.write(ready, f"{type(error).__name__}: {error}".encode()[:4000])
    except OSError:
        return  # it had been ready before


def main() -> None:
    """Become the keeper of a state directory; returns in the starter once it answers."""
    parser = argparse.ArgumentParser(prog="holdfast-keeper")
    parser.add_argument("--state", type=Path, required=True)
    state = parser.parse_args().state
    os.umask(0o077)
    told, tell = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(tell)
        answer = os.read(told, 16)
        os._exit(0 if answer == b"ready" else 1)
    os.close(told)
    os.setsid()
    os.chdir("/")
    try:
        lock = files.lock(state / "keeper.lock")
    except BlockingIOError:
        os._exit(1)  # another one has just been started
    _redirect_output(state)
    for module in WORKERS.values():
        importlib.import_module(module)
    process.set_child_subreaper()
    process.set_name("hf-keeper")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper(state, sockets.listen(state / "keeper.sock", socket.SOCK_SEQPACKET))
    gc.collect()
    gc.freeze()
    os.write(tell, b"ready")
    os.close(tell)
    keeper.run()
    (state / "keeper.sock").unlink(missing_ok=True)
    os.close(lock)


def _redirect_output(state: Path) -> None:
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    log = os.open(state / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


if __name__ == "__main__":
    main()
