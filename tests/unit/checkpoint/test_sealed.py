"""Archives: what was sealed comes back as it was, and of anything else nothing is used and nothing is left."""

import gzip
import os
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from kit.archives import Members, members, regular, resealed, rewrite, special

from holdfast.checkpoint import layout, sealed
from holdfast.linux import files
from holdfast.model.errors import FailedPrecondition, HoldfastError, InvalidArgument, ResourceExhausted

LIMIT = 64 * 1024 * 1024
ABOUT = {"name": "web", "since": 7}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The files of one container."""
    place = tmp_path / "source"
    (place / "checkpoint").mkdir(parents=True)
    (place / "config.dump").write_bytes(b'{"id": "x"}')
    (place / "spec.dump").write_bytes(b"{}")
    (place / "checkpoint" / "pages-1.img").write_bytes(os.urandom(3_000_000))
    (place / "checkpoint" / "inventory.img").write_bytes(b"")
    return place


def content(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("compress", ["", "zstd"])
def test_what_was_sealed_comes_back(source: Path, tmp_path: Path, compress: str) -> None:
    archive = tmp_path / "archive.tar"
    size = sealed.write(archive, source, "container", ABOUT, compress)
    assert size == archive.stat().st_size
    assert archive.stat().st_mode & 0o777 == 0o600
    assert sealed.read_head(archive).about == ABOUT
    head = sealed.unpack(archive, tmp_path / "into", "container", LIMIT)
    assert (head.kind, head.about, head.bytes) == ("container", ABOUT, 3_000_013)
    assert content(tmp_path / "into") == content(source)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "into").rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert (tmp_path / "into").stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(tmp_path)) == ["archive.tar", "into", "source"]


def test_checkpointctl_finds_what_it_looks_for(source: Path, tmp_path: Path) -> None:
    sealed.write(tmp_path / "archive.tar", source, "container", {})
    with tarfile.open(tmp_path / "archive.tar") as tar:
        found = {one.name: one for one in tar}
    assert found["checkpoint"].isdir()
    assert {"config.dump", "spec.dump", "checkpoint/pages-1.img"} <= found.keys()


def test_an_archive_replaces_the_older_one_as_a_whole(source: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(b"older")
    sealed.write(archive, source, "container", {})
    assert sealed.read_head(archive).kind == "container"


def test_a_write_that_fails_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out" / "archive.tar"
    target.parent.mkdir()
    target.write_bytes(b"older")

    def full(descriptor: int, path: object = None) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        sealed.write(target, source, "container", {})
    assert content(target.parent) == {"archive.tar": b"older"}


def test_a_disk_that_is_full_is_named(source: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            sealed.write(tmp_path / "archive.tar", source, "container", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path(raised.value.filename).parent == tmp_path
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(("limit", "value"), [("HEAD_LIMIT", 100), ("PARTS", 3)])
def test_what_no_reader_would_take_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(sealed, limit, value)
    with pytest.raises(FailedPrecondition, match=str(value)):
        sealed.write(tmp_path / "archive.tar", source, "container", {})
    assert os.listdir(tmp_path) == ["source"]


def test_what_does_not_belong_there_is_not_written(source: Path, tmp_path: Path) -> None:
    (source / "secret").write_bytes(b"x")
    with pytest.raises(ValueError, match="secret"):
        sealed.write(tmp_path / "archive.tar", source, "container", {})
    (source / "secret").unlink()
    (source / "checkpoint" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="link"):
        sealed.write(tmp_path / "archive.tar", source, "container", {})
    assert not (tmp_path / "archive.tar").exists()


def refused(
    archive: Path,
    why: str = "",
    kind: layout.Kind = "container",
    limit: int = LIMIT,
    error: type[HoldfastError] = InvalidArgument,
) -> None:
    """Nothing is left, nothing outside was touched, and the message has the reason."""
    place = archive.parent
    before = set(place.parent.rglob("*"))
    with pytest.raises(error, match=why or None) as raised:
        sealed.unpack(archive, place / "into", kind, limit)
    assert str(archive) in str(raised.value)
    assert set(place.parent.rglob("*")) == before


def _forged(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Members], Members]:
    def forge(found: Members) -> Members:
        return resealed(found, change)

    forge.__name__ = name
    return forge


def _altered(found: Members) -> Members:
    return [(one, bytes([data[0] ^ 1]) + data[1:] if one.name.endswith("pages-1.img") else data) for one, data in found]


def _renamed(found: Members) -> Members:
    for one, _ in found:
        if one.name.endswith("pages-1.img"):
            one.name = "../../escaped"
    return found


def _linked(found: Members) -> Members:
    """The part is a symlink where it should be a file, and the next one would be written through it."""
    return [special(one.name, tarfile.SYMTYPE, "/etc/passwd") if one.name == "config.dump" else (one, data)
            for one, data in found]  # fmt: skip


def _directory_is_a_link(found: Members) -> Members:
    return [special(one.name, tarfile.SYMTYPE, "/tmp") if one.isdir() else (one, data) for one, data in found]


HOSTILE: list[tuple[Callable[[Members], Members], str]] = [
    (_altered, "not as it was"),
    (_renamed, "where .* should be"),
    (_linked, "not a file"),
    (_directory_is_a_link, "not a file"),
    (lambda found: found[:-1], "no seal"),
    (lambda found: found[:-2], "nothing where|no seal|where .* should be"),
    (lambda found: [*found[:2], *found[3:]], "where .* should be"),
    (lambda found: [*found[:-1], regular("more"), found[-1]], "no seal|where .* should be"),
    (lambda found: [*found, regular("more")], "behind its seal"),
    (lambda found: [*found[:-1], regular(sealed.SEAL, b"0" * 64)], "not that of its head"),
    (lambda found: [found[0], special("config.dump", tarfile.CHRTYPE), *found[1:]], "not a file"),
    (lambda found: [found[0], special("config.dump", tarfile.FIFOTYPE), *found[1:]], "not a file"),
    (lambda found: [found[0], special("config.dump", tarfile.LNKTYPE, "/etc/passwd"), *found[1:]], "not a file"),
    (_forged("version", lambda head: head.update(version=2)), "version 2"),
    (_forged("format", lambda head: head.update(format="other")), "other"),
    (_forged("kind", lambda head: head.update(kind="node")), "kind 'node'"),
    (_forged("no parts", lambda head: head.pop("parts")), "malformed"),
    (_forged("about", lambda head: head.update(about=3)), "malformed"),
    (_forged("twice", lambda head: head["parts"].append(head["parts"][0])), "two parts"),
    (_forged("climbs", lambda head: head["parts"][0].update(name="../x")), "no container archive"),
    (_forged("absolute", lambda head: head["parts"][0].update(name="/etc/passwd")), "no container archive"),
    (_forged("negative", lambda head: head["parts"][0].update(bytes=-1)), "no part"),
    (_forged("text", lambda head: head["parts"][0].update(bytes="1")), "no part"),
    (_forged("unknown key", lambda head: head["parts"][0].update(mode="4755")), "malformed"),
]


@pytest.mark.parametrize(("how", "why"), HOSTILE)
@pytest.mark.parametrize("compress", ["", "zstd"])
def test_a_sealed_archive_that_was_tampered_with(
    source: Path, tmp_path: Path, how: Callable[[Members], Members], why: str, compress: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    archive = place / "archive.tar"
    sealed.write(archive, source, "container", ABOUT)
    rewrite(archive, how(members(archive)))
    if compress:
        archive.write_bytes(zstandard.compress(archive.read_bytes()))
    refused(archive, why)


@pytest.mark.parametrize("compress", ["", "zstd"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_is_cut_off(source: Path, tmp_path: Path, share: float, compress: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    archive = place / "archive.tar"
    size = sealed.write(archive, source, "container", ABOUT, compress)
    if not compress and share > 0.99:
        size -= tarfile.RECORDSIZE  # the last is padding
    os.truncate(archive, int(size * share))
    refused(archive)


def test_damage_in_any_place_is_noticed(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    archive = place / "archive.tar"
    size = sealed.write(archive, source, "container", ABOUT, "zstd")
    for offset in range(0, size, size // 20):
        data = bytearray(archive.read_bytes())
        data[offset] ^= 0x10
        archive.write_bytes(data)
        refused(archive)
        data[offset] ^= 0x10
        archive.write_bytes(data)
    sealed.unpack(archive, tmp_path / "into", "container", LIMIT)


def test_a_bomb_ends_at_the_limit(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    zeros = regular("checkpoint/pages-1.img", bytes(10_000_000))
    rewrite(place / "archive.tar", [regular("config.dump"), zeros, zeros])
    (place / "archive.tar").write_bytes(zstandard.compress((place / "archive.tar").read_bytes()))
    refused(place / "archive.tar", "more than the", limit=9_000_000, error=ResourceExhausted)
    huge = _forged("huge", lambda head: head["parts"][0].update(bytes=1 << 60))
    sealed.write(archive := place / "sealed.tar", source, "container", ABOUT)
    rewrite(archive, huge(members(archive)))
    refused(archive, "more than the", error=ResourceExhausted)
    rewrite(place / "archive.tar", [regular("config.dump"), regular("not/ours", bytes(10_000_000))])
    refused(place / "archive.tar", "more than the", limit=9_000_000, error=ResourceExhausted)


def test_members_without_end(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "PARTS", 20)
    place = tmp_path / "place"
    place.mkdir()
    sealed.write(place / "archive.tar", source, "container", {})
    head, *others = members(place / "archive.tar")
    rewrite(place / "archive.tar", [head, *[special("d", tarfile.DIRTYPE)] * 20, *others])
    refused(place / "archive.tar", "more than 20 members")
    rewrite(place / "archive.tar", [regular("config.dump"), *[regular(f"more-{number}") for number in range(20)]])
    refused(place / "archive.tar", "more than 20 members")


def test_maps_of_holes_without_end(tmp_path: Path) -> None:
    """tarfile reads the whole map of a sparse member before anybody is asked whether there may be one."""
    place = tmp_path / "place"
    place.mkdir()
    info, data = regular("checkpoint/pages-1.img", b"1000000000\n" + b"1\n" * 3_000_000)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    rewrite(place / "archive.tar", [regular("config.dump"), (info, data)])
    refused(place / "archive.tar", "is sparse")
    old = special("checkpoint/pages-1.img", tarfile.GNUTYPE_SPARSE)
    rewrite(place / "archive.tar", [regular("config.dump"), old])
    refused(place / "archive.tar", "is sparse")


def test_an_archive_of_another_kind(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    sealed.write(place / "archive.tar", source, "container", {})
    refused(place / "archive.tar", "not of a pod", kind="pod")
    rewrite(place / "archive.tar", [regular("config.dump")])
    refused(place / "archive.tar", "not sealed", kind="pod")


@pytest.mark.parametrize(
    "data", [b"", b"x" * 2000, bytes(20_000), b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"\x1f\x8b" + b"x" * 99]
)
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "archive.tar").write_bytes(data)
    refused(place / "archive.tar")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises((InvalidArgument, IsADirectoryError)):
            sealed.unpack(tmp_path / name, tmp_path / "into", "container", LIMIT)
    with pytest.raises(FileNotFoundError):
        sealed.unpack(tmp_path / "missing", tmp_path / "into", "container", LIMIT)
    assert not (tmp_path / "into").exists()


def test_into_a_directory_that_exists_nothing_is_unpacked(source: Path, tmp_path: Path) -> None:
    sealed.write(tmp_path / "archive.tar", source, "container", {})
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "mine").touch()
    with pytest.raises(FileExistsError):
        sealed.unpack(tmp_path / "archive.tar", tmp_path / "into", "container", LIMIT)
    assert os.listdir(tmp_path / "into") == ["mine"]


@pytest.mark.parametrize("how", [lambda data: data, gzip.compress, zstandard.compress])
def test_an_archive_that_others_have_written(tmp_path: Path, how: Callable[[bytes], bytes]) -> None:
    entries = [
        special("./", tarfile.DIRTYPE),
        regular("./config.dump", b"{}"),
        regular("spec.dump", b"{}"),
        special("checkpoint", tarfile.DIRTYPE),
        regular("checkpoint/pages-1.img", b"pages"),
        regular("bind.mounts", b"[]"),
        regular("rootfs-diff.tar", b"diff"),
    ]
    rewrite(tmp_path / "archive.tar", entries)
    (tmp_path / "archive.tar").write_bytes(how((tmp_path / "archive.tar").read_bytes()))
    head = sealed.unpack(tmp_path / "archive.tar", tmp_path / "into", "container", LIMIT)
    assert head.about == {}
    assert content(tmp_path / "into") == {
        "config.dump": b"{}",
        "spec.dump": b"{}",
        "checkpoint/pages-1.img": b"pages",
        "rootfs-diff.tar": b"diff",
    }


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([regular("../config.dump")], "leads out"),
        ([regular("/config.dump")], "leads out"),
        ([regular("checkpoint/../../x")], "leads out"),
        ([special("checkpoint", tarfile.SYMTYPE, "/tmp"), regular("checkpoint/x")], "neither a file nor"),
        ([special("container.log", tarfile.SYMTYPE, "/etc/shadow")], "neither a file nor"),
        ([special("config.dump", tarfile.LNKTYPE, "/etc/shadow")], "neither a file nor"),
        ([special("checkpoint/null", tarfile.CHRTYPE)], "neither a file nor"),
        ([special("checkpoint/pipe", tarfile.FIFOTYPE)], "neither a file nor"),
        ([regular("config.dump"), regular("config.dump")], "two members"),
        ([regular("config.dump"), regular("./config.dump")], "two members"),
        ([regular("spec.dump")], "no config.dump"),
        ([], "no config.dump"),
    ],
)
def test_an_archive_of_others_that_is_hostile(tmp_path: Path, entries: Members, why: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    rewrite(place / "archive.tar", entries)
    refused(place / "archive.tar", why)
