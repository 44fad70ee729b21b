"""Archives of checkpoints taken apart and put together again, as those who mean harm would do it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from holdfast.checkpoint import sealed

Member = tuple[tarfile.TarInfo, bytes]
Members = list[Member]


def members(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return [(one, file.read() if (file := tar.extractfile(one)) else b"") for one in tar]


def packed(entries: Iterable[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one, data in entries:
            tar.addfile(one, io.BytesIO(data))
    return out.getvalue()


def rewrite(archive: Path, entries: Iterable[Member]) -> None:
    archive.write_bytes(packed(entries))


def regular(name: str, data: bytes = b"data", **pax: str) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(data), {key.replace("_", "."): value for key, value in pax.items()}
    return info, data


def special(name: str, kind: bytes, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def resealed(found: Members, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Members:
    """With a head that was changed, and a seal that fits it."""
    head = json.loads(found[0][1])
    change(head)
    data = json.dumps(head).encode()
    return [regular(sealed.HEAD, data), *found[1:-1], regular(sealed.SEAL, hashlib.sha256(data).hexdigest().encode())]


def exchanged(found: Members, name: str, data: bytes) -> Members:
    """With another content of one part, which its digest and its seal are right for."""

    def tell(head: dict[str, Any]) -> None:
        [part] = [one for one in head["parts"] if one["name"] == name]
        part.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    return resealed([regular(name, data) if one.name == name else (one, old) for one, old in found], tell)
