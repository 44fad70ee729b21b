"""Makes a directory at a path that is a user's: on a network filesystem whose server has gone that may take for ever.

So it is done by a process that somebody else can give up and kill, and that has nothing else to lose.
"""

import errno
import json
import socket

from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.workers.context import Context


def main(context: Context) -> None:
    """fds: a socket for the one message that tells how it went: {} or {"errno", "message"}."""
    (result_fd,) = context.fds
    context.ready()
    with socket.socket(fileno=result_fd) as result:
        found: dict[str, object] = {}
        try:
            crashpoint("path.made")
            files.mkdir(context.args["path"], parents=True, exist_ok=True)
        except OSError as exc:
            found = {"errno": exc.errno or errno.EIO, "message": exc.strerror or str(exc)}
        result.sendall(json.dumps(found).encode())
