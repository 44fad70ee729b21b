"""A small real image, made from Debian's busybox-static: one gzip layer in an OCI layout archive."""

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
DIRECTORIES = ("bin", "etc", "tmp", "proc", "sys", "dev", "root", "var", "data")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


def build_busybox_image(directory: Path, name: str, *, extra_layer: bytes = b"", **config: Any) -> Path:
    """Write `<directory>/busybox.tar` and return its path.

    `config` overrides keys of the image's config object; `extra_layer` is a packed layer to put on top.
    """
    layers = [gzip.compress(_layer(), compresslevel=1, mtime=0), *([extra_layer] if extra_layer else [])]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    image = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], **config},
        "rootfs": {"type": "layers", "diff_ids": [_diff_id(packed) for packed in layers]},
    }
    blobs: dict[str, bytes] = {}
    entries = [_store(blobs, packed, "application/vnd.oci.image.layer.v1.tar+gzip") for packed in layers]
    config_entry = _store(blobs, json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    manifest |= {"config": config_entry, "layers": entries}
    entry = _store(blobs, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": f"docker.io/{name}"}
    index = {"schemaVersion": 2, "manifests": [entry]}
    members = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    members |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    target = directory / "busybox.tar"
    target.write_bytes(_tar({name: (data, 0o644) for name, data in members.items()}))
    return target


def _layer() -> bytes:
    """The busybox binary with a link for each of its applets, and just enough of /etc."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    entries = {"bin/busybox": (BUSYBOX.read_bytes(), 0o755)}
    entries |= {"etc/passwd": (PASSWD.encode(), 0o644), "etc/group": (GROUP.encode(), 0o644)}
    return _tar(entries, DIRECTORIES, {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"})


def _tar(
    files: dict[str, tuple[bytes, int]], directories: tuple[str, ...] = (), links: dict[str, str] | None = None
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in directories:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(info)
        for name, (data, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


def _store(blobs: dict[str, bytes], data: bytes, media_type: str) -> dict[str, Any]:
    digest = _digest(data)
    blobs[digest.removeprefix("sha256:")] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _diff_id(packed: bytes) -> str:
    """The digest of a layer's uncompressed tar, which may be large."""
    found = hashlib.sha256()
    with gzip.open(io.BytesIO(packed)) as stream:
        while data := stream.read(1 << 20):
            found.update(data)
    return f"sha256:{found.hexdigest()}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
