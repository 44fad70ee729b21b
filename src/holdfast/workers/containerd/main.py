"""Our shim under containerd: the program that containerd runs for each container to be made, or whose shim is gone.

It has to be cheap to begin: what only one of its verbs needs is imported there.
"""

import gc
import os
import sys
from pathlib import Path
from typing import Final

from holdfast import __version__
from holdfast.workers.containerd.request import UsageError, parse, understand

NAME: Final = "containerd-shim-holdfast-v1"
USAGE: Final = 2
HELP: Final = f"""\
usage: {NAME} -namespace NAMESPACE -address SOCKET -id ID [-bundle DIRECTORY] [-debug] start | delete

Holdfast's shim for containerd (Runtime v2). containerd runs it by itself for containers of the runtime
io.containerd.holdfast.v1, when it finds it on its PATH or beside its own binary:

    ctr run --runtime io.containerd.holdfast.v1 IMAGE ID

  start     have a shim serve the container whose bundle this is, and print the shim's address
  delete    remove what a shim that is gone has left of the container, and print how it ended

Flags: -version, -help; -publish-binary and -socket are accepted and not used.
Environment: TTRPC_ADDRESS is where events go; HOLDFAST_SHIM_STATE is where shims have their sockets and the OCI
runtime its state (/run/holdfast-shim).
"""


def main() -> int:
    """The exit status: 0, 1 when it could not be done, 2 when the command line is wrong."""
    gc.set_threshold(50_000)  # importing allocates much and frees nothing
    os.umask(0o077)
    try:
        flags, verb = parse(sys.argv[1:])
        if flags.keys() & {"v", "version"}:
            return _print(f"{NAME} {__version__}\n".encode())
        if flags.keys() & {"h", "help"}:
            return _print(HELP.encode())
        request = understand(flags, verb, os.environ, Path.cwd())
    except UsageError as exc:
        return _complain(f"{exc}\n{HELP}", USAGE)
    try:
        if request.verb == "start":
            from holdfast.workers.containerd.start import start

            return _print(start(request).encode())
        from holdfast.workers.containerd.delete import delete

        return _print(delete(request))
    except Exception as exc:  # containerd shows what is said here to whoever has asked
        return _complain(f"cannot {request.verb} shim of {request.id}: {exc}\n", 1)


def _print(answer: bytes) -> int:
    os.write(1, answer)
    return 0


def _complain(text: str, status: int) -> int:
    os.write(2, f"{NAME}: {text}".encode(errors="replace"))
    return status
