"""A worker that becomes a command of a foreign shim: what that leaves behind is the keeper's child, and outlives us."""

import os
import signal
from typing import Final

from holdfast.workers.context import Context
from holdfast.workers.shim.spawn import UMASK

# What the keeper ignores and its children shall not.
_DEFAULTS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)


def main(context: Context) -> None:
    """fds: stdin, stdout and stderr of the command; args: command, directory, environment."""
    args = context.args
    for number, descriptor in enumerate(context.fds):
        os.dup2(descriptor, number)
    for one in _DEFAULTS:
        signal.signal(one, signal.SIG_DFL)
    os.umask(UMASK)
    os.chdir(args["directory"])
    context.ready()
    os.execve(args["command"][0], args["command"], args["environment"])
