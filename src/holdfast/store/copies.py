"""A copy of each image and each acknowledged pod and container in a file of its own: the witness that speaks when the
store cannot.

The writer thread writes a copy after the commit that made it true, and deletes it after the commit that deletes the
row. It bears the number of that commit, its generation. So the store, as it is opened, is known to be the newer one
as long as no copy has a higher number than the store; and if one has, commits were lost (SQLite itself takes what it
can verify of a damaged log, and says nothing).

Nothing waits for a copy to be on disk, and none is taken for the truth while the store is whole: one that could not be
written, or was lost with the power, is older than its row or missing, and is written again at the next change.
"""

import contextlib
import dataclasses
import hashlib
import json
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.spec import ContainerMetadata, PodMetadata, is_id
from holdfast.model.state import ContainerStatus, PodStatus, ProcessRef
from holdfast.store.images import ImageRow
from holdfast.store.quarantine import set_aside

VERSION: Final = 1
COPY_BYTES: Final = 16 * 1024 * 1024  # more than a configuration that came in one message can be


@dataclass(frozen=True, slots=True)
class PodCopy:
    generation: int
    meta: PodMetadata
    status: PodStatus

    @property
    def id(self) -> str:
        return self.meta.id

    def __str__(self) -> str:
        return f"pod {self.meta.name} ({self.id})"


@dataclass(frozen=True, slots=True)
class ContainerCopy:
    generation: int
    meta: ContainerMetadata
    status: ContainerStatus

    @property
    def id(self) -> str:
        return self.meta.id

    def __str__(self) -> str:
        return f"container {self.meta.name} ({self.id})"


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """`id` is without the name of its algorithm. A name is of the image whose copy has the highest generation."""

    generation: int
    row: ImageRow
    blobs: dict[str, int]

    @property
    def id(self) -> str:
        return self.row.id.partition(":")[2]

    def __str__(self) -> str:
        return f"image {', '.join(self.row.names)} ({self.row.id})"


Copy = PodCopy | ContainerCopy | ImageCopy
KINDS: Final = {PodCopy: "pod", ContainerCopy: "container", ImageCopy: "image"}


class Copies:
    """The directory of copies, a file per id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.undropped: set[str] = set()

    def keep(self, copy: Copy) -> None:
        """Write a copy, or write it anew. Raises OSError."""
        files.write_atomic(self._directory / copy.id, encode(copy), sync=False)
        crashpoint("copies.kept")

    def drop(self, id: str) -> None:
        """Delete a copy; one that cannot be deleted now is left to `finish`. Idempotent. Raises OSError."""
        self.undropped.add(id)
        files.unlink(self._directory / id)
        self.undropped.discard(id)
        crashpoint("copies.dropped")

    def finish(self) -> None:
        """Delete what could not be deleted. Raises OSError."""
        for id in list(self.undropped):
            self.drop(id)

    def load(self, *, only_look: bool = False) -> tuple[list[Copy], list[str]]:
        """Every copy, and what there is to say about those that cannot be read, which go to quarantine.

        With `only_look` nothing is changed.

        Raises OSError when the directory itself cannot be read.
        """
        if not only_look:
            files.make_private(self._directory)
        found: list[Copy] = []
        told = []
        for path in sorted(self._directory.iterdir()):
            if not is_id(path.name):
                if not only_look:
                    with contextlib.suppress(OSError):
                        files.unlink(path)  # a copy that was being written
                continue
            try:
                found.append(decode(path.name, files.read_bounded(path, COPY_BYTES)))
            except OSError as exc:  # which may be over the next time
                told.append(f"the copy of {path.name} cannot be read: {exc}")
            except ValueError as exc:
                told.append(f"the copy of {path.name} cannot be read and was set aside: {exc}")
                if not only_look:
                    with contextlib.suppress(OSError):
                        set_aside(self._directory.parent, path, str(exc))
        return found, told


def encode(copy: Copy) -> bytes:
    data: dict[str, Any] = {"version": VERSION, "kind": KINDS[type(copy)], "generation": copy.generation}
    if isinstance(copy, ImageCopy):
        return seal({**data, "image": asdict(copy.row), "blobs": copy.blobs})
    return seal({**data, "meta": asdict(copy.meta), "status": asdict(copy.status)})


def decode(id: str, data: bytes) -> Copy:
    """Raises ValueError, saying what is wrong with it."""
    fields = unseal(data)
    copy = _copy(fields)
    if copy.id != id:
        raise ValueError(f"it is the copy of {copy.id}")
    return copy


def _copy(fields: dict[str, Any]) -> Copy:
    generation = int(fields["generation"])
    if fields["kind"] == KINDS[ImageCopy]:
        row = fields["image"]
        return ImageCopy(generation, ImageRow(**{**row, "names": tuple(row["names"])}), fields["blobs"])
    meta, status = fields["meta"], fields["status"]
    reference = "shim" if fields["kind"] == KINDS[PodCopy] else "process"
    status[reference] = ProcessRef(**status[reference]) if status[reference] else None
    if fields["kind"] == KINDS[PodCopy]:
        return PodCopy(generation, PodMetadata(**_known(PodMetadata, meta)), PodStatus(**_known(PodStatus, status)))
    known = ContainerMetadata(**_known(ContainerMetadata, meta)), ContainerStatus(**_known(ContainerStatus, status))
    return ContainerCopy(generation, *known)


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """What a later release has added is nothing to this one."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def seal(data: object) -> bytes:
    """One line with the SHA-256 of the rest, then JSON."""
    text = json.dumps(data, default=lambda value: {"base64": b64encode(value).decode()}).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def unseal(data: bytes) -> dict[str, Any]:
    """Raises ValueError, saying what is wrong with it."""
    digest, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("it is empty" if not data else "its checksum is wrong")
    fields: dict[str, Any] = json.loads(text, object_hook=_bytes)
    if fields["version"] > VERSION:
        raise ValueError(f"it was written by a newer Holdfast (version {fields['version']}, this one knows {VERSION})")
    return fields


def _bytes(value: dict[str, Any]) -> Any:
    return b64decode(value["base64"]) if value.keys() == {"base64"} else value
