"""What a caller is told of work that has failed."""

import errno
import os
from typing import Final

from holdfast.ttrpc.server import INTERNAL, RESOURCE_EXHAUSTED, CallError
from holdfast.workers.shim.loop import said

NO_SPACE: Final = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))  # as crun, runc and our own children say it


def as_call_error(error: Exception, what: str) -> CallError:
    """The text of a failed command is the runtime's own, and often all there is to tell a full disk by."""
    if isinstance(error, CallError):
        return error
    text = said(error)
    return CallError(RESOURCE_EXHAUSTED if any(one in text for one in NO_SPACE) else INTERNAL, f"{what}: {text}")
