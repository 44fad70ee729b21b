"""A blocking D-Bus connection to systemd, with one deadline for all that is done with it.

Messages are jeepney's; the socket is ours. Root talks to systemd itself at its private socket, as systemctl does; where
there is none, over the system bus (DBUS_SYSTEM_BUS_ADDRESS, or where it always is), which has to be greeted, and to be
told which signals are wanted.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator

from holdfast.model.errors import DeadlineExceeded, HoldfastError, Unavailable

PRIVATE: Final = "/run/systemd/private"
SYSTEM: Final = "/run/dbus/system_bus_socket"
ADDRESS: Final = "DBUS_SYSTEM_BUS_ADDRESS"
SECONDS: Final = 10.0
_CHUNK: Final = 64 * 1024
_NAME: Final = "org.freedesktop.systemd1"
_MANAGER: Final = f"{_NAME}.Manager"
_PATH: Final = "/org/freedesktop/systemd1"
_SYSTEMD: Final = DBusAddress(_PATH, _NAME, _MANAGER)
_DAEMON: Final = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")


class Refused(HoldfastError):
    """What systemd answered instead of doing what it was asked to. `name` is the D-Bus error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Bus:
    """A connection. Use as a context. Raises Unavailable, DeadlineExceeded."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._deadline = time.monotonic() + seconds
        self._parser = Parser()
        self._serial = 0
        self._ended: dict[str, str] = {}  # jobs that are over, with their results
        self._socket, greet = _connect(self._left)
        try:
            self._authenticate()
            if greet:
                self._call(new_method_call(_DAEMON, "Hello"))
                rule = f"type='signal',sender='{_NAME}',path='{_PATH}',interface='{_MANAGER}',member='JobRemoved'"
                self._call(new_method_call(_DAEMON, "AddMatch", "s", (rule,)))
            with contextlib.suppress(Refused):  # it was subscribed to already
                self.call("Subscribe")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Bus":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def call(self, method: str, signature: str | None = None, *body: object) -> tuple[Any, ...]:
        """Call a method of the manager. Raises Refused, Unavailable, DeadlineExceeded."""
        return self._call(new_method_call(_SYSTEMD, method, signature, body))

    def run(self, method: str, signature: str, *body: object) -> None:
        """Call a method that answers with a job, and await the job's end. Raises Refused as well when it fails."""
        (job,) = self.call(method, signature, *body)
        while job not in self._ended:
            self._hear(self._receive())
        if (result := self._ended[job]) != "done":
            raise Refused(f"job {result}", f"the job ended as {result!r}")

    def _call(self, message: Message) -> tuple[Any, ...]:
        self._serial += 1
        with _translated():
            self._socket.settimeout(self._left())
            self._socket.sendall(message.serialise(serial=self._serial))
        while True:
            found = self._receive()
            if found.header.fields.get(HeaderFields.reply_serial) != self._serial:
                self._hear(found)
            elif found.header.message_type is MessageType.error:
                text = found.body[0] if found.body and isinstance(found.body[0], str) else ""
                raise Refused(str(found.header.fields.get(HeaderFields.error_name, "")), text)
            else:
                return tuple(found.body)

    def _hear(self, message: Message) -> None:
        """Take note of the end of a job: JobRemoved(number, job, unit, result)."""
        fields = message.header.fields
        is_signal = message.header.message_type is MessageType.signal
        if is_signal and fields.get(HeaderFields.member) == "JobRemoved" and len(message.body) == 4:
            self._ended[message.body[1]] = message.body[3]

    def _receive(self) -> Message:
        with _translated():
            while (message := self._parser.get_next_message()) is None:
                self._parser.add_data(self._read())
            return message

    def _authenticate(self) -> None:
        with _translated():
            self._socket.sendall(b"\0")
            sasl = Authenticator(inc_null_byte=False)
            for data in sasl:
                self._socket.sendall(data)
                sasl.feed(self._read())
            self._socket.sendall(BEGIN)

    def _read(self) -> bytes:
        self._socket.settimeout(self._left())
        if not (data := self._socket.recv(_CHUNK)):
            raise ConnectionResetError("it hung up")
        return data

    def _left(self) -> float:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError
        return left


def _connect(left: Callable[[], float]) -> tuple[socket.socket, bool]:
    """A socket, and whether there is a bus behind it rather than systemd itself."""
    places = [(path, True) for path in _from_environment()] or [(PRIVATE, False), (SYSTEM, True)]
    problem = "it has no address"
    for path, greet in places:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            channel.settimeout(left())
            channel.connect(path)
            return channel, greet
        except OSError as exc:
            channel.close()
            problem = f"{path}: {exc.strerror or 'it does not answer'}"
    raise Unavailable(f"cannot reach systemd: {problem}")


def _from_environment() -> list[str]:
    """Paths of unix sockets in a D-Bus address: "unix:path=/a,guid=1;unix:abstract=b"."""
    found = []
    for one in filter(None, os.environ.get(ADDRESS, "").split(";")):
        kind, _, rest = one.partition(":")
        values = dict(part.partition("=")[::2] for part in rest.split(","))
        if kind == "unix" and "path" in values:
            found.append(values["path"])
        elif kind == "unix" and "abstract" in values:
            found.append(f"\0{values['abstract']}")
    return found


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise DeadlineExceeded("systemd does not answer in time") from exc
    except (OSError, AuthenticationError) as exc:
        raise Unavailable(f"cannot talk to systemd: {exc}") from exc
    except (ValueError, LookupError, TypeError, struct.error) as exc:  # of jeepney, for what is no D-Bus
        raise Unavailable(f"cannot understand systemd: {exc}") from exc
