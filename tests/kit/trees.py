"""Trees with one of everything that a program can leave, and all that can be told of one."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Final

MOMENT: Final = 1_700_000_000_123_456_789
CAPABILITY: Final = bytes.fromhex("0100000200040000000000000000000000000000")


def look(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that can be told of a tree: by path kind, mode, owner, times, links, device, attributes, content."""
    found = {}
    first: dict[int, str] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status, name = path.lstat(), str(path.relative_to(top))
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        attributes = {one: os.getxattr(path, one, follow_symlinks=False)
                      for one in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
        device = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
        same = first.setdefault(status.st_ino, name)
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        owner = (status.st_mode, status.st_uid, status.st_gid)
        found[name] = (*owner, status.st_mtime_ns, size, device, same, attributes, content)
    return found


def fill(top: Path, marks: bool = True) -> None:
    """One of everything that a program can leave in a volume; with overlayfs's own marks, or without."""
    (top / "empty").mkdir(mode=0o750)
    (top / "text").write_bytes(b"some text\n" * 1000)
    (top / "nothing").touch()
    with (top / "sparse").open("wb") as file:
        file.seek(40 * 1024 * 1024)
        file.write(os.urandom(5000))
        file.truncate(100 * 1024 * 1024)
    with (top / "hole").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    (top / "a" / "b").mkdir(parents=True)
    os.link(top / "text", top / "a" / "b" / "same text")
    os.link(top / "sparse", top / "a" / "same sparse")
    (top / "link").symlink_to("/etc/passwd")
    (top / "broken").symlink_to("nowhere")
    os.link(top / "broken", top / "broken again", follow_symlinks=False)
    os.mkfifo(top / "pipe")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if marks:
        os.mknod(top / "mark", stat.S_IFCHR, os.makedev(0, 0))
        os.setxattr(top / "a", "user.overlay.opaque", b"y")
    (top / ".wh.text").write_bytes(b"not a whiteout")
    (top / ".wh..wh..opq").touch()
    (Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe name\n"))).write_bytes(b"no UTF-8")
    (top / ("long " * 40)).mkdir()
    (top / ("long " * 40) / ("name " * 40)).write_bytes(b"long")
    (top / "setuid").touch()
    os.chown(top / "setuid", 1000, 1001)
    os.chmod(top / "setuid", 0o6711)
    os.chown(top / "link", 7, 8, follow_symlinks=False)
    os.setxattr(top / "text", "user.note", b"a\0b\nc=\xff")
    os.setxattr(top / "nothing", "security.capability", CAPABILITY)
    os.chmod(top, 0o1777)
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(MOMENT, MOMENT), follow_symlinks=False)
