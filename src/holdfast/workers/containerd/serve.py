"""The shim's process under containerd: the very shim that the keeper forks under holdfastd, with another owner."""

import os
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final

from holdfast.linux import process
from holdfast.workers.containerd.events import Containerd
from holdfast.workers.containerd.forward import Forwarder
from holdfast.workers.containerd.group import Group, sweep
from holdfast.workers.containerd.request import Request
from holdfast.workers.context import Context
from holdfast.workers.shim.oci import Runtime
from holdfast.workers.shim.server import Shim, take_pod

LOOK_SECONDS: Final = 5.0
FAREWELL_SECONDS: Final = 3.0  # for events that containerd has not acknowledged by the end


def serve(request: Request, group: Group, runtime: Mapping[str, Any], listener: socket.socket) -> None:
    """Until containerd has shut it down."""
    process.set_child_subreaper()
    lock = take_pod(group.directory)
    context = Context(
        id=group.directory.name,
        args={"namespace": request.namespace},
        fds=[],
        listener=listener,
        ready=lambda: None,
        hold=lambda key, descriptors: None,
        drop=lambda key: None,
    )
    shim = Shim(context, Runtime.from_args(runtime, process.sealed_crun(runtime["binary"])))
    forwarder = Forwarder(shim.loop, request.events)
    shim.owner = owner = Containerd(shim.loop, forwarder, request.namespace, group)

    def look() -> None:
        shim.loop.start(owner.look_after(shim.operations.tasks), looked)

    def looked(nobody: bool, error: Exception | None) -> None:
        if error is not None:
            traceback.print_exception(error)
        if nobody:
            shim.stop()
        shim.loop.timers.add(LOOK_SECONDS, look)

    shim.loop.timers.add(LOOK_SECONDS, look)
    shim.loop.timers.add(LOOK_SECONDS, lambda: sweep(request.state))
    shim.loop.run()
    forwarder.drain(FAREWELL_SECONDS)
    os.close(lock)
    sys.stderr.flush()
