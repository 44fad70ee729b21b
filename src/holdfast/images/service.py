"""Images of this node: pull, import, list, remove. An image is visible when all of it is verified and unpacked.

Order: blobs into the content store; each layer unpacked by a locked worker, synced, and committed as a snapshot under
its chain id; last, in one transaction, the image with its names. Whatever a crash leaves before that is swept or used
by the next attempt.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from holdfast.images import archive, manifest, reference, registry
from holdfast.images.content import Content
from holdfast.images.manifest import Manifest
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model import trace
from holdfast.model.errors import Damaged, HoldfastError, InvalidArgument, NotFound
from holdfast.model.image import CONFIG_LIMIT, Image, UnpackResult, parse_config
from holdfast.model.tally import Counter, Measure, Timed, gauge
from holdfast.snapshots.overlay import Snapshots
from holdfast.store import images as rows
from holdfast.store.copies import Copies, ImageCopy
from holdfast.store.db import Store
from holdfast.store.images import ImageRow
from holdfast.store.space import Minimum, named, require

UNPACKING: Final = "unpack "  # begins the key of a layer that is being unpacked
UNPACKS: Final = 4  # at once
# For which blobs of a pull that failed are kept for the next attempt, by this daemon.
LEFTOVER_SECONDS: Final = 3600.0

NO_MINIMUM: Final = Minimum()

log = logging.getLogger(__name__)

RETRY_FIRST: Final = 1.0
RETRY_LONGEST: Final = 300.0

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


class _Pull:
    """A pull under way; it goes on as long as somebody waits for it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Image]
        self._listeners: list[Progress] = []

    def run(self, work: Coroutine[Any, Any, Image], name: str) -> None:
        self._task = asyncio.get_running_loop().create_task(work, name=name)
        # Whoever has left meanwhile does not hear of an error, and that is all right.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def tell(self, item: str, phase: str, done: int, total: int) -> None:
        for listener in self._listeners:
            listener(item, phase, done, total)

    async def wait(self, progress: Progress) -> Image:
        self._listeners.append(progress)
        try:
            return await asyncio.shield(self._task)
        finally:
            self._listeners.remove(progress)
            if not self._listeners and not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])

    @property
    def wanted(self) -> bool:
        return bool(self._listeners)


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
        self._unpack = unpack
        self._root = root
        self._insecure = insecure
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._incomplete: dict[str, Image] = {}
        self._unreadable: set[str] = set()
        self._pulls: dict[tuple[str, ...], _Pull] = {}
        self._slots = asyncio.Semaphore(UNPACKS)
        # Garbage is what no image refers to, as long as none is on its way: it would refer to what it finds.
        self._arriving = 0
        self._arrivals = 0
        self._collection_put_off = False
        self.in_doubt: Callable[[], bool] = lambda: False  # rows may be lost, so what has none may be somebody's
        self._leftovers = True  # whether there may be blobs that no image refers to
        self._timed = Timed("holdfast_pull", "pulls of images")
        self._layers = Timed("holdfast_layer_unpack", "unpackings of layers")
        self._read = Counter("holdfast_pull_bytes_total", "Bytes of blobs that registries have sent.")
        self.measures: tuple[Measure, ...] = (
            *self._timed.measures,
            *self._layers.measures,
            self._read,
            gauge("holdfast_images", "Images that are whole.", lambda: len(self._images)),
            gauge("holdfast_image_bytes", "What the blobs of images take, each image by itself.", self._bytes),
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
                self._unreadable.add(row.id)
                continue
            if all(map(self._snapshots.is_committed, chain_ids(image.diff_ids))):
                self._remember(row)
            else:
                told.append(f"image {row.id} ({', '.join(row.names)}) has lost a layer")
                self._incomplete[row.id] = image
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
        return sorted(self._images.values(), key=lambda image: image.tags or (image.id,))

    def find(self, wanted: str) -> Image:
        """By reference, by id, or by the unique beginning of an id. Raises NotFound."""
        found = self._images.get(wanted) or self._images.get(f"sha256:{wanted}")
        if found is None:
            found = self._by_name(wanted) or self._by_prefix(wanted)
        if found is None:
            raise NotFound(f"cannot find image {wanted!r}: it is not on this node")
        return found

    async def whole(self, wanted: str) -> Image:
        """As find, and its layers are as they were unpacked: a damaged one is unpacked again from its blob.

        Raises NotFound, Damaged when that cannot be done, so the image is not here until it is pulled again.
        """
        image = self.find(wanted)
        if await self._snapshots.lost_below(self.snapshot_name(image)) is not None:
            try:
                await self._mend(image)
            except (HoldfastError, OSError) as exc:
                self._forget(image)
                self._incomplete[image.id] = image
                raise Damaged(f"cannot use image {wanted!r}: it is damaged; pull it again: {exc}") from exc
        return image

    async def mend(self) -> None:
        """Bring back the images that have lost a layer and nothing else, each from its blobs."""
        for row in await self._store.read(rows.load_images):
            if (image := self._incomplete.get(row.id)) is None:
                continue
            try:
                await self._mend(image)
            except (HoldfastError, OSError) as exc:
                log.error("image %s has to be pulled again: %s", ", ".join(row.names) or row.id, exc)
                continue
            names = await self._store.read(lambda tx, id=row.id: rows.names_of(tx, id))  # type: ignore[misc]
            if row.id in self._incomplete:  # else it has come in meanwhile
                self._remember(replace(row, names=names))

    async def _mend(self, image: Image) -> None:
        """Unpack what is lost once more. Raises NotFound without a manifest, OSError without a blob, Damaged."""
        async with self._arrival():
            blobs = await self._store.read(lambda tx: rows.blobs_of(tx, image.id))
            await self._unpack_layers(image, self._manifest(image, blobs), _silent)
        log.warning("damaged layers of image %s were unpacked again", image.id)

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

    async def pull(self, wanted: str, auth: registry.Credentials | None = None, progress: Progress = _silent) -> Image:
        """Bring an image here. The same pull asked for twice at once is done once, and ends when nobody waits for it.

        Raises InvalidArgument, NotFound, Unavailable, and ResourceExhausted when the disk has no room.
        """
        ref = reference.parse(wanted)
        await self._require(f"pull {ref}")
        key = (str(ref), *_identity(auth))
        pull = self._pulls.get(key)
        if pull is None or not pull.wanted:
            pull = self._pulls[key] = _Pull()
            pull.run(self._pull(ref, auth, pull.tell), f"pull {ref}")
        try:
            return await pull.wait(progress)
        finally:
            if not pull.wanted and self._pulls.get(key) is pull:
                del self._pulls[key]

    async def import_archive(self, path: Path, progress: Progress = _silent) -> list[Image]:
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
        self._forget(image)
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

    def _bytes(self) -> int:
        return sum(image.size for image in self._images.copy().values())

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
        images = [*self._images.values(), *self._incomplete.values()]
        used = {chain for image in images for chain in chain_ids(image.diff_ids)}
        # Any layer may be of an image that cannot be read.
        loose = [] if self._unreadable else [key for key in self._snapshots.loose() if key not in used]
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
        await self._unpack_layers(image, document, progress)
        crashpoint("pull.unpacked")
        row = ImageRow(image_id, config, size, tuple(names))

        def put(tx: Any) -> tuple[str, ...]:
            rows.put_image(tx, row, blobs)
            return rows.names_of(tx, image_id)

        def keep(all_names: tuple[str, ...], generation: int) -> None:
            self._copies.keep(ImageCopy(generation, replace(row, names=all_names), blobs))

        all_names = await self._store.write(put, keep)
        crashpoint("pull.stored")
        return self._remember(replace(row, names=all_names))

    async def _unpack_layers(self, image: Image, document: Manifest, progress: Progress) -> None:
        parent: str | None = None
        for layer, diff_id, chain_id in zip(document.layers, image.diff_ids, chain_ids(image.diff_ids), strict=True):
            progress(layer.digest, "unpack", 0, layer.size)
            async with self._content.turn(f"unpack {chain_id}"):
                if not await self._is_whole(chain_id):
                    async with self._slots:
                        await self._unpack_layer(layer.digest, diff_id, chain_id, parent)
            progress(layer.digest, "unpack", layer.size, layer.size)
            parent = chain_id

    async def _is_whole(self, chain_id: str) -> bool:
        """Whether this layer is here as it was unpacked; those below it were asked for before."""
        return self._snapshots.is_committed(chain_id) and await self._snapshots.lost_below(chain_id) != chain_id

    async def _unpack_layer(self, digest: str, diff_id: str, chain_id: str, parent: str | None) -> None:
        key = f"{UNPACKING}{chain_id}"
        await self._snapshots.remove(key)  # of an attempt that was cut off
        await self._snapshots.prepare(key, parent)
        crashpoint("layer.prepared")
        try:
            place = self._snapshots.place(key).parent
            with trace.span("unpack layer", digest=digest), self._layers.one():
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

    def _remember(self, row: ImageRow) -> Image:
        for name in row.names:
            old = self._names.get(name)
            self._names[name] = row.id
            if old is not None and old != row.id:
                self._refresh(old)
        self._images[row.id] = parse_config(row.id, row.config, row.size, (), ())
        self._incomplete.pop(row.id, None)
        self._unreadable.discard(row.id)
        return self._refresh(row.id)

    def _forget(self, image: Image) -> None:
        self._images.pop(image.id, None)
        self._names = {name: owner for name, owner in self._names.items() if owner != image.id}

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


def _identity(auth: registry.Credentials | None) -> tuple[str, ...]:
    """Whose pull it is: nobody gets an image by what another one may have."""
    if auth is None:
        return ()
    return auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token


@functools.lru_cache(1024)
def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a stack's layers (OCI image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        both = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}" if chain else diff_id)
    return tuple(chain)
