"""What foreign shims tell the daemon: containerd's events service, of which `Forward` is all there is."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from holdfast.proto import containerd_events_pb2, events_ttrpc_pb2
from holdfast.ttrpc.server import UNIMPLEMENTED, CallError

log = logging.getLogger(__name__)

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
PACKAGE: Final = "containerd.events."


@dataclass(frozen=True, slots=True)
class Told:
    """One event. `exec_id` is "" for the task itself, `kind` the message's name, as in "TaskExit"."""

    kind: str
    container_id: str
    exec_id: str = ""


def read(request: events_ttrpc_pb2.ForwardRequest) -> Told | None:
    """None for an event of no known kind. Raises DecodeError."""
    event = request.envelope.event
    name = event.type_url.rpartition("/")[2].removeprefix(PACKAGE)
    kind: type[Message] | None = getattr(containerd_events_pb2, name, None) if name.startswith("Task") else None
    if kind is None or "container_id" not in kind.DESCRIPTOR.fields_by_name:
        return None
    found = kind.FromString(event.value)
    container_id = found.container_id  # type: ignore[attr-defined]
    exec_id = getattr(found, "exec_id", "") or getattr(found, "id", "")
    return Told(name, container_id, "" if exec_id == container_id else exec_id)


class Forwarded:
    """Serves the service and hands on what was told; an event is a hint, and nothing a shim has to wait for."""

    def __init__(self, tell: Callable[[Told], None]) -> None:
        self._tell = tell

    async def handle(self, service: str, method: str, payload: bytes) -> Message:
        """What cannot be read, or is not known, is taken all the same, lest it be sent again."""
        if (service, method) != (SERVICE, "Forward"):
            raise CallError(UNIMPLEMENTED, f"{service}/{method} is not served")
        try:
            told = read(events_ttrpc_pb2.ForwardRequest.FromString(payload))
        except DecodeError as exc:
            log.warning("a shim has told something that cannot be read: %s", exc)
            return Empty()
        if told is None:
            log.info("a shim has told something that is not known here")
        else:
            self._tell(told)
        return Empty()
