"""The content store: whole and verified, or not there."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kit.images import digest_of

from holdfast.images.content import Content
from holdfast.model.errors import InvalidArgument, Unavailable

DATA = b"content" * 100_000
DIGEST = digest_of(DATA)


@pytest.fixture
def content(tmp_path: Path) -> Content:
    content = Content(tmp_path)
    content.prepare()
    return content


async def chunks(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def test_put(content: Content) -> None:
    seen: list[int] = []
    await content.put(DIGEST, len(DATA), chunks(DATA), seen.append)
    assert content.has(DIGEST)
    assert content.has(DIGEST, len(DATA))
    assert not content.has(DIGEST, 1)
    assert content.read(DIGEST, len(DATA)) == DATA
    assert content.digests() == [DIGEST]
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)
    assert stat.S_IMODE(content.path(DIGEST).stat().st_mode) == 0o600
    assert await content.verify(DIGEST)
    content.path(DIGEST).write_bytes(b"x" * len(DATA))
    assert not await content.verify(DIGEST)


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b"x" * len(DATA), b""])
async def test_what_is_not_it_is_refused(content: Content, data: bytes) -> None:
    with pytest.raises(Unavailable, match=f"cannot take in blob {DIGEST}"):
        await content.put(DIGEST, len(DATA), chunks(data))
    assert not content.has(DIGEST)
    assert list(content.ingest.iterdir()) == []


async def test_cancelled(content: Content) -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        started.set()
        await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(content.put(DIGEST, len(DATA), endless()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(content.ingest.iterdir()) == []


async def test_two_at_once_end_well(content: Content) -> None:
    await asyncio.gather(*(content.put(DIGEST, len(DATA), chunks(DATA)) for _ in range(5)))
    assert content.read(DIGEST, len(DATA)) == DATA
    assert list(content.ingest.iterdir()) == []


def test_prepare_deletes_what_was_left_half_way(content: Content, tmp_path: Path) -> None:
    (tmp_path / "ingest" / "0123").write_bytes(b"half")
    (tmp_path / "ingest" / "upload-1").write_bytes(b"half")
    content.prepare()
    assert list(content.ingest.iterdir()) == []
    for directory in ("content", "content/sha256", "ingest"):
        assert stat.S_IMODE((tmp_path / directory).stat().st_mode) == 0o700


def test_what_is_not_ours_is_ignored(content: Content, tmp_path: Path) -> None:
    (tmp_path / "content/sha256/lost+found").mkdir()
    (tmp_path / "content/sha256/x").touch()
    assert content.digests() == []


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../../etc/passwd", "sha512:" + "0" * 128, DIGEST + "\n"])
def test_only_digests_become_paths(content: Content, digest: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a sha256 digest"):
        content.path(digest)


async def test_usage(content: Content) -> None:
    assert content.usage() == (0, 0)
    await content.put(DIGEST, len(DATA), chunks(DATA))
    size, inodes = content.usage()
    assert size >= len(DATA)
    assert inodes == 1
    assert content.older_than(-1) == {DIGEST}
    assert content.older_than(3600) == frozenset()
    content.remove(DIGEST)
    content.remove(DIGEST)
    assert content.older_than(-1) == frozenset()
    assert content.usage() == (0, 0)


async def test_a_damaged_document_is_set_aside_and_comes_in_again(content: Content, tmp_path: Path) -> None:
    data = b"{}"
    digest = digest_of(data)
    await content.put(digest, len(data), chunks(data))
    content.path(digest).write_bytes(b"x" * len(data))
    assert not content.has(digest, len(data))
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert aside.read_bytes() == b"x" * len(data)
    await content.put(digest, len(data), chunks(data))
    assert content.has(digest, len(data))
