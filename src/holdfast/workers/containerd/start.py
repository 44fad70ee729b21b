"""`start`: have a shim serve a container. The first of a group gets a new one, the others get that one's address.

The socket is there before the shim is: containerd's first call waits in its backlog while the shim, which is forked
early, imports what it needs.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from holdfast.linux import files, process, sockets
from holdfast.workers import context
from holdfast.workers.containerd import options
from holdfast.workers.containerd.group import ADDRESS, Group, name_of, read_spec
from holdfast.workers.containerd.request import Request

PATH_LIMIT: Final = 107  # sun_path, unix(7); containerd connects by the whole path
OPTIONS_LIMIT: Final = 1024 * 1024
LOG: Final = "log"  # a FIFO in the bundle, which containerd reads


def start(request: Request) -> str:
    """The shim's address, which is in the bundle as well when this returns."""
    spec = read_spec(request.bundle)
    group = Group.of(request.state, request.address, request.namespace, name_of(spec, request.id))
    if len(os.fsencode(group.socket)) > PATH_LIMIT:
        raise ValueError(f"{group.socket} is too long for a socket; HOLDFAST_SHIM_STATE can name a shorter place")
    with group.locked():
        try:
            group.join(request.id, request.bundle)
            if not group.answers():
                wanted = options.unpack(_read_options())
                _begin(request, group, options.choose(wanted, spec, request.namespace, group.directory))
            files.write_atomic(request.bundle / ADDRESS, group.address.encode(), sync=False)
        except BaseException:
            if group.leave(request.id):
                group.remove()
            raise
    return group.address


def _read_options() -> bytes:
    return b"" if os.isatty(0) else sys.stdin.buffer.read(OPTIONS_LIMIT)


def _begin(request: Request, group: Group, runtime: dict[str, Any]) -> None:
    """Listen, and fork the shim that serves the socket."""
    with sockets.listen(group.socket) as listener:
        pid = process.fork()
        if pid == 0:
            _be_shim(request, group, runtime, listener)
        group.write({"pid": pid, "start_time": process.start_time(pid), "runtime": runtime})


def _be_shim(request: Request, group: Group, runtime: dict[str, Any], listener: socket.socket) -> NoReturn:
    """In the child: let go of containerd's pipes, which it reads to their end, and serve."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _say_into(request.bundle / LOG)
        process.close_fds_except([0, 1, 2, listener.fileno()])
        process.set_name("hf-shim")
        os.chdir("/")
        _be_killed_before_containerd()
        from holdfast.workers.containerd.serve import serve

        serve(request, group, runtime, listener)
        status = 0
    except BaseException:
        context.report()
    finally:
        os._exit(status)


def _say_into(log: Path) -> None:
    """What we have to say is for containerd's log; with nobody to read it we never wait, and it is lost."""
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        said = os.open(log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        said = nothing
    os.dup2(nothing, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stderr = context.Complaints()


def _be_killed_before_containerd() -> None:
    """When memory runs out, a pod's shim is worth less than all of containerd, from which we have our score."""
    score = Path("/proc/self/oom_score_adj")
    try:
        score.write_text(str(min(int(score.read_text()) + 1, 1000)))
    except OSError:
        context.report()
