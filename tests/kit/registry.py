"""Debian's docker-registry on loopback, filled over its own HTTP API."""

import contextlib
import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from kit.node import until
from kit.ports import free_port

CONFIG = """version: 0.1
storage:
  filesystem:
    rootdirectory: {directory}
http:
  addr: 127.0.0.1:{port}
"""
LOGIN = ("holdfast", "open sesame")
SECURED = """auth:
  htpasswd:
    realm: tests
    path: {directory}/htpasswd
"""
HTPASSWD = "holdfast:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"  # LOGIN, by bcrypt


@contextlib.contextmanager
def registry(*, secured: bool = False) -> Iterator[str]:
    """Yields "127.0.0.1:PORT". One that is `secured` answers nobody but LOGIN."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="hf-registry-") as directory:
        config = Path(directory, "config.yml")
        config.write_text((CONFIG + (SECURED if secured else "")).format(directory=directory, port=port))
        Path(directory, "htpasswd").write_text(HTPASSWD)
        command = ["docker-registry", "serve", str(config)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: answers(port), "the registry to answer")
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False, auth=LOGIN).status_code == 200
    except httpx.HTTPError:
        return False


def push(host: str, repository: str, tag: str, archive: Path) -> str:
    """Push the image of an OCI layout archive. Returns the manifest's digest."""
    base = f"http://{host}/v2/{repository}"
    with tarfile.open(archive) as tar, httpx.Client(trust_env=False, auth=LOGIN) as client:

        def member(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        entry = json.loads(member("index.json"))["manifests"][0]
        document = member(f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}")
        manifest = json.loads(document)
        for blob in (manifest["config"], *manifest["layers"]):
            data = member(f"blobs/sha256/{blob['digest'].removeprefix('sha256:')}")
            place = client.post(f"{base}/blobs/uploads/").headers["Location"]
            url = httpx.URL(place).copy_merge_params({"digest": blob["digest"]})
            client.put(url, content=data).raise_for_status()
        headers = {"Content-Type": manifest["mediaType"]}
        client.put(f"{base}/manifests/{tag}", content=document, headers=headers).raise_for_status()
    return f"sha256:{hashlib.sha256(document).hexdigest()}"
