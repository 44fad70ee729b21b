"""The keeper: forks workers on request, holds descriptors, reaps. Small, single-threaded, outlives the daemon.

Started by exec, before the daemon has threads. It imports the worker modules once, freezes what they allocated, and
forks a template of itself from which all workers are forked, so that they share those pages. It is a subreaper: what a
dead shim leaves behind becomes its child, so that an exit code is never lost with a shim.

Talk is JSON in SOCK_SEQPACKET messages with descriptors beside them, on `<state>/keeper.sock`. Each request has "op"
and "seq"; the reply has the same "seq" and either its result or "error".

    hello                                 -> version, protocol, pid, start_time, state
    fork kind id args [listen] + fds      -> pid, start_time, once the worker is ready
    hold key + fds, take key -> fds, drop key | prefix
    list                                  -> a descriptor of a file with {"workers": [...], "held": [...]}
    watch                                 -> then {"event": "exit", kind, id, pid, start_time, status} for each exit
    shutdown                              -> ends it once no worker is left
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from holdfast import __version__
from holdfast.linux import cgroup, process, sockets
from holdfast.linux.inject import crashpoint
from holdfast.workers import context, exits
from holdfast.workers.address import Address
from holdfast.workers.shim import rehearsal
from holdfast.workers.template import Template

PROTOCOL: Final = 1
MESSAGE_BYTES: Final = 128 * 1024
MESSAGE_FDS: Final = 64
TEND_SECONDS: Final = 1.0  # between looks at the files by which it is found
BUSY: Final = 75  # exit status: another keeper has this state directory (EX_TEMPFAIL of sysexits.h)
SO_SNDBUFFORCE: Final = 32
SEND_BYTES: Final = 1024 * 1024
WORKERS: Final = {
    "shim": "holdfast.workers.shim.server",
    "unpack": "holdfast.workers.unpacker",
    "path": "holdfast.workers.pathwork",
    "namespaces": "holdfast.workers.namespaces",
    "shift": "holdfast.workers.shift",
    "logger": "holdfast.workers.logger",
    "foreign": "holdfast.workers.foreign",
    "streamer": "holdfast.workers.streamer.server",
    "tls": "holdfast.workers.tls",
}


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
    """A fork that has not been answered yet. `client` is None once nobody waits for the answer any more."""

    worker: Worker
    client: socket.socket | None
    seq: Any


@dataclass(slots=True)
class Keeper:
    """The whole state of the keeper."""

    state: Path
    address: Address
    listener: socket.socket
    template: Template
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
            self._tend()
            for key, _ in self.selector.select(timeout=TEND_SECONDS):
                if self.selector.get_map().get(key.fd) is key:  # not gone by what an earlier one of these has done
                    try:
                        key.data()
                    except Exception:  # whatever it was, everybody else's workers are worth more
                        context.report()

    def _tend(self) -> None:
        """Bring back the files by which it is found, if somebody has deleted them; give way to whoever has put others
        in their place.
        """
        try:
            if not self.ending and self.address.is_there() and self.address.missing():
                listener = self.address.listen()
                self.selector.unregister(self.listener)
                self.listener.close()
                self.listener = listener
                self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        except BlockingIOError:
            self.ending = True
        except OSError:
            context.report()

    def _over(self) -> bool:
        return not self.workers and (self.ending or not self.address.is_there())

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        if sockets.peer_uid(client) != os.geteuid():
            client.close()
            return
        client.setblocking(False)
        with contextlib.suppress(OSError):  # more room for events while the daemon is busy; needs CAP_NET_ADMIN
            client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BYTES)
        self.selector.register(client, selectors.EVENT_READ, lambda: self._read(client))

    def _woken(self, wake: int) -> None:
        os.read(wake, 4096)
        self._reap_all()

    # -- requests

    def _read(self, client: socket.socket) -> None:
        try:
            data, fds = sockets.receive(client, MESSAGE_BYTES, MESSAGE_FDS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # broken, or a message that is too long
            self._hang_up(client)
            return
        seq = None
        try:
            if not data:
                self._hang_up(client)
                return
            request = json.loads(data)
            seq = request.get("seq")
            self._serve(client, request, fds)
        except Exception as exc:  # whatever a message holds, the keeper goes on
            self._send(client, {"seq": seq, "error": f"{type(exc).__name__}: {exc}"})
        finally:
            for fd in fds:
                os.close(fd)

    def _serve(self, client: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        """Answer one request, a fork's later. It takes descriptors that it keeps out of `fds`."""
        answer: dict[str, Any] = {"seq": request.get("seq")}
        op = request["op"]
        if op == "hello":
            me = {"pid": os.getpid(), "start_time": process.start_time(os.getpid()), "state": str(self.state)}
            self._send(client, {**answer, "version": __version__, "protocol": PROTOCOL, **me})
        elif op == "fork":
            self._fork(client, request, fds)
        elif op == "hold":
            self._hold(str(request["key"]), fds)
            self._send(client, answer)
        elif op == "take":
            held = self.held.get(request["key"], [])
            self._send(client, {**answer, "count": len(held)}, held)
        elif op == "drop":
            self._drop(str(request.get("key", "")), str(request.get("prefix", "")))
            self._send(client, answer)
        elif op == "list":
            self._list(client, answer)
        elif op == "watch":
            self.watchers.add(client)
            self._send(client, answer)
        elif op == "shutdown":
            self.ending = True
            self._send(client, {**answer, "workers": len(self.workers)})
        else:
            raise ValueError(f"unknown op {op!r}")

    def _list(self, client: socket.socket, answer: dict[str, Any]) -> None:
        """Handed over as a file: with many pods it is longer than a message may be.

        Who asks may know already that one has ended, and hears of nobody who has.
        """
        self._reap_all()
        found = {"workers": [one.describe() for one in self.workers.values()], "held": sorted(self.held)}
        with os.fdopen(os.memfd_create("keeper-list"), "wb") as file:
            file.write(json.dumps(found).encode())
            file.flush()
            self._send(client, answer, [file.fileno()])

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
                starting.client = None
        if client.fileno() >= 0:
            self.selector.unregister(client)
            client.close()

    def _hold(self, key: str, fds: list[int]) -> None:
        self._drop(key)
        self.held[key] = fds.copy()
        crashpoint("keeper.held")
        fds.clear()

    def _drop(self, key: str = "", prefix: str = "") -> None:
        for name in [name for name in self.held if name == key or (prefix and name.startswith(prefix))]:
            for fd in self.held.pop(name):
                os.close(fd)

    # -- workers

    def _fork(self, client: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
        kind, worker_id = str(request["kind"]), str(request["id"])
        if kind not in WORKERS:
            raise ValueError(f"unknown kind of worker {kind!r}")
        self._reap_all()  # so that one which has just ended is not in the way
        for one in self.workers.values():
            if (one.kind, one.id) == (kind, worker_id):
                raise FileExistsError(f"{kind} {worker_id} runs already, its pid is {one.pid}")
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(sockets.listen(request["listen"])) if request.get("listen") else None
            ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, ready_read)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(ours)
            args = request.get("args", {})
            if args.get("adopt"):
                fds, args = context.bequeath(self.held, worker_id, fds, args)
            message = {"kind": kind, "id": worker_id, "args": args, "listens": listener is not None}
            given = [ready_write, theirs.fileno(), *([listener.fileno()] if listener is not None else []), *fds]
            try:
                crashpoint("keeper.fork")
                pid = self.template.fork(message, given)
                crashpoint("keeper.forked")
            finally:
                os.close(ready_write)
                theirs.close()
            undo.pop_all()
        os.set_blocking(ready_read, False)
        ours.setblocking(False)
        worker = Worker(kind, worker_id, pid, process.start_time(pid) or 0, ours, listener)
        self.workers[pid] = worker
        self.starting[ready_read] = Starting(worker, client, request.get("seq"))
        self.selector.register(ready_read, selectors.EVENT_READ, lambda: self._answer_fork(ready_read))
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._hear(worker))

    def _answer_fork(self, ready: int) -> None:
        """The worker has said that it is ready, or why it is not, or it has died."""
        starting = self.starting.pop(ready)
        self.selector.unregister(ready)
        try:
            said = os.read(ready, 4096)
        except BlockingIOError:  # died, while a child of its own still has the other end
            said = b""
        os.close(ready)
        worker = starting.worker
        if said == b"1":
            reply: dict[str, Any] = {"pid": worker.pid, "start_time": worker.start_time}
        else:
            why = said.decode(errors="replace") or "it ended before it was ready"
            reply = {"error": f"{worker.kind} {worker.id}: {why}"}
        if starting.client is not None:
            self._send(starting.client, {"seq": starting.seq, **reply})

    def _hear(self, worker: Worker) -> None:
        """A worker has something to hold or to drop; its keys are its own, below its id."""
        try:
            data, fds = sockets.receive(worker.control, MESSAGE_BYTES, MESSAGE_FDS)
        except OSError:
            data, fds = b"", []
        try:
            if not data:
                self.selector.unregister(worker.control)
                worker.control.close()
                return
            message = json.loads(data)
            key = f"{worker.id}/{message['key']}"
            if message["op"] == "hold":
                self._hold(key, fds)
            else:
                self._drop(key)
        except (ValueError, LookupError, TypeError):
            context.report()
        finally:
            for fd in fds:
                os.close(fd)

    def _reap_all(self) -> None:
        while (found := process.peek_exited()) is not None:
            pid, code, status = found
            worker = self.workers.pop(pid, None)
            try:
                if worker is None:
                    crashpoint("keeper.exit")
                    exits.record_orphan(self.state / "pods", pid, code, status)
                    crashpoint("keeper.recorded")
            finally:
                process.reap(pid)
            if worker is not None:
                self._bury(worker, code, status)

    def _bury(self, worker: Worker, code: int, status: int) -> None:
        """A worker is dead: hear what it said last, answer who still waits for it, and tell the watchers."""
        while worker.control.fileno() >= 0:
            self._hear(worker)
        if worker.listener is not None:
            worker.listener.close()
        for ready in [ready for ready, starting in self.starting.items() if starting.worker is worker]:
            self._answer_fork(ready)
        if (code, status) == (os.CLD_EXITED, 0):
            self._drop(prefix=f"{worker.id}/")
        exit_status = status if code == os.CLD_EXITED else 128 + status
        for watcher in list(self.watchers):
            self._send(watcher, {"event": "exit", **worker.describe(), "status": exit_status})


def main() -> None:
    """Become the keeper of a state directory; the process that was started ends once the keeper answers.

    Its exit status is 0, or BUSY when another one keeps this directory, or 1.
    """
    parser = argparse.ArgumentParser(prog="holdfast-keeper")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--files", type=int, help="the soft limit on open files of workers and containers")
    options = parser.parse_args()
    state = options.state
    os.umask(0o077)
    told, tell = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(tell)
        os._exit((os.read(told, 1) or b"\x01")[0])
    os.close(told)
    os.setsid()
    os.chdir("/")
    try:
        keeper = _prepare(state, options.files)
    except BlockingIOError:
        os.write(tell, bytes([BUSY]))
        os._exit(0)
    except OSError as exc:
        raise SystemExit(f"cannot keep {state}: {exc}") from exc
    os.write(tell, b"\0")
    os.close(tell)
    keeper.run()
    keeper.address.leave()


def _prepare(state: Path, limit: int | None) -> Keeper:
    """The keeper, listening. Raises BlockingIOError if it is not the only one."""
    address = Address(state)
    mains = {kind: importlib.import_module(module).main for kind, module in WORKERS.items()}
    process.set_child_subreaper()
    process.set_name("hf-keeper")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    soft = process.raise_file_limit()  # it holds a few descriptors of each container
    context.complain_to(state / "keeper.log")
    cgroup.mode()  # what every worker would find out for itself, into memory that it would have to pay for
    process.boot_id()
    rehearsal.rehearse(state / "rehearsal")
    gc.collect()
    gc.freeze()
    template = Template(mains, limit or soft)
    return Keeper(state, address, address.listen(), template)  # last: who is heard is answered at once


if __name__ == "__main__":
    main()
