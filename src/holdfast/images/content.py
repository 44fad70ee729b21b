"""Content by digest: a blob is there whole and verified, or it is not there."""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Final

from holdfast.images.reference import is_digest
from holdfast.linux import files
from holdfast.linux.inject import crashpoint, fault
from holdfast.linux.threads import in_thread
from holdfast.model.errors import InvalidArgument, Unavailable
from holdfast.store.quarantine import set_aside

log = logging.getLogger(__name__)

CHUNK: Final = 1024 * 1024
DOCUMENT: Final = 256 * 1024  # up to which a blob is taken for a manifest or a config, and read when it is asked for


class Content:
    """Blobs below `<root>/content/sha256`, arriving through `<root>/ingest`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "content" / "sha256"
        self.ingest = root / "ingest"
        self.transfers: set[str] = set()  # names in ingest that somebody is writing to
        self._undeleted: set[Path] = set()
        self._since: dict[str, float] = {}  # when each blob came in or was found, on the boot-time clock
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def prepare(self) -> None:
        """Make the directories; delete what was left half-way."""
        for directory in (self._blobs.parent, self._blobs, self.ingest):
            files.make_private(directory)
        for name in os.listdir(self.ingest):
            try:
                files.remove_tree(self.ingest / name)
            except OSError as exc:  # of a filesystem that is read-only, say; it takes room and does no other harm
                log.warning("what was left half-way at %s stays: %s", self.ingest / name, exc)
        self._since = dict.fromkeys(self.digests(), _now())

    def path(self, digest: str) -> Path:
        """Raises InvalidArgument for anything but a sha256 digest."""
        if not is_digest(digest):
            raise InvalidArgument(f"digest: {digest!r} is not a sha256 digest")
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str, size: int = -1) -> bool:
        """Whether the blob is here, with `size` bytes if that is known. A document is looked into: one that is damaged
        is set aside. A layer is not, which takes long; it is found out when it is unpacked.
        """
        path = self.path(digest)
        try:
            found = path.stat().st_size
            if found <= DOCUMENT and _digest_of(path) != digest:
                self.set_aside(digest, "its digest is wrong")
                return False
        except FileNotFoundError:
            return False
        return size in (-1, found)

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob. Raises OSError EFBIG for one over `limit`."""
        return files.read_bounded(self.path(digest), limit)

    async def verify(self, digest: str) -> bool:
        """Whether what is on disk still is what it was taken in as; reads all of it."""
        return await in_thread(_digest_of, self.path(digest)) == digest

    def remove(self, digest: str) -> None:
        files.unlink(self.path(digest))
        self._since.pop(digest, None)

    def set_aside(self, digest: str, why: str) -> None:
        """Rename what cannot be used, so that it can come in again. Raises OSError."""
        set_aside(self._root, self.path(digest), why)
        self._since.pop(digest, None)

    def digests(self) -> list[str]:
        return [digest for name in os.listdir(self._blobs) if is_digest(digest := f"sha256:{name}")]

    def older_than(self, seconds: float) -> frozenset[str]:
        """Blobs that have been here for longer: since they came in, or were found here at the start."""
        return frozenset(digest for digest, since in self._since.items() if _now() - since > seconds)

    def usage(self) -> tuple[int, int]:
        """(bytes, inodes) of all blobs, of what is coming in too."""
        sizes = [
            entry.stat(follow_symlinks=False).st_blocks * 512
            for directory in (self._blobs, self.ingest)
            for entry in os.scandir(directory)
        ]
        return sum(sizes), len(sizes)

    def turn(self, key: str) -> asyncio.Lock:
        """One at a time for each key: who comes second finds what the first has brought."""
        return self._turns.setdefault(key, asyncio.Lock())

    async def put(
        self, digest: str, size: int, chunks: AsyncIterator[bytes], progress: Callable[[int], None] | None = None
    ) -> None:
        """Take a blob of `size` bytes in; on return it is whole, verified and on disk.

        Raises Unavailable when what comes is something else, too short or too long.
        """
        target = self.path(digest)
        found, done = hashlib.sha256(), 0
        with self.transfer() as part:
            with open(part, "xb", buffering=0, opener=_private) as file:  # noqa: ASYNC230  (written in threads)

                def take(chunk: bytes) -> None:
                    found.update(chunk)
                    fault("write", part)
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[file.write(rest) :]

                async for chunk in chunks:
                    done += len(chunk)
                    if done > size:
                        raise Unavailable(f"cannot take in blob {digest}: more than the {size} bytes announced")
                    await in_thread(take, chunk)
                    if progress is not None:
                        progress(done)
                await in_thread(files.fsync, file.fileno(), part)
            if done != size:
                raise Unavailable(f"cannot take in blob {digest}: {done} of {size} bytes came")
            if f"sha256:{found.hexdigest()}" != digest:
                raise Unavailable(f"cannot take in blob {digest}: what came is sha256:{found.hexdigest()}")
            crashpoint("blob.synced")
            files.rename(part, target)
            self._since[digest] = _now()
            crashpoint("blob.renamed")
            await in_thread(files.sync_directory, self._blobs)

    @contextlib.contextmanager
    def transfer(self, prefix: str = "") -> Iterator[Path]:
        """A name below ingest for what comes in; what is there at the end is deleted, or as soon as it can be."""
        part = self.ingest / f"{prefix}{secrets.token_hex(8)}"
        self.transfers.add(part.name)
        try:
            yield part
        finally:
            self.transfers.discard(part.name)
            self._undeleted.add(part)
            self.finish_deletions()

    def finish_deletions(self) -> bool:
        """Delete what was left by transfers that are over. Returns whether nothing is left of it."""
        for part in list(self._undeleted):
            try:
                files.unlink(part)
                self._undeleted.discard(part)
            except OSError as exc:
                log.warning("transfer %s is left for later: %s", part, exc)
        return not self._undeleted


async def read_chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """A file's content as chunks."""
    while data := await in_thread(file.read, CHUNK):
        yield data


def _now() -> float:
    """Seconds on the clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
