"""Image archives: OCI layout tars and what `docker save` writes. Members become blobs, never paths."""

import asyncio
import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from holdfast.images import manifest
from holdfast.images.content import Content, read_chunks
from holdfast.images.manifest import Descriptor, Index, Manifest
from holdfast.model.errors import InvalidArgument

INDEX_LIMIT: Final = 4 * 1024 * 1024
MEMBERS: Final = 100_000
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
            self._tar = tarfile.open(path)  # noqa: SIM115  (closed by close)
            self._members: dict[str, tarfile.TarInfo] = {}
            for count, member in enumerate(self._tar):
                if count > MEMBERS:
                    raise InvalidArgument(f"archive: more than {MEMBERS} members")
                if member.isreg() or member.issym() or member.islnk():
                    self._members[member.name.removeprefix("./")] = member
        except (tarfile.TarError, EOFError, OSError) as exc:
            raise InvalidArgument(f"archive: cannot read it: {exc}") from exc

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
        except KeyError as exc:
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
        return file.read()


async def load(path: Path, content: Content, progress: Progress) -> list[Found]:
    """Take every image of an archive that is for this machine into the content store."""
    archive = await asyncio.to_thread(Archive, path)
    try:
        if archive.has("index.json"):
            return await _oci(archive, content, progress)
        if archive.has("manifest.json"):
            return await _docker(archive, content, progress)
        raise InvalidArgument("archive: it has neither index.json nor manifest.json, so it is no image archive")
    finally:
        archive.close()


async def _oci(archive: Archive, content: Content, progress: Progress) -> list[Found]:
    index = manifest.parse(archive.small("index.json"))
    if not isinstance(index, Index):
        raise InvalidArgument("archive: index.json is not an index")
    found = []
    for descriptor, platform in index.manifests:
        if platform in ("", manifest.host_platform()):
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
    if content.has(descriptor.digest):
        return
    file, size = archive.open(f"blobs/sha256/{descriptor.digest.removeprefix('sha256:')}")
    if size != descriptor.size:
        raise InvalidArgument(f"archive: blob {descriptor.digest} has {size} bytes, not {descriptor.size}")
    digest = descriptor.digest
    await content.put(digest, size, read_chunks(file), lambda done: progress(digest, "import", done, size))


async def _docker(archive: Archive, content: Content, progress: Progress) -> list[Found]:
    """`docker save`: manifest.json lists images as names of members; digests are ours to take."""
    try:
        entries = json.loads(archive.small("manifest.json"))
        return [await _docker_image(archive, content, entry, progress) for entry in entries]
    except (ValueError, KeyError, TypeError) as exc:
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
    digest = f"sha256:{await asyncio.to_thread(_digest, file)}"
    file.seek(0)
    if not content.has(digest):
        await content.put(digest, size, read_chunks(file), lambda done: progress(digest, "import", done, size))
    blobs[digest] = size
    return Descriptor(digest, size)


def _digest(file: IO[bytes]) -> str:
    found = hashlib.sha256()
    while data := file.read(1024 * 1024):
        found.update(data)
    return found.hexdigest()
