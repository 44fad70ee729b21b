"""What a process has open, while it opens and closes."""

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

from holdfast.linux import descriptors

FLIP = """
import os, sys
fifo, plain = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[2], os.O_RDWR)
print(flush=True)
while True:
    os.dup2(fifo, 9)
    os.dup2(plain, 9)
"""


def one(path: Path, number: int, kind: int) -> descriptors.Descriptor:
    found = os.stat(path)
    (own,) = (each for each in descriptors.of(os.getpid()) if each.number == number)
    assert (own.link, own.device, own.inode, own.kind) == (str(path), found.st_dev, found.st_ino, kind)
    return own


def test_files_pipes_and_sockets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "plain").touch()
    with contextlib.ExitStack() as stack:

        def opened(number: int) -> int:
            stack.callback(os.close, number)
            return number

        fifo = one(tmp_path / "fifo", opened(os.open(tmp_path / "fifo", os.O_RDWR)), stat.S_IFIFO)
        plain = one(tmp_path / "plain", opened(os.open(tmp_path / "plain", os.O_RDWR)), stat.S_IFREG)
        assert fifo.named and plain.named
        assert fifo.mount == plain.mount and plain.mount in descriptors.mounts_of(os.getpid())
        pipe = list(map(opened, os.pipe()))
        found = {each.number: each for each in descriptors.of(os.getpid())}
        assert {found[number].link for number in pipe} == {f"pipe:[{os.fstat(pipe[0]).st_ino}]"}
        assert not found[pipe[0]].named and found[pipe[0]].kind == stat.S_IFIFO
        memory = opened(os.memfd_create("some"))
        assert not next(each for each in descriptors.of(os.getpid()) if each.number == memory).named


def test_none_of_a_process_that_has_gone() -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    assert descriptors.of(gone.pid) == []


def test_a_descriptor_is_one_file_or_the_other_never_half_of_each(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "plain").touch()
    kinds = {str(tmp_path / "fifo"): stat.S_IFIFO, str(tmp_path / "plain"): stat.S_IFREG}
    command = [sys.executable, "-c", FLIP, tmp_path / "fifo", tmp_path / "plain"]
    seen = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        try:
            for _ in range(3000):
                for each in descriptors.of(process.pid):
                    if each.number == 9:
                        assert each.kind == kinds[each.link]
                        seen.add(each.kind)
        finally:
            process.kill()
    assert seen == set(kinds.values())
