"""Image archives: OCI layout tars and what `docker save` writes. Members become blobs, never paths."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Any, Final

from holdfast.images import manifest
from holdfast.images.content import Content, read_chunks
from holdfast.images.manifest import Descriptor, Index, Manifest
from holdfast.linux.threads import in_thread
from holdfast.model.archive import PlainHeader
from holdfast.model.errors import InvalidArgument, Unavailable

INDEX_LIMIT: Final = 4 * 1024 * 1024
MEMBERS: Final = 100_000
# What the standard library raises for archives that are damaged, compressed ones included.
_UNREADABLE: Final = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError, lzma.LZMAError)
Progress = Callable[[str, str, int, int], None]
NAME_KEYS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class Found:
    """One image of an archive, its blobs in the content store."""

    def __init__(self, document: Manifest, blobs: dict[str, int], names: list[str], digest: str) -> None:
        self.document = document
        self.blobs = blobs
        self.names = names
        self.digest = digest


class Archive:
    """A tar on disk, read by its index of members."""

    def __init__(self, path: Path) -> None:
        try:
            self._tar = tarfile.open(path, tarinfo=PlainHeader)  # noqa: SIM115  (closed by close)
        except _UNREADABLE as exc:
            raise InvalidArgument(f"archive: cannot read it: {exc}") from exc
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            for count, member in enumerate(self._tar):
                if count > MEMBERS:
                    raise InvalidArgument(f"archive: more than {MEMBERS} members")
                if member.isreg() or member.issym() or member.islnk():
                    self._members[member.name.removeprefix("./")] = member
        except _UNREADABLE as exc:
            self.close()
            raise InvalidArgument(f"archive: cannot read it: {exc}") from exc
        except InvalidArgument:
            self.close()
            raise

    def close(self) -> None:
        self._tar.close()

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """A member's content and size; links within the archive are followed by tarfile, and only there."""
        member = self._members.get(name)
        if member is None:
            raise InvalidArgument(f"archive: {name} is missing")
        try:
            file = self._tar.extractfile(member)
        except (KeyError, RecursionError) as exc:
            raise InvalidArgument(f"archive: {name} is a link to nothing in it") from exc
        if file is None:
            raise InvalidArgument(f"archive: {name} is not a file")
        size = file.seek(0, 2)
        file.seek(0)
        return file, size

    def small(self, name: str) -> bytes:
        file, size = self.open(name)
        if size > INDEX_LIMIT:
            raise InvalidArgument(f"archive: {name} has {size} bytes, more than {INDEX_LIMIT}")
        try:
            return file.read()
        except _UNREADABLE as exc:
            raise InvalidArgument(f"archive: cannot read {name}: {exc}") from exc

    async def chunks(self, name: str, file: IO[bytes]) -> AsyncIterator[bytes]:
        """A member's content. Raises InvalidArgument for an archive that is cut off or damaged there."""
        try:
            async for chunk in read_chunks(file):
                yield chunk
        except _UNREADABLE as exc:
            raise InvalidArgument(f"archive: cannot read {name}: {exc}") from exc


async def load(path: Path, content: Content, progress: Progress) -> list[Found]:
    """Take every image of an archive that is for this machine into the content store."""
    archive = await in_thread(Archive, path)
    try:
        if archive.has("index.json"):
            return await _oci(archive, content, progress)
        if archive.has("manifest.json"):
            return await _docker(archive, content, progress)
        raise InvalidArgument("archive: it has neither index.json nor manifest.json, so it is no image archive")
    except Unavailable as exc:  # to a pull it is the registry's fault
        raise InvalidArgument(f"archive: {exc}") from exc
    finally:
        archive.close()


async def _oci(archive: Archive, content: Content, progress: Progress) -> list[Found]:
    index = manifest.parse(await in_thread(archive.small, "index.json"))
    if not isinstance(index, Index):
        raise InvalidArgument("archive: index.json is not an index")
    found = []
    for descriptor, platform in index.manifests:
        if not platform or manifest.for_host(platform):
            found.append(await _oci_image(archive, content, descriptor, progress))
    if not found:
        raise InvalidArgument(f"archive: it has no image for {manifest.host_platform()}")
    return found


async def _oci_image(archive: Archive, content: Content, top: Descriptor, progress: Progress) -> Found:
    annotations, names = dict(top.annotations), []
    for key in NAME_KEYS:
        # ref.name is often a bare tag, which names nothing by itself.
        if (name := annotations.get(key, "")) and ("/" in name or ":" in name):
            names.append(name)
            break
    blobs: dict[str, int] = {}
    descriptor = top
    for _ in range(3):
        await _take(archive, content, descriptor, blobs, progress)
        document = manifest.parse(content.read(descriptor.digest, manifest.LIMIT))
        if isinstance(document, Manifest):
            for one in (document.config, *document.layers):
                await _take(archive, content, one, blobs, progress)
            return Found(document, blobs, names, top.digest)
        descriptor = manifest.choose(document)
    raise InvalidArgument("archive: its indexes are nested too deeply")


async def _take(
    archive: Archive, content: Content, descriptor: Descriptor, blobs: dict[str, int], progress: Progress
) -> None:
    blobs[descriptor.digest] = descriptor.size
    if content.has(descriptor.digest, descriptor.size):
        return
    name = f"blobs/sha256/{descriptor.digest.removeprefix('sha256:')}"
    file, size = archive.open(name)
    if size != descriptor.size:
        raise InvalidArgument(f"archive: blob {descriptor.digest} has {size} bytes, not {descriptor.size}")
    digest = descriptor.digest
    await content.put(digest, size, archive.chunks(name, file), lambda done: progress(digest, "import", done, size))


async def _docker(archive: Archive, content: Content, progress: Progress) -> list[Found]:
    """`docker save`: manifest.json lists images as names of members; digests are ours to take."""
    try:
        entries = manifest.load_json(await in_thread(archive.small, "manifest.json"))
        return [await _docker_image(archive, content, entry, progress) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidArgument(f"archive: manifest.json is malformed: {exc}") from exc


async def _docker_image(archive: Archive, content: Content, entry: dict[str, Any], progress: Progress) -> Found:
    blobs: dict[str, int] = {}
    config = await _adopt(archive, content, str(entry["Config"]), blobs, progress)
    layers = [await _adopt(archive, content, str(name), blobs, progress) for name in entry["Layers"]]
    names = [str(tag) for tag in entry.get("RepoTags") or []]
    document = Manifest(config, tuple(layers))
    return Found(document, blobs, names, "")


async def _adopt(
    archive: Archive, content: Content, name: str, blobs: dict[str, int], progress: Progress
) -> Descriptor:
    file, size = archive.open(name)
    found = hashlib.sha256()
    async for chunk in archive.chunks(name, file):
        found.update(chunk)
    digest = f"sha256:{found.hexdigest()}"
    file.seek(0)
    if not content.has(digest, size):
        await content.put(digest, size, archive.chunks(name, file), lambda done: progress(digest, "import", done, size))
    blobs[digest] = size
    return Descriptor(digest, size)
