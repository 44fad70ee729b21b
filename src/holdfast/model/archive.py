"""The tar headers that are read of archives from strangers: bounded, so that reading one cannot fill the memory."""

import tarfile
from typing import Any, Final

EXTENSION_LIMIT: Final = 1024 * 1024
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
