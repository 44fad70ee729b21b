"""Mounts: mount(2), umount2(2), fsopen(2) and /proc/PID/mountinfo (proc(5)). No conveniences that hide an errno."""

import ctypes
import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from holdfast.linux.inject import fault
from holdfast.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    SYS_FSCONFIG,
    SYS_FSMOUNT,
    SYS_FSOPEN,
    SYS_MOUNT_SETATTR,
    SYS_MOVE_MOUNT,
    SYS_OPEN_TREE,
    check,
    libc,
    path_bytes,
    syscall,
)

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_UNBINDABLE: Final = 0x20000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8

FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
AT_RECURSIVE: Final = 0x8000
MOUNT_ATTR_IDMAP: Final = 0x00100000

_PAGE: Final = 4095  # mount(2) takes one page of options
_ATTRIBUTES: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC  # the same bits as MOUNT_ATTR_*
_FLAGS: Final = {
    "ro": (MS_RDONLY, True),
    "rw": (MS_RDONLY, False),
    "nosuid": (MS_NOSUID, True),
    "suid": (MS_NOSUID, False),
    "nodev": (MS_NODEV, True),
    "dev": (MS_NODEV, False),
    "noexec": (MS_NOEXEC, True),
    "exec": (MS_NOEXEC, False),
    "bind": (MS_BIND, True),
    "rbind": (MS_BIND | MS_REC, True),
    "remount": (MS_REMOUNT, True),
}
_PROPAGATION: Final = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}


class MountLike(Protocol):
    """One mount as the OCI and Task APIs describe it."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo; paths are unescaped."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: str
    fstype: str
    source: str
    optional: tuple[str, ...]

    @property
    def propagation(self) -> str:
        """Where mounts go to and come from: "shared", "slave" or "private" (mount_namespaces(7)). A slave that is
        shared as well is shared."""
        kinds = {field.partition(":")[0] for field in self.optional}
        return "shared" if "shared" in kinds else "slave" if "master" in kinds else "private"


def mount(source: str, target: str | os.PathLike[str], fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    fault("mount", target)
    options = path_bytes(data) or None
    arguments = (path_bytes(source), path_bytes(target), path_bytes(fstype), ctypes.c_ulong(flags), options)
    check(libc.mount(*arguments), "mount", source, target)


def bind(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, recursive: bool = False, read_only: bool = False
) -> None:
    """A bind mount. With both, only the mount itself is read-only, not what comes along below it."""
    flags = MS_BIND | (MS_REC if recursive else 0)
    _bind(os.fspath(source), target, flags | (MS_RDONLY if read_only else 0))


def _bind(source: str, target: str | os.PathLike[str], flags: int) -> None:
    """mount(2) ignores a bind's attributes, and a remount would clear those that the source's mount has."""
    mount(source, target, "", flags & (MS_BIND | MS_REC))
    if not flags & _ATTRIBUTES:
        return
    descriptor = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        set_attributes(descriptor, flags)
    except OSError:
        detach(target)
        raise
    finally:
        os.close(descriptor)


class _MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def set_attributes(descriptor: int, flags: int, *, recursive: bool = False) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC, as far as in `flags`, to the mount of a descriptor."""
    fault("mount_setattr")
    _set_attributes(descriptor, _MountAttr(flags & _ATTRIBUTES, 0, 0, 0), recursive=recursive)


def seclude(descriptor: int) -> None:
    """Make the mount of a descriptor, and all that is mounted below it, private: what is done there is seen nowhere
    else (mount_namespaces(7))."""
    fault("mount_setattr")
    _set_attributes(descriptor, _MountAttr(0, 0, MS_PRIVATE, 0), recursive=True)


def _set_attributes(descriptor: int, attributes: _MountAttr, *, recursive: bool) -> None:
    how = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(attributes)
    syscall(SYS_MOUNT_SETATTR, "mount_setattr", descriptor, b"", how, ctypes.byref(attributes), size)


def idmap(descriptor: int, userns: int, *, recursive: bool = False) -> None:
    """Show id n of the files of a detached mount as what id n of a user namespace is outside (MOUNT_ATTR_IDMAP).

    To a process in that namespace they look as they do on disk, and what it makes is on disk as it looks to it. Raises
    OSError: EINVAL for a filesystem that cannot, and for an overlay, EPERM for a mount that is mapped already.
    """
    fault("idmap")
    _set_attributes(descriptor, _MountAttr(MOUNT_ATTR_IDMAP, 0, 0, userns), recursive=recursive)


def bind_idmapped(
    source: str | os.PathLike[str], target: str | os.PathLike[str], userns: int, *, recursive: bool = False
) -> None:
    """A bind mount shown through the mapping of a user namespace; with `recursive` what is mounted below comes along,
    as it is.
    """
    fault("idmap-bind", source)
    descriptor = _clone(os.fspath(source), MS_BIND | (MS_REC if recursive else 0))
    try:
        idmap(descriptor, userns)
        attach(descriptor, target)
    finally:
        os.close(descriptor)


def attach(descriptor: int, target: str | os.PathLike[str]) -> None:
    """Put a mount that is attached nowhere at `target` (move_mount(2))."""
    fault("mount", target)
    path = path_bytes(target)
    syscall(SYS_MOVE_MOUNT, "move_mount", descriptor, b"", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH, paths=(target,))


def unmount(target: str | os.PathLike[str]) -> None:
    """umount2(2) of the topmost mount at `target`; EBUSY while it is in use."""
    fault("umount", target)
    check(libc.umount2(path_bytes(target), UMOUNT_NOFOLLOW), "umount2", target)


def detach(target: str | os.PathLike[str]) -> None:
    """Take the topmost mount at `target` out of the tree at once; the kernel ends it when nobody uses it."""
    fault("umount", target)
    check(libc.umount2(path_bytes(target), MNT_DETACH | UMOUNT_NOFOLLOW), "umount2", target)


def set_propagation(target: str | os.PathLike[str], flag: int, *, recursive: bool = False) -> None:
    """Make a mount MS_PRIVATE, MS_SLAVE or MS_SHARED."""
    mount("", target, "", flag | (MS_REC if recursive else 0))


def parse_options(options: Iterable[str]) -> tuple[int, int, str]:
    """(mount flags, propagation flags, what the filesystem itself is told) from mount(8)-like options."""
    flags, propagation, data = 0, 0, []
    for option in options:
        if option in _FLAGS:
            bits, wanted = _FLAGS[option]
            flags = flags | bits if wanted else flags & ~bits
        elif option in _PROPAGATION:
            propagation |= _PROPAGATION[option]
        else:
            data.append(option)
    return flags, propagation, ",".join(data)


def mount_one(one: MountLike, target: str | os.PathLike[str]) -> None:
    """Perform one described mount at `target`, a bind's read-only step and an overlay with many layers included."""
    flags, propagation, data = parse_options(one.options)
    if one.type == "overlay" and len(data) > _PAGE:
        descriptor = open_detached(one)
        try:
            attach(descriptor, target)
        finally:
            os.close(descriptor)
    elif flags & MS_BIND:
        _bind(one.source, target, flags)
    else:
        mount(one.source, target, one.type, flags, data)
    if propagation:
        mount("", target, "", propagation)


def open_detached(one: MountLike) -> int:
    """A descriptor of a mount that is attached nowhere: nobody else sees it and closing it ends it (fsmount(2))."""
    flags, _, data = parse_options(one.options)
    fault("fsmount", one.source)
    if flags & MS_BIND:
        return _clone(one.source, flags)
    context = syscall(SYS_FSOPEN, "fsopen", one.type.encode(), FSOPEN_CLOEXEC)
    try:
        for option in filter(None, data.split(",")):
            key, _, value = option.partition("=")
            for name, part in _parameters(key, value):
                kind = FSCONFIG_SET_STRING if part else FSCONFIG_SET_FLAG
                syscall(
                    SYS_FSCONFIG,
                    "fsconfig",
                    context,
                    kind,
                    name.encode(),
                    os.fsencode(part) or None,
                    0,
                    paths=(option,),
                )
        syscall(SYS_FSCONFIG, "fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0, paths=(one.source,))
        return syscall(SYS_FSMOUNT, "fsmount", context, FSMOUNT_CLOEXEC, flags & _ATTRIBUTES)
    finally:
        os.close(context)


def _clone(source: str, flags: int) -> int:
    """A detached copy of the mount at `source`, with MS_REC of all below it, with attributes added."""
    recursive = AT_RECURSIVE if flags & MS_REC else 0
    how = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive
    descriptor = syscall(SYS_OPEN_TREE, "open_tree", AT_FDCWD, path_bytes(source), how, paths=(source,))
    if flags & _ATTRIBUTES:
        try:
            set_attributes(descriptor, flags)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def _parameters(key: str, value: str) -> list[tuple[str, str]]:
    """fsconfig(2) takes at most 255 bytes a value, so that lower layers are given one by one (Linux 6.5)."""
    if key == "lowerdir" and len(value) > 255:
        return [("lowerdir+", layer) for layer in value.split(":")]
    return [(key, value)]


def mountinfo(pid: int | str = "self") -> list[MountEntry]:
    """The mounts that a process sees, in the order of the kernel's table."""
    return [_entry(line) for line in _lines(pid)]


def _lines(pid: int | str = "self") -> list[bytes]:
    fault("mountinfo")
    with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        return file.read().splitlines()


def _entry(line: bytes) -> MountEntry:
    before, _, after = line.partition(b" - ")
    first, last = before.split(b" "), after.split(b" ")
    return MountEntry(
        id=int(first[0]),
        parent=int(first[1]),
        device=first[2].decode(),
        root=_unescape(first[3]),
        target=_unescape(first[4]),
        options=first[5].decode(),
        fstype=_unescape(last[0]),  # of FUSE with what its server calls itself
        source=_unescape(last[1]),
        optional=tuple(field.decode() for field in first[6:]),
    )


def holding(descriptor: int) -> MountEntry:
    """The mount that a descriptor is on."""
    begin = b"%d " % mount_id(descriptor)
    return next(_entry(line) for line in _lines() if line.startswith(begin))


def _unescape(field: bytes) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    parts = field.split(b"\\")
    decoded = parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])
    return os.fsdecode(decoded)


def mounts_below(path: str | os.PathLike[str]) -> list[MountEntry]:
    """Mounts at or below `path` in an order in which they can be unmounted: what is on top, or deeper, first.

    Symlinks on the way to `path` are followed, one in its place is not.
    """
    head, name = os.path.split(os.path.abspath(path))
    top = os.path.join(os.path.realpath(head), name)
    # A host with many pods has many lines, few of them about this place: only what may be is taken apart.
    hint = re.split(rb"[ \t\n\\]", os.fsencode(name))[0]  # up to the first byte that mountinfo escapes
    entries = [_entry(line) for line in _lines() if hint in line]
    found = [entry for entry in entries if entry.target == top or entry.target.startswith(f"{top.rstrip('/')}/")]
    below: dict[int, list[MountEntry]] = {}
    for entry in found:
        below.setdefault(entry.parent, []).append(entry)
    known = {entry.id for entry in found}
    pending = [entry for entry in found if entry.parent not in known]
    ordered = []
    while pending:  # parents before children and older before younger; then all of it backwards
        ordered.append(entry := pending.pop(0))
        pending[:0] = below.get(entry.id, [])
    return ordered[::-1]


def unmount_tree(path: str | os.PathLike[str]) -> None:
    """Unmount whatever is mounted at or below `path`, detaching what is busy. Idempotent.

    Raises OSError EBUSY when something is left, such as a mount that another one hides.
    """
    for entry in mounts_below(path):
        try:
            unmount(entry.target)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                detach(entry.target)
            elif exc.errno not in (errno.EINVAL, errno.ENOENT):  # gone meanwhile, e.g. by propagation
                raise
    if left := mounts_below(path):
        raise OSError(errno.EBUSY, f"umount2: {os.strerror(errno.EBUSY)}", left[0].target)


def mount_id(descriptor: int) -> int:
    """Which mount a descriptor is on, from /proc/self/fdinfo (proc(5)); unlike st_dev it tells bind mounts apart."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))
