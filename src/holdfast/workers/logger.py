"""The logger of one container of a foreign shim: it reads the FIFOs that the shim writes to, and writes the CRI log.

It has its own ends of the FIFOs open for reading and for writing, so that a shim that comes, goes or is late is neither
an end nor an error; the end of the log is what `Finish` finds in them. On `log.sock` in the bundle it serves, by ttrpc,

    Reopen    write to the file that has the log's name now
    Attach    send copies to FIFOs in the directory that an annotation names, as Update of our own shims does
    CloseIO   keep the container's stdin open no longer
    Finish    take what is left, complete the log, and end; the answer comes when that is done

One that was killed is replaced by one that adopts: it goes on at the same FIFOs, and says in the log what was lost.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from holdfast.linux import files, process
from holdfast.model.state import ProcessRef
from holdfast.model.witness import LOGGER_FILE, encode
from holdfast.proto import task_pb2
from holdfast.ttrpc.server import INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED, Call, CallError, Server
from holdfast.workers.context import Context
from holdfast.workers.shim import crilog
from holdfast.workers.shim.attach import ATTACH
from holdfast.workers.shim.gap import STREAMS
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.stdio import LOG_SCHEME, Stdio, open_fifo

SERVICE: Final = "holdfast.v1.Logger"
LINGER_SECONDS: Final = 5.0


class Logger:
    """Serves these calls."""

    def __init__(self, context: Context) -> None:
        assert context.listener is not None
        self._context = context
        self.loop = Loop(lambda pid, code, status: process.reap(pid))
        self._stdio = Stdio(self.loop, Path(context.args["directory"]))
        self._held: list[int] = []
        log = f"{LOG_SCHEME}{context.args['log_path']}"
        stdin = context.args.get("stdin", "")
        if context.args.get("adopt"):
            self._held = [_writer(self._stdio.directory / name) for name in STREAMS]
            self._stdio.adopt((stdin, log, log), False, {})
        else:
            self._stdio.open(stdin, log, log)
        for name, descriptor in self._stdio.kept.items():
            context.hold(name, [descriptor])
        me = ProcessRef(os.getpid(), process.start_time(os.getpid()) or 0, process.boot_id())
        files.write_atomic(self._stdio.directory / LOGGER_FILE, encode(me), sync=False)
        self._methods: dict[str, Callable[[bytes], None]] = {
            "Reopen": self._reopen,
            "Attach": self._attach,
            "CloseIO": self._close_io,
            "Finish": self._finish,
        }
        server = Server(self.loop.selector, context.listener, self._take)
        self.loop.clocks.append(server)

    def _take(self, call: Call) -> None:
        act = self._methods.get(call.method)
        if call.service != SERVICE or act is None:
            call.fail(UNIMPLEMENTED, f"{call.service}/{call.method} is not served")
            return
        try:
            act(call.payload)
        except CallError as exc:
            call.fail(exc.code, str(exc))
        except DecodeError as exc:
            call.fail(INVALID_ARGUMENT, f"cannot read the request of {call.method}: {exc}")
        except OSError as exc:
            call.fail(INTERNAL, str(exc))
        else:
            call.answer(Empty())

    def _reopen(self, _: bytes) -> None:
        if self._stdio.output.log is not None:
            self._stdio.output.log.reopen()

    def _attach(self, payload: bytes) -> None:
        self._stdio.output.attach(task_pb2.UpdateTaskRequest.FromString(payload).annotations[ATTACH])

    def _close_io(self, _: bytes) -> None:
        self._context.drop("stdin")
        self._stdio.close_stdin()

    def _finish(self, _: bytes) -> None:
        self._stdio.finish()
        self._stdio.close()
        files.unlink(self._stdio.directory / LOGGER_FILE)
        self.loop.running = False

    def linger(self) -> None:
        """Have those told of their losses who are attached and late, if they read on soon."""
        deadline = time.monotonic() + LINGER_SECONDS
        while self._stdio.output.attached and (left := deadline - time.monotonic()) > 0:
            timer = self.loop.timers.add(left, lambda: None)
            self.loop.turn()
            timer.cancel()


def _writer(fifo: Path) -> int:
    """An end for writing, so that what can be read has no end; one that died finishing has left but one."""
    if not fifo.exists():
        files.fifo(fifo)
    return open_fifo(str(fifo), os.O_RDWR)


def main(context: Context) -> None:
    """A worker's life, until it is told to finish."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logger = Logger(context)
    context.ready()
    logger.loop.run()
    logger.linger()
    crilog.last_words()
    sys.stderr.flush()
