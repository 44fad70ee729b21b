"""Registries as the tests of pulls need them: a real one that takes any image, and one that misbehaves as told."""

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from holdfast.images import manifest
from kit.images import Made
from kit.registry import registry


class Registry:
    """A real registry on loopback."""

    def __init__(self, host: str) -> None:
        self.host = host

    def _call(self, method: str, path: str, data: bytes, media_type: str = "application/octet-stream") -> str:
        """Returns the Location of what was made."""
        url = path if path.startswith("http") else f"http://{self.host}{path}"
        request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": media_type})
        with urllib.request.urlopen(request) as response:
            return str(response.headers.get("Location", ""))

    def push(self, name: str, made: Made, *tags: str) -> None:
        """Put an image there, under its digests, and the last document added to it under these tags."""
        documents = [digest for digest, data in made.blobs.items() if b'"schemaVersion"' in data]
        for digest, data in made.blobs.items():
            if digest not in documents:
                place = self._call("POST", f"/v2/{name}/blobs/uploads/", b"")
                self._call("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", data)
        for digest, target in [*((one, one) for one in documents), *((documents[-1], tag) for tag in tags)]:
            media_type = json.loads(made.blobs[digest])["mediaType"]
            self._call("PUT", f"/v2/{name}/manifests/{target}", made.blobs[digest], media_type)

    def reference(self, name: str, target: str) -> str:
        return f"{self.host}/{name}{'@' if target.startswith('sha256:') else ':'}{target}"


@contextlib.contextmanager
def real_registry() -> Iterator[Registry]:
    with registry() as host:
        yield Registry(host)


Handler = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]


class Liar:
    """An HTTP server that answers as one function says, and remembers what it was asked."""

    def __init__(self, answer: Handler) -> None:
        self._answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            path = head[0].split(" ")[1]
            self.asked.append((path, headers | ({"body": body.decode()} if body else {})))
            await self._answer(path, headers, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, answer: Handler) -> AsyncIterator["Liar"]:
        liar = cls(answer)
        server = await asyncio.start_server(liar._serve, "127.0.0.1", 0)
        liar.port = server.sockets[0].getsockname()[1]
        try:
            yield liar
        finally:
            server.close()
            await server.wait_closed()


def reply(status: int, body: bytes = b"", length: int | None = None, **headers: str) -> bytes:
    """An HTTP response; `length` is what it claims, if not the truth."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def honest(made: Made) -> Callable[[str], bytes]:
    """The right answer to each path."""

    def answer(path: str) -> bytes:
        target = path.rpartition("/")[2]
        if "/manifests/" in path:
            data = made.blobs.get(target) or made.blobs[made.manifest]
            return reply(200, data, Content_Type=manifest.OCI_MANIFEST)
        return reply(200, made.blobs[target]) if target in made.blobs else reply(404)

    return answer
