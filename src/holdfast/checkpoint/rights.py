"""What CRIU's images would have processes be and mount, held against what a container may: a look before a restore.

CRIU brings back whatever its images say, as root: capabilities, a missing seccomp filter, mounts of anything. So that
an archive gives nobody more than the request does, this is read from them first. It is a look for what is plainly too
much, not a proof: what a filter lets through is not looked at, and whoever may write archives is to be trusted.

Images are a magic number and then messages, each behind its length (CRIU's images/*.proto; field numbers below).
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files

LIMIT: Final = 64 * 1024 * 1024
HEAD: Final = 8  # two magic numbers
FILTERED: Final = 2  # of seccomp_mode
# core_entry, thread_core_entry, creds_entry, mnt_entry
THREAD, CREDS, SECCOMP = 5, 10, 11
CAPABILITIES: Final = {9: "inheritable", 10: "permitted", 11: "effective", 12: "bounding", 19: "ambient"}
PROFILE, NO_NEW_PRIVILEGES = 15, 18
FSTYPE, MOUNTPOINT, EXTERNAL = 1, 7, 18
# Of mnt_entry.fstype: those whose content is the kernel's own for each container, or memory.
FSTYPES: Final = {1: "proc", 2: "sysfs", 5: "tmpfs", 6: "devpts", 14: "mqueue"}

Value = int | bytes
Message = dict[int, list[Value]]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the request gives: capabilities by number, and where something may be mounted."""

    capabilities: frozenset[int]
    no_new_privileges: bool
    filtered: bool
    mounts: frozenset[str]


def excess(images: Path, allowed: Allowed) -> str:
    """What the images would give beyond that; "" when nothing was found. Raises ValueError for images that are none."""
    for path in sorted(images.glob("core-*.img")):
        for core in entries(files.read_bounded(path, LIMIT)):
            for thread in map(_message, core.get(THREAD, [])):
                if why := _of_thread(thread, allowed):
                    return f"{path.name}: {why}"
    for path in sorted(images.glob("mountpoints-*.img")):
        for mount in entries(files.read_bounded(path, LIMIT)):
            if why := _of_mount(mount, allowed):
                return f"{path.name}: {why}"
    return "apparmor.img: it brings a profile of its own" if (images / "apparmor.img").exists() else ""


def entries(data: bytes) -> Iterator[Message]:
    """The messages of an image. Raises ValueError."""
    at = HEAD
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("an image is cut off")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise ValueError("an image is cut off")
        yield decode(data[at : at + size])
        at += size


def decode(data: bytes) -> Message:
    """The fields of a message, however often each is there. Raises ValueError."""
    found: Message = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _value(data, at, key & 7)
        found.setdefault(key >> 3, []).append(value)
    return found


def _value(data: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return _varint(data, at)
    if kind == 2:
        size, at = _varint(data, at)
    elif kind in (1, 5):
        size = 8 if kind == 1 else 4
    else:
        raise ValueError(f"a field is of unknown kind {kind}")
    if at + size > len(data):
        raise ValueError("a field is cut off")
    return data[at : at + size], at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than 64 bits")


def _of_thread(thread: Message, allowed: Allowed) -> str:
    if len(thread.get(CREDS, [])) != 1 or len(thread.get(SECCOMP, [])) > 1:
        return "it does not say once what a thread may do"
    creds = _message(thread[CREDS][0])
    for field, name in CAPABILITIES.items():
        if more := sorted(_bits(creds.get(field, [])) - allowed.capabilities):
            return f"capability {more[0]} is {name}, which the request does not give"
    if allowed.no_new_privileges and creds.get(NO_NEW_PRIVILEGES) != [1]:
        return "no_new_privs is not set, which the request asks for"
    if allowed.filtered and thread.get(SECCOMP) != [FILTERED]:
        return "a thread has no seccomp filter, which the request asks for"
    return ""


def _bits(words: Iterable[Value]) -> set[int]:
    """Capability sets are words of 32 bits, the lowest first; written one by one, or packed."""
    numbers: list[int] = []
    for word in words:
        if isinstance(word, int):
            numbers.append(word)
            continue
        at = 0
        while at < len(word):
            number, at = _varint(word, at)
            numbers.append(number)
    return {32 * at + bit for at, word in enumerate(numbers) for bit in range(32) if word >> bit & 1}


def _of_mount(mount: Message, allowed: Allowed) -> str:
    """The root, and what is bound into it from outside, is mounted by the runtime, as its own spec says."""
    places = mount.get(MOUNTPOINT, [])
    if len(places) != 1 or not isinstance(places[0], bytes) or len(mount.get(FSTYPE, [])) != 1:
        return "it does not say once where something is mounted"
    place = places[0].decode(errors="replace")
    if place in ("/", "./") or mount.get(EXTERNAL):
        return ""
    kind = mount[FSTYPE][0]
    if kind not in FSTYPES:
        return f"a filesystem of type {kind!r} is mounted at {place}"
    if not any(place == known or place.startswith(f"{known}/") for known in allowed.mounts):
        return f"{FSTYPES[int(kind)]} is mounted at {place}, where the request has nothing"
    return ""


def _message(value: Value) -> Message:
    if not isinstance(value, bytes):
        raise ValueError("a message is a number")
    return decode(value)
