"""A small systemd on a real unix socket: enough of D-Bus, and of its manager, to make slices and scopes.

It keeps units and what was asked, tells the ends of jobs, and can be told to refuse, fail, hang or talk nonsense.
With `cgroups` it makes, fills and removes real ones, as systemd would.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

from holdfast.linux import cgroup
from holdfast.model.cgroups import slice_path

MANAGER = DBusAddress(
    "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
)
ERROR = "org.freedesktop.systemd1."


class Systemd:
    """Serves until closed; one thread for each connection. `bus` as behind a message bus, which has to be greeted."""

    def __init__(self, path: Path, *, bus: bool = True, cgroups: bool = False) -> None:
        self.path = path
        self.address = f"unix:path={path}"
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.units: dict[str, dict[str, Any]] = {}
        self.refuse: dict[str, tuple[str, str]] = {}  # method -> (error's name, text)
        self.result = "done"  # of jobs
        self.early = False  # whether a job's end is told before its number
        self.silent: set[str] = set()  # methods that are never answered
        self.nonsense = b""  # said instead of any answer
        self.subscribed = 0
        self._bus = bus
        self._cgroups = cgroups
        self._jobs = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for one in (self._listener, *list(self._open)):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in list(self._threads):
            thread.join()

    def methods(self) -> list[str]:
        return [name for name, _ in self.calls if name not in ("Hello", "AddMatch", "Subscribe")]

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(channel)
            thread = threading.Thread(target=self._serve, args=(channel,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, channel: socket.socket) -> None:
        with contextlib.suppress(OSError), channel:
            self._greet(channel)
            parser, serial = Parser(), 0
            while data := channel.recv(4096):
                parser.add_data(data)
                while (message := parser.get_next_message()) is not None:
                    for answer in self._answer(message):
                        serial += 1
                        channel.sendall(self.nonsense or answer.serialise(serial=serial))
        self._open.discard(channel)

    def _greet(self, channel: socket.socket) -> None:
        """SASL, as far as EXTERNAL goes (the D-Bus specification, Authentication Protocol)."""
        assert channel.recv(1) == b"\0"
        said = b""
        while not said.endswith(b"\r\n"):
            said += channel.recv(1)
        assert said == b"AUTH EXTERNAL %s\r\n" % str(os.geteuid()).encode().hex().encode()
        channel.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
        said = b""
        while not said.endswith(b"\r\n"):
            said += channel.recv(1)
        assert said == b"BEGIN\r\n"

    def _answer(self, message: Message) -> list[Message]:
        fields = message.header.fields
        assert message.header.message_type is MessageType.method_call
        method = fields[HeaderFields.member]
        assert self._bus or method not in ("Hello", "AddMatch"), "there is no bus behind this socket"
        self.calls.append((method, message.body))
        if method in self.silent:
            return []
        if method in self.refuse:
            return [_error(message, *self.refuse[method])]
        if method == "Hello":
            return [new_method_return(message, "s", (":1.7",))]
        if method == "Subscribe":
            self.subscribed += 1
            if self.subscribed > 1:
                return [_error(message, f"{ERROR}AlreadySubscribed", "Already subscribed.")]
        if method in ("StartTransientUnit", "StopUnit"):
            return self._job(message, *message.body)
        if method == "SetUnitProperties":
            return self._set(message, *message.body)
        return [new_method_return(message)]

    def _job(self, message: Message, name: str, mode: str, *more: Any) -> list[Message]:
        assert mode == "replace"
        if more:
            if name in self.units:
                return [_error(message, f"{ERROR}UnitExists", f"Unit {name} was already loaded.")]
            self.units[name] = {key: content for key, (_, content) in more[0]}
        elif self.units.pop(name, None) is None:
            return [_error(message, f"{ERROR}NoSuchUnit", f"Unit {name} not loaded.")]
        if self._cgroups:
            self._make(name) if more else self._remove(name)
        self._jobs += 1
        job = f"/org/freedesktop/systemd1/job/{self._jobs}"
        told = new_method_return(message, "o", (job,))
        over = new_signal(MANAGER, "JobRemoved", "uoss", (self._jobs, job, name, self.result))
        other = new_signal(MANAGER, "JobRemoved", "uoss", (0, "/org/freedesktop/systemd1/job/0", "x.slice", "failed"))
        return [other, over, told] if self.early else [other, told, over]

    def _set(self, message: Message, name: str, runtime: bool, properties: list[Any]) -> list[Message]:
        assert runtime
        if name not in self.units:
            return [_error(message, f"{ERROR}NoSuchUnit", f"Unit {name} not loaded.")]
        self.units[name] |= {key: content for key, (_, content) in properties}
        return [new_method_return(message)]

    def _place(self, name: str) -> str:
        if name.endswith(".slice"):
            return slice_path(name)
        return f"{slice_path(self.units[name]['Slice'])}/{name}"

    def _make(self, name: str) -> None:
        self.units[name]["cgroup"] = place = self._place(name)
        cgroup.create(place)
        for pid in self.units[name].get("PIDs", []):
            cgroup.enter(place, pid)

    def _remove(self, name: str) -> None:
        """Slices by their name; of scopes only those that are empty end here."""
        if name.endswith(".slice"):
            cgroup.remove_if_empty(slice_path(name))


def _error(message: Message, name: str, text: str) -> Message:
    return new_error(message, name, "s", (text,))


@contextlib.contextmanager
def systemd(path: Path, *, bus: bool = True, cgroups: bool = False) -> Iterator[Systemd]:
    one = Systemd(path, bus=bus, cgroups=cgroups)
    try:
        yield one
    finally:
        one.close()
