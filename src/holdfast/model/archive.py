"""What is read of archives from strangers: tar headers, bounded lest they fill the memory, and lists of paths."""

import json
import tarfile
from typing import Any, Final

EXTENSION_LIMIT: Final = 1024 * 1024
DELETED_LIMIT: Final = 64 * 1024 * 1024
_PATH_LIMIT: Final = 4096
_EXTENSIONS: Final = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)


class BoundedHeader(tarfile.TarInfo):
    """A header whose extensions (pax records, GNU long names) are refused when they are larger than they need be.

    tarfile reads an extension as a whole, whatever size it claims. Every header passes through this one method before
    anything behind it is read. Raises tarfile.ReadError.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _EXTENSIONS and self.size > EXTENSION_LIMIT:
            raise tarfile.ReadError(f"a header extension of {self.size} bytes is more than {EXTENSION_LIMIT}")
        return super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed, but stable since Python 2.6


class PlainHeader(BoundedHeader):
    """One that is refused for a sparse member too: the map of its holes is read as a whole, and is as long as it likes.

    Raises tarfile.ReadError.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{self.name!r} is sparse")
        return super()._proc_member(archive)

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, *_: Any) -> None:
        raise tarfile.ReadError(f"{next.name!r} is sparse")


def parse_deleted(data: bytes) -> list[str]:
    """The paths of a checkpoint's deleted.files, relative to the root. Raises ValueError."""
    found: Any = json.loads(data)
    if not isinstance(found, list):
        raise ValueError("it is not a list")
    paths = []
    for one in found:
        if not isinstance(one, str) or not one or "\0" in one or len(one) > _PATH_LIMIT:
            raise ValueError(f"{str(one)[:80]!r} is not a path")
        parts = [part for part in one.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise ValueError(f"{one[:80]!r} is not a path below the root")
        paths.append("/".join(parts))
    return paths
