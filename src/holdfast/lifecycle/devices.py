"""Devices of this host, as they are when a container is made: its nodes in /dev, and the spec files of CDI."""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from holdfast.linux import files
from holdfast.model.errors import InvalidArgument
from holdfast.model.spec import DeviceNode
from holdfast.oci import cdi, devices
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handler

# Containers get terminals, shared memory and message queues anew; the others are other runtimes' own.
SKIPPED: Final = frozenset({"pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"})
MOST: Final = 10_000  # names that are looked at in one directory of devices and below it
TYPES: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
FILE_LIMIT: Final = 1024 * 1024  # of a CDI spec file
FILES: Final = 1000  # in one directory
DEPTH: Final = 32  # of a document; the deepest that means anything is at 6


class Devices:
    """Looks up what a container's config asks for. All of it blocks."""

    def __init__(self, directories: Sequence[Path], *, owned: bool = False) -> None:
        self._directories = directories
        self._owned = owned
        self._read: dict[Path, tuple[object, cdi.File | str]] = {}

    def wanted(self, config: pb.ContainerConfig) -> bool:
        """Whether there is anything to look up."""
        return bool(config.devices or config.linux.security_context.privileged or cdi.requested(config))

    def found(self, config: pb.ContainerConfig, handler: Handler) -> dict[str, Any]:
        """The fields of a SpecRequest that tell of devices. Raises InvalidArgument that names the field."""
        context = config.linux.security_context
        asked = tuple(
            tuple(_asked(device, f"config.devices[{number}]")) for number, device in enumerate(config.devices)
        )
        if self._owned:
            asked = tuple(tuple(devices.owned(node, context) for node in nodes) for nodes in asked)
        everything = handler.host_devices and context.privileged
        names = cdi.requested(config)
        return {
            "devices": asked,
            "host_devices": tuple(node for _, node in _below("/dev", "config")) if everything else (),
            "bind_devices": Path(handler.binary).name != "crun",
            "all_devices": handler.host_devices or handler.all_devices,
            "cdi": cdi.complete(self._registry().edits(names), look) if names else cdi.Edits(),
        }

    def _registry(self) -> cdi.Registry:
        """All spec files as they are now; one that has not changed since the last time is not parsed again."""
        read: dict[Path, tuple[object, cdi.File | str]] = {}
        faults: dict[str, str] = {}
        for priority, directory in enumerate(self._directories):
            try:
                names = sorted(name for name in os.listdir(directory) if name.endswith((".json", ".yaml")))
            except FileNotFoundError:
                continue
            except OSError as exc:
                faults[str(directory)] = str(exc.strerror)
                continue
            if len(names) > FILES:
                faults[str(directory)] = f"it has more than {FILES} files"
            for name in names[:FILES]:
                path = directory / name
                read[path] = self._load(path, priority)
        self._read = read
        found = [one for _, one in read.values() if isinstance(one, cdi.File)]
        faults |= {str(path): one for path, (_, one) in read.items() if isinstance(one, str)}
        return cdi.Registry(found, faults)

    def _load(self, path: Path, priority: int) -> tuple[object, cdi.File | str]:
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if (known := self._read.get(path)) is not None and known[0] == identity:
                return known
            return identity, cdi.parse(decode(files.read_bounded(path, FILE_LIMIT), path.suffix), str(path), priority)
        except OSError as exc:
            return None, str(exc.strerror)
        except ValueError as exc:
            return None, str(exc)


def look(path: str) -> DeviceNode | None:
    """The device node at a path of the host; None when there is something else there, or nothing."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if (kind := TYPES.get(stat.S_IFMT(found.st_mode))) is None:
        return None
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return DeviceNode(path, kind, major, minor, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def decode(data: bytes, suffix: str) -> object:
    """A JSON or YAML document. Raises ValueError.

    In YAML nothing may refer to anything else: a small file could otherwise become one of any size.
    """
    if suffix == ".json":
        try:
            return json.loads(data)
        except RecursionError as exc:
            raise ValueError("it is nested too deeply") from exc
    import yaml  # nobody else is to pay for it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(data, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has an alias, *{event.anchor}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError("it is nested too deeply")
        return yaml.load(data, Loader=loader)
    except yaml.YAMLError as exc:
        raise ValueError(" ".join(str(exc).split())) from exc


def _asked(device: pb.Device, field: str) -> Iterator[DeviceNode]:
    """The node that is asked for, or all that are in a directory, with the paths they have inside."""
    path = os.path.realpath(device.host_path)
    if (node := look(path)) is not None:
        yield devices.inside(device, node)
    elif os.path.isdir(path):
        for name, one in _below(path, field):
            yield devices.inside(device, one, name)
    else:
        raise InvalidArgument(f"{field}.host_path: {device.host_path!r} is not a device of this host")


def _below(directory: str, field: str) -> Iterator[tuple[str, DeviceNode]]:
    """Character and block devices in a directory and below it, in order, each with its name from there on."""
    left = MOST
    for top, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in SKIPPED)
        left -= len(names) + len(directories)
        if left < 0:
            raise InvalidArgument(f"{field}.host_path: there are more than {MOST} files below {directory!r}")
        for name in sorted(set(names) - SKIPPED):
            path = os.path.join(top, name)
            if (node := look(path)) is not None and node.type != "p":
                yield os.path.relpath(path, directory), replace(node, path=path)
