"""The template: a copy of the keeper as it was when it had just started; workers are forked from it.

It does nothing else, so that its pages stay what they are and all workers share them: a page that the keeper itself
writes to, and the count of references to an object is enough, would be one more copy in every worker. A worker is the
keeper's child all the same (CLONE_PARENT of clone(2)).

    keeper -> template   {"kind", "id", "args", "listens"} and descriptors: ready, control, listener if any, the rest
    template -> keeper   the pid as four bytes
"""

import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from holdfast.linux import process, sockets
from holdfast.workers import context

MESSAGE_BYTES: Final = 256 * 1024
MESSAGE_FDS: Final = 80
ANSWER_SECONDS: Final = 5.0
_PID: Final = struct.Struct("=i")


class Template:
    """The keeper's side of it. `mains` are the workers' entry points, `files` their soft limit on descriptors."""

    def __init__(self, mains: Mapping[str, context.Main], files: int) -> None:
        self._mains = mains
        self._files = files
        self._line = self._start()

    def fork(self, message: dict[str, Any], fds: Sequence[int]) -> int:
        """A new worker's pid. A template that somebody has killed is made again. Raises OSError.

        One that does not answer in time is given up, and so is what it may have forked: its lines lead nowhere.
        """
        data = json.dumps(message).encode()
        try:
            return self._ask(data, fds)
        except ConnectionError:
            self._replace()
            return self._ask(data, fds)
        except TimeoutError:
            self._replace()
            raise

    def _replace(self) -> None:
        self._line.close()
        self._line = self._start()

    def _ask(self, data: bytes, fds: Sequence[int]) -> int:
        sockets.send(self._line, data, fds)
        if not sockets.wait_for_input(self._line, ANSWER_SECONDS):
            raise TimeoutError(f"the template has not answered for {ANSWER_SECONDS:g} s")
        answer = self._line.recv(_PID.size)
        if not answer:
            raise BrokenPipeError("the template has ended")
        pid = int(_PID.unpack(answer)[0])
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_SECONDS)
        if process.fork() == 0:
            _serve(theirs, self._mains, self._files)
        theirs.close()
        return ours


def _serve(line: socket.socket, mains: Mapping[str, context.Main], files: int) -> NoReturn:
    """In the child: fork on request until the keeper is gone."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        process.close_fds_except([0, 1, 2, line.fileno()])
        process.set_name("hf-template")
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        while True:
            data, fds = sockets.receive(line, MESSAGE_BYTES, MESSAGE_FDS)
            if not data:
                break
            try:
                pid = process.fork_sibling()
            except OSError as exc:
                pid = -(exc.errno or 1)
            if pid == 0:
                context.run(line, data, fds, mains)
            for fd in fds:
                os.close(fd)
            line.send(_PID.pack(pid))
    except BaseException:
        context.report()
    finally:
        os._exit(0)
