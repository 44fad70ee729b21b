"""Images of this node: pull, import, list, remove. An image is visible when all of it is verified and unpacked.

Order: blobs into the content store; each layer unpacked by a locked worker, synced, and committed as a snapshot under
its chain id; last, in one transaction, the image with its names. Whatever a crash leaves before that is swept or used
by the next attempt.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.images import archive, reference, registry
from holdfast.images.content import Content
from holdfast.images.manifest import Manifest
from holdfast.model.errors import InvalidArgument, NotFound
from holdfast.model.image import CONFIG_LIMIT, Image, UnpackResult, parse_config
from holdfast.snapshots.overlay import Snapshots
from holdfast.store import images as rows
from holdfast.store.db import Store
from holdfast.store.images import ImageRow

log = logging.getLogger(__name__)

Progress = Callable[[str, str, int, int], None]
Unpack = Callable[[Path, Path, list[Path]], Awaitable[UnpackResult]]


@dataclass(frozen=True, slots=True)
class Usage:
    """What images take on disk."""

    mountpoint: str
    bytes: int
    inodes: int


def _silent(item: str, phase: str, done: int, total: int) -> None:
    return None


class Images:
    """All images, by id and by name."""

    def __init__(
        self, store: Store, content: Content, snapshots: Snapshots, unpack: Unpack, root: Path, insecure: frozenset[str]
    ) -> None:
        self._store = store
        self._content = content
        self._snapshots = snapshots
        self._unpack = unpack
        self._root = root
        self._insecure = insecure
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._pulls: dict[str, asyncio.Task[Image]] = {}
        self._changing = asyncio.Lock()  # one unpack or removal at a time: they share layers

    async def load(self) -> None:
        """Read the rows, and sweep blobs that no image refers to."""
        self._content.prepare()
        found, blobs = await self._store.read(lambda tx: (rows.load_images(tx), rows.load_blobs(tx)))
        for row in found:
            self._remember(row)
        for digest in self._content.digests():
            if digest not in blobs:
                self._content.remove(digest)

    def all(self) -> list[Image]:
        return sorted(self._images.values(), key=lambda image: image.tags or (image.id,))

    def find(self, wanted: str) -> Image:
        """By reference, by id, or by the unique beginning of an id. Raises NotFound."""
        found = self._images.get(wanted) or self._images.get(f"sha256:{wanted}")
        if found is None:
            found = self._by_name(wanted) or self._by_prefix(wanted)
        if found is None:
            raise NotFound(f"cannot find image {wanted!r}: it is not on this node")
        return found

    async def pull(self, wanted: str, auth: registry.Credentials | None = None, progress: Progress = _silent) -> Image:
        """Bring an image here. The same pull asked for twice at once is done once. Raises NotFound, Unavailable."""
        ref = reference.parse(wanted)
        running = self._pulls.get(str(ref))
        if running is None:
            running = asyncio.get_running_loop().create_task(self._pull(ref, auth, progress), name=f"pull {ref}")
            self._pulls[str(ref)] = running
            running.add_done_callback(lambda _: self._pulls.pop(str(ref), None))
        return await asyncio.shield(running)

    async def import_archive(self, path: Path, progress: Progress = _silent) -> list[Image]:
        """Take in every image of an archive file. Raises InvalidArgument for one that is none."""
        async with self._changing:
            found = await archive.load(path, self._content, progress)
            images = []
            for one in found:
                refs = [reference.parse(name) for name in one.names]
                names = [f"{ref.name}:{ref.tag}" for ref in refs if ref.tag]
                names += [f"{ref.name}@{one.digest}" for ref in refs if one.digest]
                images.append(await self._install(one.document, one.blobs, names, progress))
            return images

    async def remove(self, wanted: str) -> None:
        """Remove an image with all its names, then the layers and blobs that nobody else uses. Raises NotFound."""
        async with self._changing:
            image = self.find(wanted)
            unused = await self._store.write(lambda tx: rows.delete_image(tx, image.id))
            del self._images[image.id]
            self._names = {name: owner for name, owner in self._names.items() if owner != image.id}
            for digest in unused:
                self._content.remove(digest)
        await self.collect()

    async def collect(self) -> list[str]:
        """Remove layers that no image has and nothing stands on; left for later while an image is coming in."""
        if self._changing.locked():
            return []
        async with self._changing:
            removed: list[str] = []
            used = {chain for image in self._images.values() for chain in chain_ids(image.diff_ids)}
            while loose := [key for key in self._snapshots.loose() if key not in used]:
                for key in loose:
                    await self._snapshots.remove(key)
                removed += loose
            return removed

    async def usage(self) -> Usage:
        """Compressed blobs and unpacked layers together."""
        blobs = await self._store.read(rows.load_blobs)
        layer_bytes, layer_inodes = self._snapshots.usage()
        return Usage(str(self._root), sum(blobs.values()) + layer_bytes, len(blobs) + layer_inodes)

    def snapshot_name(self, image: Image) -> str | None:
        """The topmost committed snapshot of an image; None for one without layers."""
        return chain_ids(image.diff_ids)[-1] if image.diff_ids else None

    async def _pull(self, ref: reference.Reference, auth: registry.Credentials | None, progress: Progress) -> Image:
        document, digest, blobs = await registry.fetch(ref, self._content, self._insecure, auth, progress)
        names = [f"{ref.name}@{digest}"] + ([f"{ref.name}:{ref.tag}"] if ref.tag else [])
        async with self._changing:
            return await self._install(document, blobs, names, progress)

    async def _install(self, document: Manifest, blobs: dict[str, int], names: list[str], progress: Progress) -> Image:
        """Unpack what is not unpacked yet, then make the image visible."""
        config = self._content.read(document.config.digest, CONFIG_LIMIT)
        size = sum(blobs.values())
        image = parse_config(document.config.digest, config, size, (), ())
        if len(image.diff_ids) != len(document.layers):
            raise InvalidArgument(
                f"cannot use image {image.id}: {len(document.layers)} layers, {len(image.diff_ids)} diff ids"
            )
        await self._unpack_layers(image, document, progress)
        row = ImageRow(image.id, config, size, tuple(names))
        await self._store.write(lambda tx: rows.put_image(tx, row, blobs))
        return self._remember(row)

    async def _unpack_layers(self, image: Image, document: Manifest, progress: Progress) -> None:
        parent: str | None = None
        for layer, diff_id, chain_id in zip(document.layers, image.diff_ids, chain_ids(image.diff_ids), strict=True):
            progress(layer.digest, "unpack", 0, layer.size)
            if not self._snapshots.exists(chain_id):
                await self._unpack_layer(layer.digest, diff_id, chain_id, parent)
            progress(layer.digest, "unpack", layer.size, layer.size)
            parent = chain_id

    async def _unpack_layer(self, digest: str, diff_id: str, chain_id: str, parent: str | None) -> None:
        key = f"unpack {chain_id}"
        await self._snapshots.remove(key)  # of an attempt that was cut off
        await self._snapshots.prepare(key, parent)
        try:
            place = self._snapshots.place(key).parent
            result = await self._unpack(self._content.path(digest), place, self._snapshots.layers(parent))
            if result.diff_id != diff_id:
                raise InvalidArgument(f"cannot unpack layer {digest}: its diff id is {result.diff_id}, not {diff_id}")
            await self._snapshots.commit(chain_id, key, result.bytes, result.inodes)
        except BaseException:
            await self._snapshots.remove(key)
            raise

    def _remember(self, row: ImageRow) -> Image:
        for name in row.names:
            old = self._names.get(name)
            self._names[name] = row.id
            if old is not None and old != row.id:
                self._refresh(old)
        image = parse_config(row.id, row.config, row.size, (), ())
        self._images[row.id] = image
        return self._refresh(row.id)

    def _refresh(self, image_id: str) -> Image:
        """Bring an image's names up to date."""
        names = sorted(name for name, owner in self._names.items() if owner == image_id)
        image = replace(
            self._images[image_id],
            tags=tuple(name for name in names if "@" not in name),
            digests=tuple(name for name in names if "@" in name),
        )
        self._images[image_id] = image
        return image

    def _by_name(self, wanted: str) -> Image | None:
        try:
            ref = reference.parse(wanted)
        except InvalidArgument:
            return None
        name = f"{ref.name}@{ref.digest}" if ref.digest else f"{ref.name}:{ref.tag}"
        return self._images.get(self._names.get(name, ""))

    def _by_prefix(self, wanted: str) -> Image | None:
        prefix = wanted if wanted.startswith("sha256:") else f"sha256:{wanted}"
        if len(prefix) < len("sha256:") + 3:
            return None
        matches = [image for image_id, image in self._images.items() if image_id.startswith(prefix)]
        return matches[0] if len(matches) == 1 else None


def chain_ids(diff_ids: tuple[str, ...]) -> list[str]:
    """The names of a stack's layers (OCI image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        both = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if chain else diff_id)
    return chain
