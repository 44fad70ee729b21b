"""Volumes and writable layers, packed and unpacked again: nothing of them is lost, and nothing outside is reached."""

import contextlib
import errno
import io
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.trees import fill, look
from unpack_kit import unpack, unpack_volume

from holdfast.checkpoint import layout
from holdfast.checkpoint.layer import pack_layer
from holdfast.checkpoint.tree import DEPTH, pack_tree
from holdfast.linux import files, mount
from holdfast.model.spec import Mount
from holdfast.snapshots.overlay import view_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs: it has holes, extended attributes and devices, whatever the disk of this machine is."""
    place = tmp_path / "disk"
    place.mkdir()
    mount.mount("disk", place, "tmpfs", 0, "size=256m")
    try:
        yield place
    finally:
        mount.unmount_tree(place)


@contextlib.contextmanager
def directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pack_to(source: Path, target: Path) -> list[str]:
    with directory(source) as descriptor, target.open("wb") as out:
        return pack_tree(descriptor, out)


def test_a_volume_comes_back_as_it_was(disk: Path) -> None:
    source, target = disk / "source", disk / "target"
    source.mkdir()
    target.mkdir()
    fill(source)
    assert pack_to(source, disk / "volume.tar") == []
    assert (disk / "volume.tar").stat().st_size < 1_000_000, "holes were written out"
    assert "error" not in unpack_volume(disk / "volume.tar", target)
    assert look(target) == look(source)
    assert (target / "sparse").stat().st_blocks * 512 < 1_000_000
    assert (target / "hole").stat().st_blocks == 0


def test_others_read_it_too(disk: Path) -> None:
    """What is written is GNU tar's format for holes and the pax format for all else."""
    source = disk / "source"
    source.mkdir()
    fill(source)
    pack_to(source, disk / "volume.tar")
    with tarfile.open(disk / "volume.tar") as archive:
        sparse = archive.getmember("./a/same sparse")
        assert sparse.size == 100 * 1024 * 1024
        assert archive.getmember("./sparse").linkname == "./a/same sparse"
        assert (archive.getmember("./nothing").size, archive.getmember(".").mode) == (0, 0o1777)


def test_the_same_tree_makes_the_same_archive(disk: Path) -> None:
    (disk / "source").mkdir()
    fill(disk / "source")
    for name in ("1.tar", "2.tar"):
        pack_to(disk / "source", disk / name)
    assert (disk / "1.tar").read_bytes() == (disk / "2.tar").read_bytes()


def test_sockets_are_told(disk: Path) -> None:
    (disk / "source").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(disk / "source" / "listener"))
        assert pack_to(disk / "source", disk / "volume.tar") == ["listener"]


def test_what_cannot_be_brought_back_is_refused(disk: Path) -> None:
    (disk / "source").mkdir()
    (disk / "source" / "odd").touch()
    os.setxattr(disk / "source" / "odd", "trusted.odd", b"x")
    with pytest.raises(OSError, match="trusted.odd") as raised:
        pack_to(disk / "source", disk / "volume.tar")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOTSUP, "odd")


def test_a_mount_in_it_is_no_gap(disk: Path) -> None:
    (disk / "source" / "below").mkdir(parents=True)
    mount.mount("other", disk / "source" / "below", "tmpfs")
    with pytest.raises(OSError, match="mounted") as raised:
        pack_to(disk / "source", disk / "volume.tar")
    assert (raised.value.errno, raised.value.filename) == (errno.EXDEV, "below")


def test_a_file_mounted_in_it_is_no_gap(disk: Path) -> None:
    (disk / "source").mkdir()
    (disk / "source" / "secret").touch()
    mount.bind("/etc/hostname", disk / "source" / "secret")
    with pytest.raises(OSError, match="mounted"):
        pack_to(disk / "source", disk / "volume.tar")


def test_deep_trees(disk: Path) -> None:
    def dig(top: Path, depth: int) -> None:
        top.mkdir()
        at = os.open(top, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)

    before = len(os.listdir("/proc/self/fd"))
    dig(disk / "deep", DEPTH)
    pack_to(disk / "deep", disk / "volume.tar")
    dig(disk / "deeper", DEPTH + 1)
    with pytest.raises(OSError, match="deeper than"):
        pack_to(disk / "deeper", disk / "volume.tar")
    assert len(os.listdir("/proc/self/fd")) <= before, "garbage of others may be collected meanwhile"
    for name in ("deep", "deeper"):
        files.remove_tree(disk / name)


# Writable layers: an overlay is changed as a container changes it, packed, unpacked over the same layers, compared.


class Layers:
    """Two lower layers and a writable one on top, mounted as a container has them."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.lowers = [disk / "low2", disk / "low1"]
        for lower in self.lowers:
            lower.mkdir()
        low1 = disk / "low1"
        (low1 / "etc" / "conf.d").mkdir(parents=True)
        (low1 / "etc" / "conf.d" / "one").write_text("1")
        (low1 / "etc" / "conf.d" / "two").write_text("2")
        (low1 / "etc" / "passwd").write_text("root")
        (low1 / "usr" / "share" / "doc").mkdir(parents=True)
        (low1 / "usr" / "share" / "doc" / "readme").write_text("read me")
        (low1 / "kind").mkdir()
        (low1 / "kind" / "below").touch()
        (disk / "low2" / "etc").mkdir()
        (disk / "low2" / "etc" / "hosts").write_text("localhost")

    def mounted(self, name: str) -> Path:
        """Mount the layers with a writable one of that name on top."""
        for part in ("fs", "work"):
            (self.disk / name / part).mkdir(parents=True, exist_ok=True)
        return self.mount(name)

    def mount(self, name: str) -> Path:
        place = self.disk / name
        root = self.disk / f"{name}-root"
        root.mkdir(exist_ok=True)
        lowers = ":".join(map(str, self.lowers))
        options = (f"lowerdir={lowers}", f"upperdir={place / 'fs'}", f"workdir={place / 'work'}")
        mount.mount_one(Mount("overlay", "overlay", options=options), root)
        return root

    def pack(self, name: str) -> list[str]:
        """Into layer.tar and deleted.files; what was deleted."""
        lower = mount.open_detached(view_of(self.lowers))
        try:
            with directory(self.disk / name / "fs") as upper, (self.disk / "layer.tar").open("wb") as out:
                deleted, _ = pack_layer(upper, lower, out)
        finally:
            os.close(lower)
        (self.disk / "deleted.files").write_bytes(layout.deleted_files(deleted))
        return deleted


@pytest.fixture
def layers(disk: Path) -> Layers:
    return Layers(disk)


def _recreate(root: Path) -> None:
    """A directory is deleted and made again: it hides all that was in it."""
    files.remove_tree(root / "etc" / "conf.d")
    (root / "etc" / "conf.d").mkdir()
    (root / "etc" / "conf.d" / "two").write_text("another")
    (root / "etc" / "conf.d" / "three").write_text("3")


def _recreate_deep(root: Path) -> None:
    files.remove_tree(root / "usr")
    (root / "usr" / "share" / "doc").mkdir(parents=True)
    (root / "usr" / "share" / "new").write_text("new")


def _exchange_kinds(root: Path) -> None:
    files.remove_tree(root / "kind")
    (root / "kind").write_text("a file now")
    (root / "etc" / "passwd").unlink()
    (root / "etc" / "passwd").mkdir()


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda root: None, []),
    "everything": (lambda root: fill(root, marks=False), []),
    "deleted": (lambda root: (root / "etc" / "passwd").unlink(), ["etc/passwd"]),
    "directory deleted": (lambda root: files.remove_tree(root / "usr" / "share"), ["usr/share"]),
    "made again": (_recreate, ["etc/conf.d/one"]),
    "made again, deep": (_recreate_deep, ["usr/share/doc/readme"]),
    "kinds exchanged": (_exchange_kinds, []),
    "changed": (lambda root: (root / "etc" / "hosts").write_text("changed"), []),
    "mode": (lambda root: os.chmod(root / "etc", 0o711), []),
    "linked": (lambda root: os.link(root / "etc" / "hosts", root / "etc" / "hosts.again"), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_writable_layer_comes_back_as_it_was(layers: Layers, what: str) -> None:
    change, expected = CHANGES[what]
    root = layers.mounted("top")
    change(root)
    seen = look(root)
    assert layers.pack("top") == expected
    place = layers.disk / "again"
    assert "error" not in unpack(layers.disk / "layer.tar", place, layers.lowers, layers.disk / "deleted.files")
    assert look(layers.mount("again")) == seen


def test_the_deletions_can_come_last_as_well(layers: Layers) -> None:
    """podman unpacks first and deletes then."""
    root = layers.mounted("top")
    _recreate(root)
    _exchange_kinds(root)
    seen = look(root)
    deleted = layers.pack("top")
    (layers.disk / "none").write_bytes(b"[]")
    unpack(layers.disk / "layer.tar", layers.disk / "again", layers.lowers, layers.disk / "none")
    again = layers.mount("again")
    for path in deleted:
        files.remove_tree(again / path)
    assert {name: one[-1] for name, one in look(again).items()} == {name: one[-1] for name, one in seen.items()}


def test_a_container_without_layers_below(disk: Path) -> None:
    (disk / "fs").mkdir()
    (disk / "fs" / "file").write_text("x")
    with directory(disk / "fs") as upper, (disk / "layer.tar").open("wb") as out:
        assert pack_layer(upper, None, out) == ([], [])


def test_content_that_is_elsewhere_is_refused(disk: Path) -> None:
    (disk / "fs" / "moved").mkdir(parents=True)
    os.setxattr(disk / "fs" / "moved", "trusted.overlay.redirect", b"/old")
    with directory(disk / "fs") as upper, pytest.raises(OSError, match="in another layer"):
        pack_layer(upper, None, io.BytesIO())


@pytest.mark.parametrize("data", [b'["../../escaped"]', b'["/"]', b"{}", b"not JSON", b'["a/../../x"]'])
def test_a_list_of_deletions_that_is_hostile(layers: Layers, data: bytes) -> None:
    layers.mounted("top")
    layers.pack("top")
    (layers.disk / "hostile").write_bytes(data)
    message = unpack(layers.disk / "layer.tar", layers.disk / "again", layers.lowers, layers.disk / "hostile")
    assert message["error"] == "invalid"


def test_deletions_stay_inside(layers: Layers) -> None:
    """A link in the layer that leads to the host's files leads to the container's own there."""
    (layers.disk / "outside").mkdir()
    (layers.disk / "outside" / "file").touch()
    (layers.disk / "low1" / "out").symlink_to(layers.disk / "outside")
    layers.mounted("top")
    layers.pack("top")
    (layers.disk / "hostile").write_bytes(layout.deleted_files(["out/file"]))
    unpack(layers.disk / "layer.tar", layers.disk / "again", layers.lowers, layers.disk / "hostile")
    assert (layers.disk / "outside" / "file").exists()


def test_a_volume_of_strangers_reaches_nothing_outside(disk: Path) -> None:
    (disk / "outside").mkdir()
    (disk / "target").mkdir()
    with tarfile.open(disk / "volume.tar", "w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(disk / "outside")
        archive.addfile(link)
        file = tarfile.TarInfo("out/file")
        archive.addfile(file)
    message = unpack_volume(disk / "volume.tar", disk / "target")
    assert os.listdir(disk / "outside") == []
    assert message.get("error") in ("invalid", None)
    with tarfile.open(disk / "volume.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"))
    assert unpack_volume(disk / "volume.tar", disk / "target")["error"] == "invalid"
    assert not (disk / "escaped").exists()
