"""Pulling over the OCI distribution API: http on loopback and to hosts configured so, https everywhere else."""

import asyncio
import base64
import ipaddress
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from holdfast import __version__
from holdfast.images import manifest
from holdfast.images.content import Content
from holdfast.images.manifest import Descriptor, Index, Manifest
from holdfast.images.reference import Reference
from holdfast.model.errors import InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    import httpx

CHUNK: Final = 1024 * 1024
TOKEN_BYTES: Final = 1024 * 1024
REDIRECTS: Final = 5
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

    def __init__(self, reference: Reference, insecure: frozenset[str], auth: Credentials | None) -> None:
        import httpx  # it takes 95 ms to import, which only a pull has to wait for

        self._reference = reference
        self._auth = auth
        self._token = auth.registry_token if auth is not None else ""
        scheme = "http" if plain_http(reference.registry, insecure) else "https"
        self._base = f"{scheme}://{reference.registry}/v2/{reference.repository}"
        timeout = httpx.Timeout(30.0, read=60.0)
        headers = {"User-Agent": f"holdfast/{__version__}"}
        self._client = httpx.AsyncClient(timeout=timeout, headers=headers, follow_redirects=False, trust_env=True)

    async def close(self) -> None:
        await self._client.aclose()

    async def manifest(self, target: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest, with the digest that the registry gives it."""
        response = await self._get(f"{self._base}/manifests/{target}", {"Accept": manifest.ACCEPT})
        try:
            data = await _bounded(response, manifest.LIMIT)
        finally:
            await response.aclose()
        return data, response.headers.get("Docker-Content-Digest", "")

    async def blob(self, descriptor: Descriptor, content: Content, progress: Progress) -> None:
        """Take one blob into the content store, unless it is there."""
        if content.has(descriptor.digest):
            progress(descriptor.digest, "download", descriptor.size, descriptor.size)
            return
        response = await self._get(f"{self._base}/blobs/{descriptor.digest}", {})
        try:
            await content.put(
                descriptor.digest,
                descriptor.size,
                _chunks(response, self._reference),
                lambda done: progress(descriptor.digest, "download", done, descriptor.size),
            )
        finally:
            await response.aclose()

    async def _get(self, url: str, headers: dict[str, str]) -> "httpx.Response":
        """GET with authorization where it is asked for, following redirects without giving credentials away."""
        import httpx

        asked = False
        for _ in range(REDIRECTS + 1):
            sent = dict(headers)
            if self._same_host(url) and (authorization := self._authorization()):
                sent["Authorization"] = authorization
            try:
                request = self._client.build_request("GET", url, headers=sent)
                response = await self._client.send(request, stream=True)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise Unavailable(f"cannot pull {self._reference}: {type(exc).__name__}: {exc}") from exc
            if response.status_code == 200:
                return response
            await response.aclose()
            if response.is_redirect:
                url = str(response.url.join(response.headers["Location"]))
            elif response.status_code == 401 and not asked:
                asked = True
                await self._authenticate(response.headers.get("WWW-Authenticate", ""))
            else:
                raise self._refused(response.status_code)
        raise Unavailable(f"cannot pull {self._reference}: too many redirects")

    def _refused(self, status: int) -> Exception:
        if status == 404:
            return NotFound(f"cannot pull {self._reference}: the registry does not have it")
        if status in (401, 403):
            return InvalidArgument(f"cannot pull {self._reference}: the registry refuses these credentials ({status})")
        return Unavailable(f"cannot pull {self._reference}: the registry answers {status}")

    def _same_host(self, url: str) -> bool:
        return urlsplit(url).netloc == urlsplit(self._base).netloc

    def _authorization(self) -> str:
        return f"Bearer {self._token}" if self._token else ""

    async def _authenticate(self, challenge: str) -> None:
        """Answer WWW-Authenticate: Basic with the credentials, Bearer by fetching a token with them."""
        import httpx

        scheme, _, rest = challenge.partition(" ")
        basic = self._basic()
        if scheme.lower() == "basic" and basic:
            self._client.headers["Authorization"] = basic
            return
        parameters = dict(_PARAMETER.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in parameters:
            raise self._refused(401)
        query = {"scope": parameters.get("scope") or f"repository:{self._reference.repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        headers = {"Authorization": basic} if basic else {}
        try:
            response = await self._client.get(parameters["realm"], params=query, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise Unavailable(f"cannot pull {self._reference}: no token: {exc}") from exc
        if response.status_code != 200 or len(response.content) > TOKEN_BYTES:
            raise self._refused(response.status_code)
        answer = response.json()
        self._token = str(answer.get("token") or answer.get("access_token") or "")

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
    reference: Reference, content: Content, insecure: frozenset[str], auth: Credentials | None, progress: Progress
) -> tuple[Manifest, str, dict[str, int]]:
    """Bring everything of an image for this machine into the content store.

    Returns its manifest, the digest the reference resolved to, and all blobs with their sizes.
    """
    registry = Registry(reference, insecure, auth)
    try:
        document, resolved, blobs = await _resolve(registry, reference, content)
        async with asyncio.TaskGroup() as group:
            for descriptor in dict.fromkeys((document.config, *document.layers)):
                blobs[descriptor.digest] = descriptor.size
                group.create_task(registry.blob(descriptor, content, progress), name=f"pull {descriptor.digest}")
        return document, resolved, blobs
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from group_error
    finally:
        await registry.close()


async def _resolve(registry: Registry, reference: Reference, content: Content) -> tuple[Manifest, str, dict[str, int]]:
    """Follow an index to the manifest for this machine."""
    import hashlib

    blobs: dict[str, int] = {}
    target, first = reference.target, ""
    for _ in range(3):
        data, announced = await registry.manifest(target)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        expected = target if target.startswith("sha256:") else announced
        if expected and expected != digest:
            raise Unavailable(f"cannot pull {reference}: manifest {expected} came as {digest}")
        first = first or digest
        await content.put(digest, len(data), _once(data))
        blobs[digest] = len(data)
        document = manifest.parse(data)
        if isinstance(document, Manifest):
            return document, first, blobs
        assert isinstance(document, Index)
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


async def _bounded(response: Any, limit: int) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_raw(CHUNK):
        data += chunk
        if len(data) > limit:
            raise InvalidArgument(f"manifest: more than {limit} bytes")
    return bytes(data)


async def _chunks(response: Any, reference: Reference) -> AsyncIterator[bytes]:
    import httpx

    try:
        async for chunk in response.aiter_raw(CHUNK):
            yield chunk
    except httpx.HTTPError as exc:
        raise Unavailable(f"cannot pull {reference}: the transfer broke off: {type(exc).__name__}: {exc}") from exc
