"""Pulling over the OCI distribution API: http on loopback and to hosts configured so, https everywhere else."""

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from holdfast import __version__
from holdfast.images import manifest
from holdfast.images.content import Content
from holdfast.images.manifest import Descriptor, Manifest
from holdfast.images.reference import Reference, is_digest
from holdfast.model import trace
from holdfast.model.errors import InvalidArgument, NotFound, Unavailable
from holdfast.model.tally import Counter

if TYPE_CHECKING:
    import httpx

CHUNK: Final = 1024 * 1024
TOKEN_BYTES: Final = 1024 * 1024
REDIRECTS: Final = 5
DOWNLOADS: Final = 4  # at once, of one image
CONNECT_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 60.0
CLIENT_ID: Final = "holdfast"
_PARAMETER: Final = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
Progress = Callable[[str, str, int, int], None]


class Credentials(Protocol):
    """The CRI's AuthConfig, as far as it is needed here."""

    username: str
    password: str
    auth: str
    identity_token: str
    registry_token: str


class Registry:
    """One pull's conversation with one registry."""

    def __init__(self, reference: Reference, insecure: frozenset[str], auth: Credentials | None, read: Counter) -> None:
        """`read` counts the bytes of blobs."""
        import httpx  # it takes 95 ms to import, which only a pull has to wait for

        self._read = read
        self._reference = reference
        self._auth = auth
        self._authorization = f"Bearer {auth.registry_token}" if auth is not None and auth.registry_token else ""
        scheme = "http" if plain_http(reference.registry, insecure) else "https"
        self.base = f"{scheme}://{reference.registry}/v2/{reference.repository}"
        self._slots = asyncio.Semaphore(DOWNLOADS)
        # What is digested is what is sent: nobody shall compress it on the way.
        headers = {"User-Agent": f"holdfast/{__version__}", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS, pool=None)
        self._client = httpx.AsyncClient(timeout=timeout, headers=headers, follow_redirects=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def manifest(self, target: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest, with the digest that the registry gives it."""
        async with self._get(f"{self.base}/manifests/{target}", {"Accept": manifest.ACCEPT}) as response:
            data = await _bounded(self._chunks(response), manifest.LIMIT)
            return data, response.headers.get("Docker-Content-Digest", "")

    async def blob(self, descriptor: Descriptor, content: Content, progress: Progress) -> None:
        """Take one blob into the content store, unless it is there."""
        digest, size = descriptor.digest, descriptor.size
        # Images that are pulled at once share their layers; a sick registry holds up its own images only.
        async with self._slots, content.turn(f"{self.base} {digest}"):
            if not content.has(digest, size):
                with trace.span("fetch blob", digest=digest, bytes=size):
                    async with self._get(f"{self.base}/blobs/{digest}", {}) as response:
                        tell = lambda done: progress(digest, "download", done, size)  # noqa: E731
                        await content.put(digest, size, self._counted(response), tell)
        progress(digest, "download", size, size)

    async def _counted(self, response: "httpx.Response") -> AsyncIterator[bytes]:
        async for chunk in self._chunks(response):
            self._read.add(by=len(chunk))
            yield chunk

    @contextlib.asynccontextmanager
    async def _get(self, url: str, headers: Mapping[str, str]) -> "AsyncIterator[httpx.Response]":
        """GET with authorization where it is asked for, following redirects without giving credentials away."""
        asked = False
        for _ in range(REDIRECTS + 1):
            own = _origin(url) == _origin(self.base)
            sent = {**headers, "Authorization": self._authorization} if own and self._authorization else headers
            response = await self._send("GET", url, headers=sent)
            try:
                if response.status_code == 200:
                    yield response
                    return
                if response.next_request is not None:
                    url = str(response.next_request.url)
                    self._check_no_downgrade(url)
                elif response.status_code == 401 and own and not asked:
                    asked = True
                    await self._authenticate(response.headers.get("WWW-Authenticate", ""))
                else:
                    raise self._refused(response.status_code)
            finally:
                await response.aclose()
        raise Unavailable(f"cannot pull {self._reference}: too many redirects")

    async def _send(self, method: str, url: str, **request: Any) -> "httpx.Response":
        import httpx

        try:
            return await self._client.send(self._client.build_request(method, url, **request), stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise Unavailable(f"cannot pull {self._reference}: {type(exc).__name__}: {exc}") from exc

    async def _chunks(self, response: "httpx.Response") -> AsyncIterator[bytes]:
        import httpx

        try:
            async for chunk in response.aiter_raw(CHUNK):
                yield chunk
        except httpx.HTTPError as exc:
            raise Unavailable(
                f"cannot pull {self._reference}: the transfer broke off: {type(exc).__name__}: {exc}"
            ) from exc

    def _check_no_downgrade(self, url: str) -> None:
        """A registry that is talked to over TLS cannot have us go on without."""
        if self.base.startswith("https:") and not url.lower().startswith("https:"):
            raise Unavailable(f"cannot pull {self._reference}: the registry points to {url[:200]}, which is not https")

    def _refused(self, status: int) -> Exception:
        if status == 404:
            return NotFound(f"cannot pull {self._reference}: the registry does not have it")
        if status in (401, 403):
            return InvalidArgument(f"cannot pull {self._reference}: the registry refuses these credentials ({status})")
        return Unavailable(f"cannot pull {self._reference}: the registry answers {status}")

    async def _authenticate(self, challenge: str) -> None:
        """Answer WWW-Authenticate: Basic with the credentials, Bearer by fetching a token with them."""
        scheme, _, rest = challenge.partition(" ")
        parameters = dict(_PARAMETER.findall(rest))
        if scheme.lower() == "basic" and (basic := self._basic()):
            self._authorization = basic
        elif scheme.lower() == "bearer" and "realm" in parameters:
            self._authorization = f"Bearer {await self._token(parameters)}"
        else:
            raise self._refused(401)

    async def _token(self, parameters: Mapping[str, str]) -> str:
        """A token from the server that the registry names: GET, or OAuth2's POST when we have a refresh token."""
        realm = parameters["realm"]
        self._check_no_downgrade(realm)
        query = {"scope": parameters.get("scope") or f"repository:{self._reference.repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        if self._auth is not None and self._auth.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": self._auth.identity_token, "client_id": CLIENT_ID}
            response = await self._send("POST", realm, data={**query, **grant})
        else:
            basic = self._basic()
            response = await self._send("GET", realm, params=query, headers={"Authorization": basic} if basic else {})
        try:
            if response.status_code != 200:
                raise self._refused(response.status_code)
            answer = manifest.load_json(await _bounded(self._chunks(response), TOKEN_BYTES))
            return str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError, AttributeError) as exc:
            raise Unavailable(f"cannot pull {self._reference}: {realm} gives no token") from exc
        finally:
            await response.aclose()

    def _basic(self) -> str:
        if self._auth is None:
            return ""
        if self._auth.auth:
            return f"Basic {self._auth.auth}"
        if not self._auth.username:
            return ""
        pair = f"{self._auth.username}:{self._auth.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


async def fetch(
    reference: Reference,
    content: Content,
    insecure: frozenset[str],
    auth: Credentials | None,
    progress: Progress,
    read: Counter,
) -> tuple[Manifest, str, dict[str, int]]:
    """Bring everything of an image for this machine into the content store.

    Returns its manifest, the digest the reference resolved to, and all blobs with their sizes.
    """
    registry = Registry(reference, insecure, auth, read)
    try:
        with trace.span("resolve", image=str(reference)):
            document, resolved, blobs = await _resolve(registry, reference, content)
        async with asyncio.TaskGroup() as group:
            for descriptor in dict.fromkeys((document.config, *document.layers)):
                blobs[descriptor.digest] = descriptor.size
                group.create_task(registry.blob(descriptor, content, progress), name=f"pull {descriptor.digest}")
        return document, resolved, blobs
    except BaseExceptionGroup as several:  # of downloads at once; the others were cancelled for the first one's sake
        raise several.exceptions[0] from several
    finally:
        await registry.close()


async def _resolve(registry: Registry, reference: Reference, content: Content) -> tuple[Manifest, str, dict[str, int]]:
    """Follow an index to the manifest for this machine."""
    blobs: dict[str, int] = {}
    target, first = reference.target, ""
    for _ in range(3):
        data, announced = await registry.manifest(target)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        expected = target if is_digest(target) else announced
        if is_digest(expected) and expected != digest:
            raise Unavailable(f"cannot pull {reference}: manifest {expected} came as {digest}")
        first = first or digest
        document = manifest.parse(data)
        if not content.has(digest, len(data)):
            await content.put(digest, len(data), _once(data))
        blobs[digest] = len(data)
        if isinstance(document, Manifest):
            return document, first, blobs
        target = manifest.choose(document).digest
    raise InvalidArgument(f"cannot pull {reference}: its indexes are nested too deeply")


def plain_http(host: str, insecure: frozenset[str]) -> bool:
    """Whether a registry is talked to without TLS: on loopback, or where the configuration says so."""
    if host in insecure:
        return True
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _bounded(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise InvalidArgument(f"manifest: more than {limit} bytes")
    return bytes(data)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
