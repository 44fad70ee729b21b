"""Content by digest: a blob is there whole and verified, or it is not there."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Final

from holdfast.images.reference import is_digest
from holdfast.linux import files
from holdfast.model.errors import InvalidArgument, Unavailable

CHUNK: Final = 1024 * 1024


class Content:
    """Blobs below `<root>/content/sha256`, arriving through `<root>/ingest`."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "content" / "sha256"
        self.ingest = root / "ingest"

    def prepare(self) -> None:
        """Make the directories; delete what was left half-way."""
        for directory in (self._blobs.parent, self._blobs, self.ingest):
            files.make_private(directory)
        for name in os.listdir(self.ingest):
            files.remove_tree(self.ingest / name)

    def path(self, digest: str) -> Path:
        """Raises InvalidArgument for anything but a sha256 digest."""
        if not is_digest(digest):
            raise InvalidArgument(f"digest: {digest!r} is not a sha256 digest")
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob. Raises OSError EFBIG for one over `limit`."""
        return files.read_bounded(self.path(digest), limit)

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> list[str]:
        return [f"sha256:{name}" for name in os.listdir(self._blobs)]

    async def put(
        self, digest: str, size: int, chunks: AsyncIterator[bytes], progress: Callable[[int], None] | None = None
    ) -> None:
        """Take a blob in; on return it is whole, verified and on disk. `size` < 0 is not known beforehand.

        Raises Unavailable when what comes is something else or too short.
        """
        target, part = self.path(digest), self.ingest / secrets.token_hex(8)
        found, done = hashlib.sha256(), 0
        try:
            with open(part, "xb") as file:  # noqa: ASYNC230  (buffered writes; the slow part is synced in a thread)
                async for chunk in chunks:
                    done += len(chunk)
                    if 0 <= size < done:
                        raise Unavailable(f"cannot take in blob {digest}: more than the {size} bytes announced")
                    found.update(chunk)
                    file.write(chunk)
                    if progress is not None:
                        progress(done)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            if size >= 0 and done != size:
                raise Unavailable(f"cannot take in blob {digest}: {done} of {size} bytes came")
            if f"sha256:{found.hexdigest()}" != digest:
                raise Unavailable(f"cannot take in blob {digest}: what came is sha256:{found.hexdigest()}")
            part.rename(target)
            await asyncio.to_thread(files.sync_directory, self._blobs)
        finally:
            part.unlink(missing_ok=True)


async def read_chunks(file: IO[bytes], size: int = -1) -> AsyncIterator[bytes]:
    """A file's content as chunks, `size` bytes of it at most."""
    left = size
    while left != 0:
        data = await asyncio.to_thread(file.read, CHUNK if left < 0 else min(CHUNK, left))
        if not data:
            return
        left -= len(data) if left > 0 else 0
        yield data
