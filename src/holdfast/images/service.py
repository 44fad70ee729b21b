"""Images of this node: pull, import, list, remove. An image is visible when all of it is verified and unpacked.

Order: blobs into the content store; each layer unpacked by a locked worker, synced, and committed as a snapshot under
its chain id; last, in one transaction, the image with its names. Whatever a crash leaves before that is swept or used
by the next attempt.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from holdfast.images import archive, manifest, reference, registry
from holdfast.images.content import Content
from holdfast.images.known import Known
from holdfast.images.layers import UNPACKING, Layers, Unpack, chain_ids
from holdfast.images.manifest import Manifest
from holdfast.images.pulls import Progress, Pull, identity, silent
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model import trace
from holdfast.model.errors import Damaged, HoldfastError, InvalidArgument, NotFound
from holdfast.model.image import CONFIG_LIMIT, Image, parse_config
from holdfast.model.tally import Counter, Measure, Timed, gauge
from holdfast.snapshots.overlay import Snapshots
from holdfast.store import images as rows
from holdfast.store.copies import Copies, ImageCopy
from holdfast.store.db import Store
from holdfast.store.images import ImageRow
from holdfast.store.space import Minimum, named, require

# For which blobs of a pull that failed are kept for the next attempt, by this daemon.
LEFTOVER_SECONDS: Final = 3600.0

NO_MINIMUM: Final = Minimum()

log = logging.getLogger(__name__)

RETRY_FIRST: Final = 1.0
RETRY_LONGEST: Final = 300.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What images take on disk."""

    mountpoint: str
    bytes: int
    inodes: int


class Images:
    """All images, by id and by name."""

    def __init__(
        self,
        store: Store,
        copies: Copies,
        content: Content,
        snapshots: Snapshots,
        unpack: Unpack,
        root: Path,
        insecure: frozenset[str],
        minimum: Minimum = NO_MINIMUM,
    ) -> None:
        self._minimum = minimum
        self._store = store
        self._copies = copies
        self._content = content
        self._snapshots = snapshots
        self._layers = Layers(content, snapshots, unpack)
        self._root = root
        self._insecure = insecure
        self._known = Known()
        self._pulls: dict[tuple[str, ...], Pull] = {}
        # Garbage is what no image refers to, as long as none is on its way: it would refer to what it finds.
        self._arriving = 0
        self._arrivals = 0
        self._collection_put_off = False
        self.in_doubt: Callable[[], bool] = lambda: False  # rows may be lost, so what has none may be somebody's
        self._leftovers = True  # whether there may be blobs that no image refers to
        self._timed = Timed("holdfast_pull", "pulls of images")
        self._read = Counter("holdfast_pull_bytes_total", "Bytes of blobs that registries have sent.")
        self.measures: tuple[Measure, ...] = (
            *self._timed.measures,
            *self._layers.measures,
            self._read,
            gauge("holdfast_images", "Images that are whole.", lambda: len(self._known)),
            gauge("holdfast_image_bytes", "What the blobs of images take, each image by itself.", self._known.bytes),
            gauge("holdfast_layer_bytes", "What unpacked layers take.", lambda: self._snapshots.usage()[0]),
        )

    async def load(self) -> list[str]:
        """Read the rows. What no row refers to is left to `collect`. Returns what there is to say.

        An image that has lost something is not there, until `mend` or a pull brings it back; its layers are kept.
        """
        self._content.prepare()
        told = []
        for row in await self._store.read(rows.load_images):
            try:
                if f"sha256:{hashlib.sha256(row.config).hexdigest()}" != row.id:
                    raise InvalidArgument("the digest of its config is wrong")
                image = parse_config(row.id, row.config, row.size, (), ())
            except InvalidArgument as exc:
                told.append(f"image {row.id} cannot be read and has to be pulled again: {exc}")
                self._known.unreadable.add(row.id)
                continue
            if all(map(self._snapshots.is_committed, chain_ids(image.diff_ids))):
                self._known.remember(row)
            else:
                told.append(f"image {row.id} ({', '.join(row.names)}) has lost a layer")
                self._known.incomplete[row.id] = image
        return told

    @property
    def arriving(self) -> bool:
        """Whether an image is coming in: what no image refers to may be its."""
        return self._arriving > 0

    @property
    def transfers(self) -> frozenset[str]:
        return frozenset(self._content.transfers)

    def abandoned(self, known: frozenset[str]) -> frozenset[str]:
        """Blobs of pulls that failed and that nobody has tried again for long; `known` are those that have a row."""
        return self._content.older_than(LEFTOVER_SECONDS) - known

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[Path]:
        """A place for an archive that is coming in; gone at the end, whatever came of it. Raises ResourceExhausted."""
        await self._require("import an image")
        try:
            with named(self._root, "import an image"), self._content.transfer("upload-") as upload:
                yield upload
        finally:
            self._tidy()

    async def _require(self, what: str) -> None:
        """Raise ResourceExhausted when there is too little room. A disk that hangs holds up nobody else."""
        await in_thread(require, self._root, self._minimum, what)

    def all(self) -> list[Image]:
        return self._known.all()

    def find(self, wanted: str) -> Image:
        """By reference, by id, or by the unique beginning of an id. Raises NotFound."""
        return self._known.find(wanted)

    async def whole(self, wanted: str) -> Image:
        """As find, and its layers are as they were unpacked: a damaged one is unpacked again from its blob.

        Raises NotFound, Damaged when that cannot be done, so the image is not here until it is pulled again.
        """
        image = self.find(wanted)
        if await self._snapshots.lost_below(self.snapshot_name(image)) is not None:
            try:
                await self._mend(image)
            except (HoldfastError, OSError) as exc:
                self._known.forget(image)
                self._known.incomplete[image.id] = image
                raise Damaged(f"cannot use image {wanted!r}: it is damaged; pull it again: {exc}") from exc
        return image

    async def mend(self) -> None:
        """Bring back the images that have lost a layer and nothing else, each from its blobs."""
        for row in await self._store.read(rows.load_images):
            if (image := self._known.incomplete.get(row.id)) is None:
                continue
            try:
                await self._mend(image)
            except (HoldfastError, OSError) as exc:
                log.error("image %s has to be pulled again: %s", ", ".join(row.names) or row.id, exc)
                continue
            names = await self._store.read(lambda tx, id=row.id: rows.names_of(tx, id))  # type: ignore[misc]
            if row.id in self._known.incomplete:  # else it has come in meanwhile
                self._known.remember(replace(row, names=names))

    async def _mend(self, image: Image) -> None:
        """Unpack what is lost once more. Raises NotFound without a manifest, OSError without a blob, Damaged."""
        async with self._arrival():
            blobs = await self._store.read(lambda tx: rows.blobs_of(tx, image.id))
            await self._layers.unpack(image, self._manifest(image, blobs), silent)
        log.warning("damaged layers of image %s were unpacked again", image.id)

    async def only_layer(self, image: Image, marks: Iterable[str]) -> Path | None:
        """The blob of an image's one layer, if its manifest has one of these annotations; else None."""
        if len(image.diff_ids) != 1:
            return None
        blobs = await self._store.read(lambda tx: rows.blobs_of(tx, image.id))
        try:
            found = self._manifest(image, blobs)
        except NotFound:
            return None
        marked = not found.annotations.keys().isdisjoint(marks)
        return self._content.path(found.layers[0].digest) if marked and found.layers else None

    def _manifest(self, image: Image, blobs: dict[str, int]) -> Manifest:
        """The one among its blobs that is for this config. Archives of `docker save` have none."""
        for digest, size in blobs.items():
            if size > manifest.LIMIT or not self._content.has(digest, size):
                continue
            with contextlib.suppress(InvalidArgument):
                found = manifest.parse(self._content.read(digest, manifest.LIMIT))
                if isinstance(found, Manifest) and found.config.digest == image.id:
                    return found
        raise NotFound(f"cannot find a manifest of image {image.id} among its blobs")

    async def pull(self, wanted: str, auth: registry.Credentials | None = None, progress: Progress = silent) -> Image:
        """Bring an image here. The same pull asked for twice at once is done once, and ends when nobody waits for it.

        Raises InvalidArgument, NotFound, Unavailable, and ResourceExhausted when the disk has no room.
        """
        ref = reference.parse(wanted)
        await self._require(f"pull {ref}")
        key = (str(ref), *identity(auth))
        pull = self._pulls.get(key)
        if pull is None or not pull.wanted:
            pull = self._pulls[key] = Pull()
            pull.run(self._pull(ref, auth, pull.tell), f"pull {ref}")
        try:
            return await pull.wait(progress)
        finally:
            if not pull.wanted and self._pulls.get(key) is pull:
                del self._pulls[key]

    async def import_archive(self, path: Path, progress: Progress = silent) -> list[Image]:
        """Take in every image of an archive file. Raises InvalidArgument for one that is none."""
        await self._require("import an image")
        async with self._arrival():
            found = await archive.load(path, self._content, progress)
            references = [[reference.parse(name) for name in one.names] for one in found]
            images = []
            for one, refs in zip(found, references, strict=True):
                names = [f"{ref.name}:{ref.tag}" for ref in refs if ref.tag]
                names += [f"{ref.name}@{one.digest}" for ref in refs if one.digest]
                images.append(await self._install(one.document, one.blobs, names, progress))
            return images

    async def remove(self, wanted: str) -> None:
        """Remove an image with all its names, then the layers and blobs that nobody else uses. Raises NotFound."""
        image = self.find(wanted)
        copy = image.id.partition(":")[2]
        await self._store.write(lambda tx: rows.delete_image(tx, image.id), lambda *_: self._copies.drop(copy))
        crashpoint("rmi.row")
        self._known.forget(image)
        self._leftovers = True
        await self.collect()
        if self._copies.undropped:
            self._snapshots.unfinished.set()

    async def collect(self, *, asked: bool = False) -> list[str]:
        """Remove layers that no image has and nothing stands on, and blobs of pulls that failed long ago.

        Put off while an image is coming in; tried again later where it fails, so nobody who has done what he was to do
        is told of it. While rows may be lost, only when asked for. Returns what was removed.
        """
        if self.in_doubt() and not asked:
            return []
        self._collection_put_off = self._arriving > 0
        removed: list[str] = []
        try:
            while not self._arriving and (key := self._loose()) is not None:
                await self._snapshots.remove(key)
                removed.append(key)
            removed += await self._collect_blobs() if self._leftovers else []
        except (OSError, HoldfastError) as exc:
            log.warning("what no image needs any more is left for later: %s", exc)
            self._snapshots.unfinished.set()
        return removed

    async def finish_deletions(self) -> None:
        """Delete what could not be deleted: 1 s later, then ever more seldom; and what is abandoned. Never ends."""
        wait = RETRY_FIRST
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEFTOVER_SECONDS if self._leftovers else None):
                    await self._snapshots.unfinished.wait()
                await asyncio.sleep(wait)
            self._snapshots.unfinished.clear()
            await self.collect()
            self._tidy()
            if not await self._snapshots.finish_deletions():
                self._snapshots.unfinished.set()
            wait = min(wait * 2, RETRY_LONGEST) if self._snapshots.unfinished.is_set() else RETRY_FIRST

    def _tidy(self) -> None:
        try:
            self._copies.finish()
        except OSError as exc:
            log.warning("a copy is left for later: %s", exc)
        if not self._content.finish_deletions() or self._copies.undropped:
            self._snapshots.unfinished.set()

    async def _collect_blobs(self) -> list[str]:
        """Files first, then their rows, so that none is forgotten; what has no row is of a pull that failed."""
        arrivals = self._arrivals
        doomed, known = await self._store.read(lambda tx: (rows.unused_blobs(tx), rows.load_blobs(tx)))
        if self._arriving or self._arrivals != arrivals:
            return []
        loose = [digest for digest in self._content.digests() if digest not in known]
        old = self.abandoned(frozenset(known)).intersection(loose)
        for digest in (*doomed, *old):
            self._content.remove(digest)
            crashpoint("rmi.blob")
        self._leftovers = len(old) < len(loose)
        if doomed:
            await self._store.write(lambda tx: rows.forget_blobs(tx, doomed))
        return [*doomed, *old]

    async def usage(self) -> Usage:
        """Compressed blobs and unpacked layers together."""
        blob_bytes, blob_inodes = self._content.usage()
        layer_bytes, layer_inodes = self._snapshots.usage()
        return Usage(str(self._root), blob_bytes + layer_bytes, blob_inodes + layer_inodes)

    def shown_by(self, key: str, wanted: str) -> Image | None:
        """The image that a view shows, by its layers: `wanted` if that is still the same.

        None when it was removed, or the view was.
        """
        if not self._snapshots.has(key):
            return None
        top = self._snapshots.parent(key)
        with contextlib.suppress(NotFound):
            if self.snapshot_name(found := self.find(wanted)) == top:
                return found
        return next((image for image in self.all() if self.snapshot_name(image) == top), None)

    def snapshot_name(self, image: Image) -> str | None:
        """The topmost committed snapshot of an image; None for one without layers."""
        return chain_ids(image.diff_ids)[-1] if image.diff_ids else None

    @contextlib.asynccontextmanager
    async def _arrival(self) -> AsyncIterator[None]:
        self._arriving += 1
        self._arrivals += 1
        try:
            yield
        except BaseException:
            self._leftovers = True
            raise
        finally:
            self._arriving -= 1
            self._tidy()
            if self._collection_put_off:
                await self.collect()

    def _loose(self) -> str | None:
        """A snapshot of ours that can go."""
        images = [*self._known.all(), *self._known.incomplete.values()]
        used = {chain for image in images for chain in chain_ids(image.diff_ids)}
        # Any layer may be of an image that cannot be read.
        loose = [] if self._known.unreadable else [key for key in self._snapshots.loose() if key not in used]
        return next(iter([*self._snapshots.starting_with(UNPACKING), *loose]), None)

    async def _pull(self, ref: reference.Reference, auth: registry.Credentials | None, progress: Progress) -> Image:
        with trace.span("pull", image=str(ref)), self._timed.one(), named(self._root, f"pull {ref}"):
            return await self._bring(ref, auth, progress)

    async def _bring(self, ref: reference.Reference, auth: registry.Credentials | None, progress: Progress) -> Image:
        async with self._arrival():
            document, digest, blobs = await registry.fetch(
                ref, self._content, self._insecure, auth, progress, self._read
            )
            # With a digest nobody has asked the registry what it has under the tag.
            names = [f"{ref.name}@{digest}"] if ref.digest else [f"{ref.name}@{digest}", f"{ref.name}:{ref.tag}"]
            return await self._install(document, blobs, names, progress)

    async def _install(self, document: Manifest, blobs: dict[str, int], names: list[str], progress: Progress) -> Image:
        """Unpack what is not unpacked yet, then make the image visible."""
        image_id, size = document.config.digest, sum(blobs.values())
        if blobs[image_id] > CONFIG_LIMIT:
            raise InvalidArgument(f"cannot use image {image_id}: its config is larger than {CONFIG_LIMIT} bytes")
        config = self._content.read(image_id, CONFIG_LIMIT)
        image = parse_config(image_id, config, size, (), ())
        if len(image.diff_ids) != len(document.layers):
            raise InvalidArgument(
                f"cannot use image {image_id}: {len(document.layers)} layers, {len(image.diff_ids)} diff ids"
            )
        crashpoint("pull.fetched")
        await self._layers.unpack(image, document, progress)
        crashpoint("pull.unpacked")
        row = ImageRow(image_id, config, size, tuple(names))

        def put(tx: Any) -> tuple[str, ...]:
            rows.put_image(tx, row, blobs)
            return rows.names_of(tx, image_id)

        def keep(all_names: tuple[str, ...], generation: int) -> None:
            self._copies.keep(ImageCopy(generation, replace(row, names=all_names), blobs))

        all_names = await self._store.write(put, keep)
        crashpoint("pull.stored")
        return self._known.remember(replace(row, names=all_names))
