"""Filesystems in user space: a server of the kernel's protocol (linux/fuse.h), and one that shows a directory.

That is as much of a network's or a cloud's filesystem as it takes to lose files on one: names, contents, deletes.
"""

import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast.linux import mount

LOOKUP, FORGET, GETATTR, UNLINK, RMDIR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 10, 11, 14, 15, 17, 18
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 26, 27, 28, 29, 36, 38, 42
UNANSWERED: Final = (FORGET, INTERRUPT, BATCH_FORGET)
IN_HEADER: Final = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER: Final = struct.Struct("=IiQ")  # len, error, unique
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")  # major, minor, readahead, flags, background, ..., flags2
ATTRIBUTES: Final = struct.Struct("=6Q10I")  # ino, size, blocks, times, their ns, mode, nlink, uid, gid, rdev, blksize
READ_IN: Final = struct.Struct("=QQI")  # fh, offset, size
ENTRY: Final = struct.Struct("=QQII")  # of a directory: ino, offset of the next, length of the name, type
REQUEST_BYTES: Final = 1 << 18
ROOT: Final = 1


class Server:
    """Mounted at `path`. A request that is not answered is one that whoever has made it waits for."""

    name = "server"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        mount.mount(self.name, path, f"fuse.{self.name}", 0, options)
        self._thread = threading.Thread(target=self._serve, name=f"{self.name} filesystem", daemon=True)
        self._thread.start()

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        """None for no answer at all. Raises OSError for an error."""
        raise NotImplementedError

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, REQUEST_BYTES)
            except OSError as exc:  # ENODEV: unmounted. ENOENT: somebody has given up his request
                if exc.errno == errno.ENOENT:
                    continue
                return
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            error, body = 0, self._init(opcode)
            if body is None:
                try:
                    body = self.answer(opcode, node, request[IN_HEADER.size :])
                except OSError as exc:
                    error, body = -(exc.errno or errno.EIO), b""
            if body is not None:
                self._reply(OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)

    def _init(self, opcode: int) -> bytes | None:
        return INIT_OUT.pack(7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0) if opcode == INIT else None

    def _reply(self, data: bytes) -> None:
        try:
            os.write(self._fd, data)
        except OSError as exc:  # nobody waits for it any more
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def release(self) -> None:
        """Its server is gone for good: whoever waits gets an error (umount2(2), MNT_FORCE, and fuse_abort_conn)."""
        if self._fd >= 0:
            quiet = subprocess.DEVNULL
            subprocess.run(["umount", "-i", "-f", self.path], stderr=quiet, check=False)  # EBUSY, but all is aborted
            subprocess.run(["umount", "-i", "-l", self.path], stderr=quiet, check=False)
            self._thread.join()
            os.close(self._fd)
            self._fd = -1


class Mirror(Server):
    """Shows a directory as it is at any time, to be read and deleted from."""

    name = "mirror"

    def __init__(self, path: Path, backing: Path) -> None:
        self._paths = {ROOT: backing}
        self._nodes = {backing: ROOT}
        self._calls: dict[int, Callable[[Path, bytes], bytes]] = {
            LOOKUP: lambda at, body: self._entry(at / _name(body)),
            GETATTR: lambda at, _: struct.pack("=QII", 0, 0, 0) + self._attributes(at),
            UNLINK: lambda at, body: _done(os.unlink, at / _name(body)),
            RMDIR: lambda at, body: _done(os.rmdir, at / _name(body)),
            OPEN: lambda *_: bytes(16),
            OPENDIR: lambda *_: bytes(16),
            RELEASE: lambda *_: b"",
            RELEASEDIR: lambda *_: b"",
            DESTROY: lambda *_: b"",
            STATFS: lambda *_: bytes(80),
            READ: _read,
            READDIR: self._list,
        }
        super().__init__(path)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        if opcode in UNANSWERED:
            return None
        if opcode not in self._calls:
            raise OSError(errno.ENOSYS, "not served")
        return self._calls[opcode](self._paths[node], body)

    def _node(self, path: Path) -> int:
        node = self._nodes.setdefault(path, len(self._nodes) + ROOT)
        self._paths[node] = path
        return node

    def _entry(self, path: Path) -> bytes:
        attributes = self._attributes(path)
        return struct.pack("=QQQQII", self._node(path), 0, 0, 0, 0, 0) + attributes

    def _attributes(self, path: Path) -> bytes:
        of = path.lstat()
        times = [int(one) for one in (of.st_atime, of.st_mtime, of.st_ctime)]
        owner = (of.st_mode, of.st_nlink, of.st_uid, of.st_gid)
        return ATTRIBUTES.pack(self._node(path), of.st_size, of.st_blocks, *times, 0, 0, 0, *owner, 0, 4096, 0)

    def _list(self, path: Path, body: bytes) -> bytes:
        """From an offset on, as many as there is room for. What goes meanwhile must not move the others: by node."""
        _, offset, size = READ_IN.unpack_from(body)
        listed = b""
        for node, one in sorted((self._node(one), one) for one in path.iterdir()):
            name = os.fsencode(one.name)
            entry = ENTRY.pack(node, node, len(name), stat.S_IFMT(one.lstat().st_mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if node > offset and len(listed) + len(entry) <= size:
                listed += entry
        return listed


def _name(body: bytes) -> str:
    return os.fsdecode(body.rstrip(b"\0"))


def _done(call: Callable[[Path], None], path: Path) -> bytes:
    call(path)
    return b""


def _read(path: Path, body: bytes) -> bytes:
    _, offset, size = READ_IN.unpack_from(body)
    return path.read_bytes()[offset : offset + size]
