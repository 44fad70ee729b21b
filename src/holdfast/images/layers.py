"""Layers of images: each is unpacked by a locked worker, and committed as a snapshot under its chain id."""

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from holdfast.images.content import Content
from holdfast.images.manifest import Manifest
from holdfast.images.pulls import Progress
from holdfast.linux.inject import crashpoint
from holdfast.model import trace
from holdfast.model.errors import Damaged, InvalidArgument
from holdfast.model.image import Image, UnpackResult
from holdfast.model.tally import Measure, Timed
from holdfast.snapshots.overlay import Snapshots

UNPACKING: Final = "unpack "  # begins the key of a layer that is being unpacked
UNPACKS: Final = 4  # at once

Unpack = Callable[[Path, Path, list[Path]], Awaitable[UnpackResult]]


class Layers:
    """Turns blobs into snapshots."""

    def __init__(self, content: Content, snapshots: Snapshots, unpack: Unpack) -> None:
        self._content = content
        self._snapshots = snapshots
        self._unpack = unpack
        self._slots = asyncio.Semaphore(UNPACKS)
        self._timed = Timed("holdfast_layer_unpack", "unpackings of layers")

    @property
    def measures(self) -> tuple[Measure, ...]:
        return self._timed.measures

    async def unpack(self, image: Image, document: Manifest, progress: Progress) -> None:
        """Unpack what is not here as it was unpacked. Raises OSError without a blob, InvalidArgument, Damaged."""
        parent: str | None = None
        for layer, diff_id, chain_id in zip(document.layers, image.diff_ids, chain_ids(image.diff_ids), strict=True):
            progress(layer.digest, "unpack", 0, layer.size)
            async with self._content.turn(f"unpack {chain_id}"):
                if not await self._is_whole(chain_id):
                    async with self._slots:
                        await self._unpack_one(layer.digest, diff_id, chain_id, parent)
            progress(layer.digest, "unpack", layer.size, layer.size)
            parent = chain_id

    async def _is_whole(self, chain_id: str) -> bool:
        """Whether this layer is here as it was unpacked; those below it were asked for before."""
        return self._snapshots.is_committed(chain_id) and await self._snapshots.lost_below(chain_id) != chain_id

    async def _unpack_one(self, digest: str, diff_id: str, chain_id: str, parent: str | None) -> None:
        key = f"{UNPACKING}{chain_id}"
        await self._snapshots.remove(key)  # of an attempt that was cut off
        await self._snapshots.prepare(key, parent)
        crashpoint("layer.prepared")
        try:
            place = self._snapshots.place(key).parent
            with trace.span("unpack layer", digest=digest), self._timed.one():
                result = await self._unpack(self._content.path(digest), place, self._snapshots.layers(parent))
            if result.diff_id != diff_id:
                raise InvalidArgument(f"cannot unpack layer {digest}: its diff id is {result.diff_id}, not {diff_id}")
            crashpoint("layer.unpacked")
            await self._snapshots.commit(chain_id, key, result.bytes, result.inodes, result.shape)
            crashpoint("layer.committed")
        except BaseException as exc:
            await self._snapshots.remove(key)
            if isinstance(exc, InvalidArgument) and not await self._content.verify(digest):
                self._content.set_aside(digest, "its digest is wrong")
                raise Damaged(f"cannot unpack layer {digest}: it was damaged on disk; pull the image again") from exc
            raise


@functools.lru_cache(1024)
def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a stack's layers (OCI image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        both = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if chain else diff_id)
    return tuple(chain)
