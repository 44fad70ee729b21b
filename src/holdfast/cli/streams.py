"""Connections to the URLs that the daemon gives for streams, and the signals that end what is going on."""

import asyncio
import contextlib
import os
import select
import selectors
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import click

from holdfast.cli.errors import CommandError, Unreachable
from holdfast.streaming import client
from holdfast.streaming.session import ProtocolError

ANSWER_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 1.0
CHUNK: Final = 64 * 1024
ENDING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
LOST: Final = "the connection was lost (hint: `holdfast ps` says what is still there)"


class Trust(NamedTuple):
    """Which certificates of an https URL are believed."""

    ca: str
    anyone: bool

    def context(self) -> ssl.SSLContext:
        """Raises CommandError."""
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except OSError as exc:  # ssl.SSLError is one
            raise CommandError(f"cannot use --streaming-ca {self.ca}: {exc.strerror or exc}") from exc
        if self.anyone:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


def trust_options(command: Any) -> Any:
    """Adds what a command that opens streams needs; it is given as `ca` and `insecure`."""
    insecure = click.option(
        "--insecure-skip-tls-verify", "insecure", is_flag=True, help="Believe any certificate of the streaming server."
    )
    authority = click.option(
        "--streaming-ca",
        "ca",
        envvar="HOLDFAST_STREAMING_CA",
        default="",
        metavar="FILE",
        help="Certificates (PEM) that vouch for the streaming server's, where it has TLS; otherwise the system's. "
        "[env: HOLDFAST_STREAMING_CA]",
    )
    return authority(insecure(command))


class _Reader(asyncio.StreamReader):
    """Whose end is an end, however it came: what has arrived before is read."""

    def set_exception(self, _: BaseException) -> None:
        self.feed_eof()


class Line:
    """One connection with its codec: `flush` after each thing that is told to the codec."""

    def __init__(self, codec: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.codec = codec
        self._reader = reader
        self._writer = writer
        self._first: list[Any] = []

    async def open(self) -> None:
        """Wait until the server has agreed. Raises ProtocolError, Refused."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.flush()
                while not (self.codec.open or self.codec.over):
                    self._first = await self._receive()
        except TimeoutError as exc:
            raise ProtocolError(f"there is none in {ANSWER_SECONDS:g} s") from exc
        if not self.codec.open:
            raise ProtocolError("the connection has ended")

    async def events(self) -> AsyncIterator[Any]:
        """All that the codec makes of what comes, until no more does. Raises ProtocolError."""
        for event in self._first:
            yield event
        while not self.codec.over:
            for event in await self._receive():
                yield event

    async def _receive(self) -> list[Any]:
        events = list(self.codec.receive(await self._reader.read(CHUNK)))
        await self.flush()  # its answers
        return events

    async def flush(self) -> None:
        """Send what the codec has; waits while the server does not take it. That he is gone is told by `receive`."""
        with contextlib.suppress(OSError):
            self._writer.write(self.codec.outgoing())
            await self._writer.drain()

    async def close(self) -> None:
        self.codec.close()
        self._writer.write(self.codec.outgoing())
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def dialled(url: str, trust: Trust, made: Callable[[str, str], Any]) -> AsyncIterator[Line]:
    """A session at a URL, begun; `made(host, target)` is its codec. Raises CommandError, ProtocolError, Refused."""
    line = await _connect(url, trust, made)
    try:
        await line.open()
        yield line
    finally:
        await line.close()


async def _connect(url: str, trust: Trust, made: Callable[[str, str], Any]) -> Line:
    found = urlsplit(url)
    secure = found.scheme == "https"
    where = f"{found.scheme}://{found.netloc}"
    context = trust.context() if secure else None
    loop, reader = asyncio.get_running_loop(), _Reader(CHUNK)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            transport, protocol = await loop.create_connection(
                lambda: asyncio.StreamReaderProtocol(reader), found.hostname or "", found.port or 0, ssl=context
            )
    except ssl.SSLCertVerificationError as exc:
        hint = "(hint: --streaming-ca FILE says whom to believe)"
        raise CommandError(f"cannot trust the streaming server at {where}: {exc.verify_message} {hint}") from exc
    except TimeoutError as exc:
        raise Unreachable(f"cannot reach the streaming server at {where}: no answer in {ANSWER_SECONDS:g} s") from exc
    except OSError as exc:
        raise Unreachable(f"cannot reach the streaming server at {where}: {exc.strerror or exc}") from exc
    codec = made(found.netloc, f"{found.path}?{found.query}" if found.query else found.path)
    return Line(codec, reader, asyncio.StreamWriter(transport, protocol, reader, loop))


def run(main: Coroutine[Any, Any, int], what: str) -> int:
    """Run a session to its end, and what clears up after it. Raises CommandError; `what` is what could not be done."""
    poll = selectors.PollSelector  # poll(2) takes regular files, which epoll does not
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(poll())) as runner:
            return runner.run(_until_signal(main))
    except BaseExceptionGroup as group:
        raise _explain(_first(group), what) from group
    except (client.Refused, ProtocolError, BrokenPipeError) as exc:
        raise _explain(exc, what) from exc


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _explain(error: BaseException, what: str) -> BaseException:
    match error:
        case client.Refused():
            return CommandError(f"cannot {what}: the daemon refuses: {error}")
        case ProtocolError():
            return CommandError(f"cannot {what}: the answer cannot be understood: {error}")
        case BrokenPipeError():
            return CommandError(f"cannot {what}: nobody reads the output any more", 128 + signal.SIGPIPE)
        case _:
            return error


async def _until_signal(main: Coroutine[Any, Any, int]) -> int:
    loop, came = asyncio.get_running_loop(), [0]
    task = asyncio.current_task()
    assert task is not None

    def end(number: int) -> None:
        came[0] = number
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, end, number)
    try:
        return await main
    except asyncio.CancelledError:
        if not came[0]:
            raise  # an interrupt, which the runner makes of it
        return 128 + came[0]
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)


async def read(descriptor: int, size: int) -> bytes:
    """Wait until something can be read, and read it."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        while True:
            ready.clear()
            await ready.wait()
            with contextlib.suppress(BlockingIOError):
                return os.read(descriptor, size)
    finally:
        loop.remove_reader(descriptor)


async def write(descriptor: int, data: bytes) -> None:
    """Write all of it, and let others go on meanwhile."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        while data:
            ready.clear()
            await ready.wait()
            with contextlib.suppress(BlockingIOError):  # somebody who shares it may have made it so
                data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]  # so much goes into a pipe that is ready
    finally:
        loop.remove_writer(descriptor)
