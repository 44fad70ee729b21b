"""The distribution protocol against servers that misbehave; the honest case is in tests/root/test_pull.py."""

import asyncio
import base64
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.images import Made, image, tar
from kit.registries import Liar, honest, reply

from holdfast.images import manifest, registry
from holdfast.images.content import Content
from holdfast.images.reference import parse
from holdfast.model.errors import InvalidArgument, NotFound, Unavailable
from holdfast.model.tally import Counter

LAYER = tar([])


@dataclass
class Auth:
    username: str = ""
    password: str = ""
    auth: str = ""
    identity_token: str = ""
    registry_token: str = ""


@pytest.fixture
def content(tmp_path: Path) -> Content:
    content = Content(tmp_path)
    content.prepare()
    return content


@pytest.fixture
def made() -> Made:
    return image([(LAYER, "gzip"), (b"x" * 300_000, "")])


def quiet(item: str, phase: str, done: int, total: int) -> None:
    return None


async def pull(host: str, content: Content, auth: Auth | None = None, target: str = ":latest") -> dict[str, int]:
    reference = parse(f"{host}/some/thing{target}")
    _, _, blobs = await registry.fetch(reference, content, frozenset(), auth, quiet, Counter("", ""))
    return blobs


def nothing_half_done(content: Content) -> bool:
    return list(content.ingest.iterdir()) == []


async def test_honest(content: Content, made: Made) -> None:
    answer = honest(made)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(path))

    async with Liar.run(serve) as liar:
        blobs = await pull(liar.host, content)
        assert blobs == {digest: len(data) for digest, data in made.blobs.items()}
        assert sorted(content.digests()) == sorted(made.blobs)
        before = len(liar.asked)
        await pull(liar.host, content)
        assert len(liar.asked) == before + 1, "only the manifest of a tag is asked for again"
    assert nothing_half_done(content)
    assert {headers["accept-encoding"] for _, headers in liar.asked} == {"identity"}


def other(data: bytes) -> bytes:
    return data[:-1] + b"!"


LIES = {
    "another blob": (lambda data: reply(200, other(data)), "what came is sha256:"),
    "short and says so": (lambda data: reply(200, data[:-5]), "came"),
    "short and says otherwise": (lambda data: reply(200, data[:-5], len(data)), "broke off"),
    "nothing": (lambda data: reply(200, b"", len(data)), "broke off"),
    "too long": (lambda data: reply(200, data + b"more"), "more than"),
    "broken": (lambda data: b"\x00\x01 this is no HTTP\r\n\r\n", "RemoteProtocolError"),
    "hangs up": (lambda data: b"", "RemoteProtocolError"),
    "server error": (lambda data: reply(503), "answers 503"),
    "redirects in circles": (lambda data: reply(302, Location="/v2/some/thing/blobs/again"), "too many redirects"),
    "redirects to nowhere": (lambda data: reply(302, Location="http://[::1:99999/"), "Invalid URL"),
    "redirects to another protocol": (lambda data: reply(302, Location="file:///etc/passwd"), "UnsupportedProtocol"),
    "redirects without saying where": (lambda data: reply(302), "answers 302"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_lies_about_blobs(content: Content, made: Made, lie: str) -> None:
    tell, words = LIES[lie]
    truth = honest(made)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        victim = path.endswith((made.layers[1], "/again"))
        writer.write(tell(made.blobs[made.layers[1]]) if victim else truth(path))

    async with Liar.run(serve) as liar:
        with pytest.raises(Unavailable, match=words):
            await pull(liar.host, content)
    assert made.layers[1] not in content.digests()
    assert nothing_half_done(content)


async def test_a_registry_that_falls_silent(content: Content, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SILENCE_SECONDS", 0.2)
    truth, data = honest(made), made.blobs[made.layers[1]]
    over = asyncio.Event()

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if not path.endswith(made.layers[1]):
            writer.write(truth(path))
            return
        writer.write(reply(200, data[:1000], len(data)))
        await writer.drain()
        await over.wait()

    async with Liar.run(serve) as liar:
        with pytest.raises(Unavailable, match="ReadTimeout"):
            await pull(liar.host, content)
        over.set()
    assert nothing_half_done(content)


BAD_MANIFESTS = {
    "no JSON": (b"<html>", InvalidArgument, "malformed"),
    "nested": (b"[" * 1_000_000, InvalidArgument, "nested too deeply"),
    "a number": (b"2", InvalidArgument, "schemaVersion"),
    "version 1": (b'{"schemaVersion":1,"fsLayers":[]}', InvalidArgument, "schemaVersion"),
    "both": (b'{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}', InvalidArgument, "not clearly"),
    "neither": (b'{"schemaVersion":2}', InvalidArgument, "not clearly"),
    "too large": (b" " * (manifest.LIMIT + 1), InvalidArgument, "more than"),
    "for nobody": (b'{"schemaVersion":2,"manifests":[]}', InvalidArgument, "there is none for"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
async def test_bad_manifests(content: Content, name: str) -> None:
    data, kind, words = BAD_MANIFESTS[name]

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, data))

    async with Liar.run(serve) as liar:
        with pytest.raises(kind, match=words):
            await pull(liar.host, content)
    assert nothing_half_done(content)


async def test_manifest_by_digest_must_be_that_manifest(content: Content, made: Made) -> None:
    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, made.blobs[made.manifest]))

    async with Liar.run(serve) as liar:
        with pytest.raises(Unavailable, match=f"{'sha256:' + '0' * 64} came as {made.manifest}"):
            await pull(liar.host, content, target=f"@sha256:{'0' * 64}")


async def test_a_tag_must_be_what_the_registry_says_it_is(content: Content, made: Made) -> None:
    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, made.blobs[made.manifest], Docker_Content_Digest=f"sha256:{'0' * 64}"))

    async with Liar.run(serve) as liar:
        with pytest.raises(Unavailable, match="came as"):
            await pull(liar.host, content)


async def test_indexes_without_end(content: Content) -> None:
    platform = dict(zip(("os", "architecture"), manifest.host_platform().split("/"), strict=True))
    documents: dict[str, bytes] = {}
    made = Made()
    below = made.add(b'{"schemaVersion":2,"manifests":[]}')
    for _ in range(5):
        entry = made.descriptor(below, manifest.OCI_INDEX, platform=platform)
        below = made.add(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    documents |= made.blobs

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, documents.get(path.rpartition("/")[2], documents[below])))

    async with Liar.run(serve) as liar:
        with pytest.raises(InvalidArgument, match="nested too deeply"):
            await pull(liar.host, content)


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (401, InvalidArgument), (403, InvalidArgument)])
async def test_refusals_name_the_reference(content: Content, status: int, kind: type[Exception]) -> None:
    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(reply(status))

    async with Liar.run(serve) as liar:
        with pytest.raises(kind, match=f"{liar.host}/some/thing:latest"):
            await pull(liar.host, content)


async def test_nobody_there(content: Content) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/some/thing"):
        await pull("127.0.0.1:1", content)


@pytest.mark.parametrize("auth", [Auth("me", "secret"), Auth(auth=base64.b64encode(b"me:secret").decode())])
async def test_basic_credentials_stay_with_their_registry(content: Content, made: Made, auth: Auth) -> None:
    truth, wanted = honest(made), "basic " + base64.b64encode(b"me:secret").decode().lower()

    async def store(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(truth(path))

    async with Liar.run(store) as blobs:

        async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
            if headers.get("authorization") != wanted:
                writer.write(reply(401, WWW_Authenticate='Basic realm="here"'))
            elif "/blobs/" in path:
                writer.write(reply(307, Location=f"http://{blobs.host}{path}"))
            else:
                writer.write(truth(path))

        async with Liar.run(serve) as liar:
            await pull(liar.host, content, auth)
            with pytest.raises(InvalidArgument, match="refuses these credentials"):
                await pull(liar.host, content, Auth("me", "wrong"))
        assert len(blobs.asked) == 3
        assert not [headers for _, headers in blobs.asked if "authorization" in headers]


@pytest.mark.parametrize("auth", [None, Auth("me", "secret"), Auth(identity_token="refresh")])
async def test_bearer_tokens(content: Content, made: Made, auth: Auth | None) -> None:
    truth = honest(made)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if path.startswith("/token"):
            writer.write(reply(200, b'{"access_token":"t0ken"}'))
        elif headers.get("authorization") == "bearer t0ken":
            writer.write(truth(path))
        else:
            challenge = f'Bearer realm="http://{liar.host}/token",service="s",scope="repository:some/thing:pull"'
            writer.write(reply(401, WWW_Authenticate=challenge))

    async with Liar.run(serve) as liar:
        await pull(liar.host, content, auth)
        (path, headers), *more = [one for one in liar.asked if one[0].startswith("/token")]
        assert not more, "one token is enough"
        asked = headers.get("body", path)
        assert "scope=repository%3Asome%2Fthing%3Apull" in asked
        assert "service=s" in asked
        assert ("authorization" in headers) == (auth is not None and auth.username == "me")
        assert ("refresh_token=refresh" in asked) == (auth is not None and auth.identity_token != "")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"x", b"[" * 100_000, b" " * 2_000_000])
async def test_bad_tokens(content: Content, body: bytes) -> None:
    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        challenge = f'Bearer realm="http://{liar.host}/token"'
        writer.write(reply(200, body) if path.startswith("/token") else reply(401, WWW_Authenticate=challenge))

    async with Liar.run(serve) as liar:
        with pytest.raises((Unavailable, InvalidArgument), match=r"token|more than"):
            await pull(liar.host, content)


async def test_two_pulls_share_a_download(content: Content, made: Made) -> None:
    truth = honest(made)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(truth(path))

    async with Liar.run(serve) as liar:
        await asyncio.gather(*(pull(liar.host, content) for _ in range(4)))
        blobs = [path for path, _ in liar.asked if "/blobs/" in path]
        assert len(blobs) == len(set(blobs)) == 3


async def test_never_from_https_to_http(content: Content) -> None:
    one = registry.Registry(parse("quay.io/a"), frozenset(), Auth("me", "secret"), Counter("", ""))
    try:
        with pytest.raises(Unavailable, match="not https"):
            one._check_no_downgrade("http://quay.io/v2/a")
        with pytest.raises(Unavailable, match="not https"):
            await one._token({"realm": "http://quay.io/token"})
    finally:
        await one.close()


@pytest.mark.parametrize(
    ("host", "plain"),
    [("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.9.9.9", True), ("[::1]:80", True)]
    + [("quay.io", False), ("10.0.0.1:5000", False), ("localhost.evil.io", False), ("127.0.0.1.evil.io", False)]
    + [("mirror:5000", True), ("mirror", False)],
)
def test_plain_http(host: str, plain: bool) -> None:
    assert registry.plain_http(host, frozenset({"mirror:5000"})) is plain
