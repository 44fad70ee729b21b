"""The logger of one container of a foreign shim: it reads the FIFOs that the shim writes to, and writes the CRI log.

It has its own ends of the FIFOs open for reading and for writing, so that a shim that comes, goes or is late is neither
an end nor an error; the end of the log is what `Finish` finds in them. On `log.sock` in the bundle it serves, by ttrpc,

    Reopen   write to the file that has the log's name now
    Finish   take what is left, complete the log, and end; the answer comes when that is done

One that was killed is replaced by one that adopts: it goes on at the same FIFOs, and says in the log what was lost.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Final

from google.protobuf.empty_pb2 import Empty

from holdfast.linux import files, process
from holdfast.model.state import ProcessRef
from holdfast.model.witness import LOGGER_FILE, encode
from holdfast.ttrpc.server import INTERNAL, UNIMPLEMENTED, Call, Server
from holdfast.workers.context import Context
from holdfast.workers.shim import crilog
from holdfast.workers.shim.gap import STREAMS
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.stdio import LOG_SCHEME, Stdio, open_fifo

SERVICE: Final = "holdfast.v1.Logger"


class Logger:
    """Serves the two calls."""

    def __init__(self, context: Context) -> None:
        assert context.listener is not None
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
        server = Server(self.loop.selector, context.listener, self._take)
        self.loop.clocks.append(server)

    def _take(self, call: Call) -> None:
        try:
            if (call.service, call.method) == (SERVICE, "Reopen"):
                assert self._stdio.log is not None
                self._stdio.log.reopen()
            elif (call.service, call.method) == (SERVICE, "Finish"):
                self._stdio.finish()
                self._stdio.close()
                files.unlink(self._stdio.directory / LOGGER_FILE)
                self.loop.running = False
            else:
                call.fail(UNIMPLEMENTED, f"{call.service}/{call.method} is not served")
                return
        except OSError as exc:
            call.fail(INTERNAL, str(exc))
            return
        call.answer(Empty())


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
    crilog.last_words()
    sys.stderr.flush()
