"""The unpacker with real overlay mounts: what honest layers mean, and what hostile ones must not reach."""

import contextlib
import errno
import gzip
import os
import select
import socket
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.images import digest_of, entry, pack, tar
from unpack_kit import start, unpack

from holdfast.linux import files, mount
from holdfast.model.archive import EXTENSION_LIMIT
from holdfast.model.spec import Mount
from holdfast.workers import unpacker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CHARACTER, BLOCK = tarfile.CHRTYPE, tarfile.BLKTYPE
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep, version 2


class Stack:
    """Layers on top of each other, each unpacked into its own directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layers: list[Path] = []

    def add(self, data: bytes, how: str = "") -> dict[str, Any]:
        place = self.directory / str(len(self.layers))
        blob = self.directory / f"{len(self.layers)}.blob"
        blob.write_bytes(pack(data, how))
        message = unpack(blob, place, self.layers)
        if "error" not in message:
            self.layers.insert(0, place / "fs")
        return message

    @contextlib.contextmanager
    def view(self) -> Any:
        """The layers as a container sees them."""
        target = self.directory / "view"
        target.mkdir(exist_ok=True)
        empty = self.directory / "empty"
        empty.mkdir(exist_ok=True)
        lowers = ":".join(str(one) for one in (*self.layers, empty))
        mount.mount_one(Mount("overlay", "overlay", options=(f"lowerdir={lowers}",)), target)
        try:
            yield target
        finally:
            mount.detach(target)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
def test_everything_a_layer_can_hold(stack: Stack, how: str) -> None:
    longest = "/".join(["d" * 200] * 15) + "/" + "f" * 250
    odd = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    moment = 1_234_567_890.5
    data = tar(
        [
            entry("./", mode=0o555),
            entry("bin", mode=0o755, mtime=moment),
            entry("bin/su", b"\x7fELF", mode=0o4755, uid=0, gid=5, mtime=moment),
            entry("bin/link", type=tarfile.SYMTYPE, linkname="/bin/su", uid=7, gid=8),
            entry("bin/hard", type=tarfile.LNKTYPE, linkname="bin/su"),
            entry("dev/null", type=CHARACTER, devmajor=1, devminor=3, mode=0o666),
            entry("dev/loop9", type=BLOCK, devmajor=7, devminor=9, mode=0o660, gid=6),
            entry("run/pipe", type=tarfile.FIFOTYPE, mode=0o620),
            entry("tmp", mode=0o1777),
            entry("big", b"x" * 3_000_000, uid=3_000_000_000, gid=2_999_999_999),
            entry(
                "ping", b"p", pax={"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
            ),
            entry("note", b"n", pax={"SCHILY.xattr.user.colour": "blue"}),
            entry(longest, b"deep"),
            entry(odd, b"odd"),
        ]
    )
    message = stack.add(data, how)
    assert message["diff_id"] == digest_of(data)
    with stack.view() as root:
        assert message["inodes"] == len(tree(root)) - 1  # the hard link is the same inode
        assert message["bytes"] >= 3_000_000
        assert stat.S_IMODE(root.stat().st_mode) == 0o555
        program = (root / "bin/su").stat()
        assert (stat.S_IMODE(program.st_mode), program.st_uid, program.st_gid) == (0o4755, 0, 5)
        assert program.st_mtime_ns == (root / "bin").stat().st_mtime_ns == int(moment * 1e9)
        assert (root / "bin/hard").samefile(root / "bin/su")
        assert os.readlink(root / "bin/link") == "/bin/su"
        assert ((root / "bin/link").lstat().st_uid, (root / "bin/link").lstat().st_gid) == (7, 8)
        assert (root / "dev/null").stat().st_rdev == os.makedev(1, 3)
        assert (root / "dev/loop9").stat().st_rdev == os.makedev(7, 9)
        assert stat.filemode((root / "run/pipe").stat().st_mode) == "prw--w----"
        assert stat.filemode((root / "tmp").stat().st_mode) == "drwxrwxrwt"
        assert ((root / "big").stat().st_uid, (root / "big").stat().st_gid) == (3_000_000_000, 2_999_999_999)
        assert os.getxattr(root / "ping", "security.capability") == CAPABILITY
        assert os.getxattr(root / "note", "user.colour") == b"blue"
        assert (root / longest).read_bytes() == b"deep"
        assert (root / odd).read_bytes() == b"odd"


def test_directories_nobody_mentions_are_not_open_to_all(stack: Stack) -> None:
    stack.add(tar([entry("a/b/c/file", b"x")]))
    with stack.view() as root:
        assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")] == [0o755] * 3


def test_whiteouts_hide_what_lies_below(stack: Stack) -> None:
    stack.add(tar([entry("keep/a", b"1"), entry("gone/a", b"1"), entry("file", b"1"), entry("swap/deep/x", b"1")]))
    stack.add(
        tar([entry(".wh.gone", b""), entry(".wh.file", b""), entry("swap", b"now a file"), entry("no/.wh.such", b"")])
    )
    with stack.view() as root:
        assert tree(root) - {"no"} == {"keep", "keep/a", "swap"}
    stack.add(tar([entry("gone/b", b"2"), entry("swap"), entry("swap/y", b"2")]))
    with stack.view() as root:
        assert tree(root) - {"no"} == {"keep", "keep/a", "gone", "gone/b", "swap", "swap/y"}


@pytest.mark.parametrize("last", [True, False])
def test_opaque_directory_hides_all_below_but_nothing_of_its_own_layer(stack: Stack, last: bool) -> None:
    stack.add(tar([entry("d/old", b"1"), entry("d/sub/old", b"1"), entry("d/sub/deeper/old", b"1")]))
    own = [entry("d"), entry("d/new", b"2"), entry("d/sub/new", b"2")]
    opaque = [entry("d/.wh..wh..opq", b"")]
    stack.add(tar(own + opaque if last else opaque + own))
    with stack.view() as root:
        assert tree(root) == {"d", "d/new", "d/sub", "d/sub/new"}


def test_whiteout_never_removes_what_its_own_layer_wrote(stack: Stack) -> None:
    stack.add(tar([entry("d/old", b"1")]))
    stack.add(tar([entry("d/new", b"2"), entry(".wh.d", b"")]))
    with stack.view() as root:
        assert tree(root) == {"d", "d/new"}


def test_entries_follow_links_of_lower_layers_within_the_root(stack: Stack) -> None:
    stack.add(tar([entry("usr/lib/a", b"1"), entry("lib", type=tarfile.SYMTYPE, linkname="/usr/lib")]))
    stack.add(tar([entry("lib/b", b"2"), entry("lib/.wh.a", b"")]))
    with stack.view() as root:
        assert (root / "usr/lib/b").read_bytes() == b"2"
        assert not (root / "usr/lib/a").exists()
        assert (root / "lib").is_symlink()


def test_hard_link_to_a_lower_layer(stack: Stack) -> None:
    stack.add(tar([entry("a", b"same", mode=0o600)]))
    stack.add(tar([entry("b", type=tarfile.LNKTYPE, linkname="a")]))
    with stack.view() as root:
        assert (root / "b").read_bytes() == b"same"
        assert stat.S_IMODE((root / "b").stat().st_mode) == 0o600


def test_directory_keeps_its_attributes_when_a_later_layer_writes_into_it(stack: Stack) -> None:
    stack.add(tar([entry("d", mode=0o711, uid=9), entry("d/a", b"1")]))
    stack.add(tar([entry("d/b", b"2")]))
    with stack.view() as root:
        assert (stat.S_IMODE((root / "d").stat().st_mode), (root / "d").stat().st_uid) == (0o711, 9)


def test_sparse_files_stay_sparse(stack: Stack, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "holes", "wb") as file:
        for offset in (0, 4_000_000, 900_000_000):
            file.seek(offset)
            file.write(b"data" * 1024)
        file.truncate(1_000_000_000)
    for number, format in enumerate(("gnu", "pax")):
        packed = subprocess.run(
            ["tar", "--sparse", f"--format={format}", "-C", source, "-c", "holes"], check=True, capture_output=True
        ).stdout
        message = stack.add(packed, "gzip")
        assert message["bytes"] < 1_000_000, format
        found = stack.layers[0] / "holes"
        assert found.stat().st_size == 1_000_000_000
        with open(found, "rb") as file:
            for offset in (0, 4_000_000, 900_000_000):
                file.seek(offset)
                assert file.read(4096) == b"data" * 1024, (number, offset)
            file.seek(900_004_096)
            assert file.read(10) == b"\0" * 10


@pytest.mark.parametrize("format", ["gnu", "pax", "ustar", "v7"])
def test_reads_what_tar_writes(stack: Stack, tmp_path: Path, format: str) -> None:
    source = tmp_path / "source"
    (source / "a" / ("n" * 90)).mkdir(parents=True)
    (source / "a" / ("n" * 90) / "f").write_bytes(b"1")
    (source / "l").symlink_to("a")
    os.link(source / "a" / ("n" * 90) / "f", source / "hard")
    packed = subprocess.run(
        ["tar", f"--format={format}", "-C", source, "-c", "."], check=True, capture_output=True
    ).stdout
    assert stack.add(packed)["diff_id"] == digest_of(packed)
    assert tree(stack.layers[0]) == tree(source)


def test_many_gzip_members_are_one_stream(stack: Stack, tmp_path: Path) -> None:
    data = tar([entry("a", b"x" * 100_000), entry("b", b"y" * 100_000)])
    members = b"".join(gzip.compress(data[at : at + 50_000]) for at in range(0, len(data), 50_000))
    assert stack.add(members + b"\0" * 512)["diff_id"] == digest_of(data)
    assert tree(stack.layers[0]) == {"a", "b"}


def test_empty_layer(stack: Stack) -> None:
    assert stack.add(b"\0" * 1024)["inodes"] == 0


def test_a_hundred_layers_on_a_long_path(tmp_path: Path) -> None:
    """More options than mount(2) takes in one page."""
    long = tmp_path / ("p" * 60)
    long.mkdir()
    lowers = []
    for number in range(100):
        lower = long / str(number) / "fs"
        lower.mkdir(parents=True)
        (lower / f"file{number}").touch()
        lowers.append(lower)
    blob = tmp_path / "blob"
    blob.write_bytes(tar([entry(".wh.file7", b""), entry("dir/x", b"1")]))
    assert "error" not in unpack(blob, tmp_path / "top", lowers)
    top = Stack(tmp_path)
    top.layers = [tmp_path / "top/fs", *lowers]
    with top.view() as root:
        assert len(list(root.iterdir())) == 100
        assert (root / "dir/x").read_bytes() == b"1"


HOSTILE: dict[str, list[tuple[Any, ...]]] = {
    "climbs": [entry("../outside", b"x")],
    "climbs in the middle": [entry("a/../../outside", b"x")],
    "hard link climbs": [entry("h", type=tarfile.LNKTYPE, linkname="../../outside")],
    "hard link to nothing": [entry("h", type=tarfile.LNKTYPE, linkname="etc/shadow")],
    "hard link through a link": [
        entry("up", type=tarfile.SYMTYPE, linkname="../../../.."),
        entry("h", type=tarfile.LNKTYPE, linkname="up/outside"),
    ],
    "hard link to a directory": [entry("d"), entry("h", type=tarfile.LNKTYPE, linkname="d")],
    "whiteout of dot dot": [entry("a/.wh...", b"")],
    "whiteout of dot": [entry("a/.wh..", b"")],
    "whiteout of nothing": [entry("a/.wh.", b"")],
    "overlayfs whiteout": [entry("w", type=CHARACTER, devmajor=0, devminor=0)],
    "unknown type": [entry("x", type=b"Z")],
    "file below a file": [entry("a", b"x"), entry("a/b", b"x")],
    "link to itself as a directory": [entry("l", type=tarfile.SYMTYPE, linkname="l"), entry("l/x", b"x")],
    "root as a file": [entry("./", b"x")],
    "root as a link": [entry(".", type=tarfile.SYMTYPE, linkname="/etc")],
    "name too long": [entry("n" * 300, b"x")],
    "path too long": [entry("/".join(["n" * 200] * 30), b"x")],
    "name with a zero": [entry("x", b"", pax={"path": "a\0b"})],
    "negative owner": [entry("x", b"", pax={"uid": "-1"})],
    "owner too large": [entry("x", b"", pax={"uid": "99999999999"})],
    "time of nonsense": [entry("x", b"", pax={"mtime": "inf"})],
    "long header": [entry("x", b"", pax={"comment": "c" * (EXTENSION_LIMIT + 1)})],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layers_are_refused(stack: Stack, name: str) -> None:
    outside = stack.directory / "outside"
    outside.write_bytes(b"precious")
    message = stack.add(tar(HOSTILE[name]))
    assert message["error"] == "invalid", message
    assert outside.read_bytes() == b"precious"
    assert outside.stat().st_nlink == 1


def sparse_with(map_text: bytes) -> bytes:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "10"}
    return tar([entry("GNUSparseFile.0/s", map_text.ljust(512, b"\0"), pax=pax)])


DAMAGED: dict[str, bytes] = {
    "no archive": b"this is not a tar archive" * 100,
    "cut in a file": tar([entry("a", b"x" * 10_000)])[:4000],
    "cut gzip": gzip.compress(tar([entry("a", os.urandom(100_000))]))[:50_000],
    "gzip with a wrong checksum": gzip.compress(tar([entry("a", b"x")]))[:-8] + b"12345678",
    "gzip and then something else": gzip.compress(tar([entry("a", b"x")])) + b"garbage",
    "zstd that is none": b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
    "sparse map of nonsense": sparse_with(b"one\n"),
    "sparse map going back": sparse_with(b"2\n5\n2\n-3\n4\n"),
    "sparse map beyond all files": sparse_with(b"1\n9223372036854775806\n1\n"),
    "sparse map without end": sparse_with(b"99999999\n" + b"1\n" * 200),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_layers_are_refused(stack: Stack, name: str) -> None:
    message = stack.add(DAMAGED[name])
    assert message["error"] == "invalid", message


def test_absolute_names_and_links_stay_inside(stack: Stack, tmp_path: Path) -> None:
    """Whatever a link says, it means the layer's own root, in this layer and in the ones on top."""
    victim = tmp_path / "victim"
    victim.mkdir()
    climb = "../" * 20
    message = stack.add(
        tar(
            [
                entry("/abs", b"1"),
                entry("link", type=tarfile.SYMTYPE, linkname=f"{climb}{victim}"),
                entry(f"{str(victim)[1:]}/there", b"2"),
                entry("link/x", b"3"),
            ]
        )
    )
    assert "error" not in message
    stack.add(tar([entry("link/y", b"4"), entry("link/.wh.x", b""), entry("link/.wh..wh..opq", b"")]))
    assert list(victim.iterdir()) == []
    with stack.view() as root:
        assert tree(root / str(victim)[1:]) == {"y"}


def test_attributes_of_overlayfs_are_not_taken_from_a_layer(stack: Stack) -> None:
    stack.add(tar([entry("d/secret", b"1")]))
    names = (
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.opaque",
        "security.selinux",
        "trusted.x",
    )
    stack.add(tar([entry("d", pax={f"SCHILY.xattr.{name}": "y" for name in names}), entry("e/f", b"1")]))
    with stack.view() as root:
        assert (root / "d/secret").exists()
    assert [name for name in os.listxattr(stack.layers[0] / "d") if name in names] == []


def test_code_in_a_layer_is_never_imported(stack: Stack) -> None:
    """After the chroot every import path would lead into the layer."""
    ours, theirs = os.pipe()
    (stack.directory / "fs").mkdir()
    module = stack.directory / "fs" / "trap.py"
    module.write_text("raise SystemExit('code of the layer was run')")
    if (pid := os.fork()) == 0:
        try:
            unpacker.lock_in(str(stack.directory / "fs"), "", "", [], unpacker._KEEP)
            import trap  # noqa: F401
        except ModuleNotFoundError:
            os.write(theirs, b"refused")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as file:
        assert file.read() == b"refused"


def in_cell(directory: Path, act: Callable[[], object]) -> int:
    """The errno with which `act` fails in a worker that is locked in; 0 if it does not."""
    directory.mkdir()
    if (pid := os.fork()) == 0:
        number = 0
        try:
            unpacker.lock_in(str(directory), "", "", [], unpacker._KEEP)
            act()
        except OSError as exc:
            number = exc.errno or errno.EIO
        finally:
            os._exit(number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_cell_has_no_way_out(tmp_path: Path) -> None:
    def connect() -> None:
        with socket.socket() as one:
            one.connect(("127.0.0.1", 9))

    attempts: dict[str, Callable[[], object]] = {
        "chroot": lambda: os.chroot("/"),
        "mount": lambda: mount.mount("none", "/", "tmpfs"),
        "network": connect,
        "hostname": lambda: socket.sethostname("x"),
        "setuid": lambda: os.setuid(1),
        "see": lambda: os.stat("/etc"),
    }
    found = {name: in_cell(tmp_path / name, act) for name, act in attempts.items()}
    assert found.pop("network") in (errno.ENETUNREACH, errno.EPERM)
    assert found.pop("see") == errno.ENOENT
    assert set(found.values()) == {errno.EPERM}, found


def test_a_worker_nobody_waits_for_ends(tmp_path: Path) -> None:
    """The daemon was killed: the layer would be removed by the next one while it is still being written."""
    blob = tmp_path / "blob"
    with open(blob, "wb") as file:
        file.write(tar([entry("a", b"x" * 1000)]))
        file.truncate(1 << 40)  # zeros: read to the end for the digest, which takes hours
    pid, ours = start(blob, tmp_path / "place", [])
    ours.close()
    ended = os.pidfd_open(pid)
    with os.fdopen(ended):
        assert select.select([ended], [], [], 20)[0], "the worker works on"
    os.waitpid(pid, 0)


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    blob = tmp_path / "blob"
    blob.write_bytes(tar([entry("a", b"x" * 4_000_000)]))
    mount.mount("none", small, "tmpfs", data="size=1m")
    try:
        message = unpack(blob, small / "place")
        assert (message["error"], message["errno"]) == ("io", errno.ENOSPC)
    finally:
        mount.detach(small)


def test_a_bomb_of_headers_does_not_fill_the_memory(stack: Stack) -> None:
    """Headers are forgotten as they are done with; this many would be a gigabyte."""
    one = tar([entry("d")])[:512]
    blob = stack.directory / "blob"
    blob.write_bytes(gzip.compress(one * 60_000, 1))
    message = unpack(blob, stack.directory / "place")
    assert message["inodes"] == 1


def test_remove_tree_can_remove_any_layer(stack: Stack) -> None:
    stack.add(tar([entry("/".join(["d" * 200] * 15), mode=0), entry("x", type=tarfile.FIFOTYPE)]))
    stack.add(tar([entry("x", b""), entry("y/z", b"")]))
    for name in ("0", "1"):
        files.remove_tree(stack.directory / name)
        assert not (stack.directory / name).exists()
