"""The TLS worker of a real keeper, against the standard library's client and openssl's certificates."""

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kit.loops import open_loop
from stream_kit import until

from holdfast.linux import namespace, process
from holdfast.model.errors import Unavailable
from holdfast.runtime.keeper import Keeper
from holdfast.workers import tls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost; its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", path.with_name("key.pem"), "-out", path], check=True, capture_output=True)
    return path


@pytest.fixture
async def keeper(state: Path) -> AsyncIterator[Keeper]:
    made = await Keeper.connect(state)
    yield made
    await made.aclose()


class Ends:
    """The client's TCP connection, the inner side, and the worker between them."""

    def __init__(self, client: socket.socket, inner: socket.socket, pid: int, certificate: Path) -> None:
        self.client, self.inner, self.pid = client, inner, pid
        self._certificate = certificate
        self._writers: list[asyncio.StreamWriter] = []

    async def secured(self, **changes: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=str(self._certificate))
        for name, value in changes.items():
            setattr(context, name, value)
        reader, writer = await asyncio.open_connection(sock=self.client, ssl=context, server_hostname="localhost")
        self._writers.append(writer)
        return reader, writer

    async def opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The inner side."""
        reader, writer = await asyncio.open_connection(sock=self.inner)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.client.close()
        self.inner.close()
        await asyncio.sleep(0.01)  # for transports to hear of it

    async def ended(self) -> None:
        await until(lambda: process.state(self.pid) in ("", "Z"), "the worker to end")


@contextlib.asynccontextmanager
async def terminated(keeper: Keeper, certificate: Path) -> AsyncIterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    inner, theirs = socket.socketpair()
    args: dict[str, object] = {"certificate": str(certificate), "key": str(certificate.with_name("key.pem"))}
    with accepted, theirs:
        try:
            fds = [accepted.fileno(), theirs.fileno()]
            worker = await keeper.fork("tls", f"t{time.monotonic_ns():x}", args, fds=fds)
        except Unavailable:
            client.close()
            inner.close()
            raise
    client.setblocking(False)
    inner.setblocking(False)
    ends = Ends(client, inner, worker.pid, certificate)
    try:
        yield ends
    finally:
        await ends.close()
    await ends.ended()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_much_there_and_back_and_the_ends(keeper: Keeper, certificate: Path, version: ssl.TLSVersion) -> None:
    block = os.urandom(1 << 16)
    async with terminated(keeper, certificate) as ends:
        reader, writer = await ends.secured(minimum_version=version, maximum_version=version)
        inner_reader, inner_writer = await ends.opened()
        assert writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")

        async def echo() -> None:
            for _ in range(160):
                inner_writer.write(await inner_reader.readexactly(1 << 16))
                await inner_writer.drain()
            inner_writer.write_eof()

        async def send() -> None:
            for _ in range(160):
                writer.write(block)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(echo())
            group.create_task(send())
            got = await reader.read()
            while not reader.at_eof():
                got += await reader.read()
        assert hashlib.sha256(got).digest() == hashlib.sha256(block * 160).digest()
        writer.close()
        inner_writer.close()
        await ends.ended()


async def test_the_clients_end_is_the_end_of_what_is_read(keeper: Keeper, certificate: Path) -> None:
    async with terminated(keeper, certificate) as ends:
        _, writer = await ends.secured()
        inner_reader, inner_writer = await ends.opened()
        writer.write(b"hello")
        writer.close()
        assert await inner_reader.read() == b"hello"
        inner_writer.close()


def test_a_client_that_says_nothing(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.2)
    (client, ours), (inner, theirs) = socket.socketpair(), socket.socketpair()
    with client, ours, inner, theirs, open_loop() as loop:
        client.send(b"\x16\x03\x01")  # so begins what a client says first
        tls.Terminator(loop, tls.configure(str(certificate), str(certificate.with_name("key.pem"))), ours, theirs)
        loop.run()
        assert inner.send(b"nobody reads this") > 0


async def test_a_client_that_speaks_no_tls(keeper: Keeper, certificate: Path) -> None:
    async with terminated(keeper, certificate) as ends:
        ends.client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert await asyncio.get_running_loop().sock_recv(ends.inner, 100) == b""


async def test_old_versions_are_refused(keeper: Keeper, certificate: Path) -> None:
    async with terminated(keeper, certificate) as ends:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(sock=ends.client, ssl=context, server_hostname="localhost")


async def test_a_client_that_is_cut_off_while_he_is_not_read_from(keeper: Keeper, certificate: Path) -> None:
    async with terminated(keeper, certificate) as ends:
        _, writer = await ends.secured()
        writer.write(bytes(8 << 20))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await writer.drain()
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        writer.transport.abort()
        await ends.ended()


async def test_the_inner_side_vanishes(keeper: Keeper, certificate: Path) -> None:
    async with terminated(keeper, certificate) as ends:
        reader, writer = await ends.secured()
        ends.inner.close()
        assert await reader.read() == b""
        writer.close()


async def test_who_has_the_key_has_no_rights(keeper: Keeper, certificate: Path) -> None:
    async with terminated(keeper, certificate) as ends:
        _, writer = await ends.secured()
        where = Path(f"/proc/{ends.pid}")
        status = dict(line.split(":\t", 1) for line in (where / "status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert {status[name] for name in status if name.startswith("Cap")} == {"0" * 16}
        assert (status["NoNewPrivs"], os.listdir(where / "root")) == ("1", [])
        assert namespace.namespace_id(where / "ns/net") != namespace.namespace_id("/proc/self/ns/net")
        writer.close()


async def test_a_certificate_that_cannot_be_read_is_said(keeper: Keeper, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        async with terminated(keeper, tmp_path / "cert.pem"):
            pass
    while await keeper.list_workers():
        await asyncio.sleep(0.005)
