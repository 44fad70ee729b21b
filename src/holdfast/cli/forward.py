"""port-forward: local ports whose connections end in a pod."""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import click

from holdfast.cli import targets
from holdfast.cli.agent_client import agent_option, namespace_option
from holdfast.cli.completion import pod_names
from holdfast.cli.errors import CommandError
from holdfast.cli.streams import CHUNK, LOST, Line, Trust, dialled, run, trust_options
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.streaming.client import Failed, Forward, Room
from holdfast.streaming.session import Ended, Received

MOST_WAITING: Final = 32  # pieces of one connection; a server that heeds its window never sends as many
LOCALHOST: Final = ("127.0.0.1", "::1")


class Pair(NamedTuple):
    """A local port, 0 for any that is free, and the pod's."""

    local: int
    remote: int


@click.command("port-forward")
@click.option(
    "--address", default="localhost", show_default=True, metavar="ADDRESS[,ADDRESS...]", help="Where to listen."
)
@trust_options
@namespace_option
@agent_option
@click.argument("pod", shell_complete=pod_names)
@click.argument("ports", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
@click.pass_context
def port_forward_command(
    ctx: click.Context, address: str, ca: str, insecure: bool, namespace: str, agent: str, pod: str,
    ports: tuple[str, ...],
) -> int:  # fmt: skip
    """Forward local ports to ports of a pod, on its own loopback, until interrupted.

    LOCAL and REMOTE are the same if one is given; ":REMOTE" takes a local port that is free. Any number of connections
    may be open at once. They do not depend on the daemon: they go on while it is down or restarts. What a connection
    fails of is told on stderr, and ends that connection only. Of a pod of the agent's (pod/NAME) it is the sandbox that
    it has now.

    Exit status: 0 when interrupted, 1 when the pod is gone or nothing could be forwarded.

    \b
    holdfast port-forward web 8080:80 8443:443
    holdfast port-forward --address 127.0.0.1,10.0.0.5 web :80
    """
    pairs, addresses = [pair_of(text) for text in ports], tuple(filter(None, address.split(",")))
    daemon, found = targets.sandbox(ctx, targets.Wanted(pod, namespace, agent))
    request = pb.PortForwardRequest(pod_sandbox_id=found, port=sorted({one.remote for one in pairs}))
    url = daemon.call(daemon.runtime.PortForward, request).url
    what = f"forward to pod {pod}"
    try:
        return run(_forward(url, Trust(ca, insecure), addresses, pairs, what), what)
    except KeyboardInterrupt:
        return 0


def pair_of(text: str) -> Pair:
    """As kubectl has it: "5000", "8888:5000", ":5000", "0:5000". Raises CommandError."""
    local, colon, remote = text.rpartition(":")
    if not colon:
        local = remote
    if not remote.isdecimal() or not (local or "0").isdecimal() or not 0 < int(remote) < 65536 > int(local or "0"):
        raise CommandError(f"cannot forward {text!r}: it is not [LOCAL:]REMOTE (hint: as in 8080:80)")
    return Pair(int(local or "0"), int(remote))


async def _forward(url: str, trust: Trust, addresses: Sequence[str], pairs: Sequence[Pair], what: str) -> int:
    async with dialled(url, trust, Forward) as line, asyncio.TaskGroup() as group:
        tunnel = Tunnel(line, group)
        with contextlib.ExitStack() as stack:
            for listener in _listen(addresses, pairs):
                stack.callback((await tunnel.serve(*listener)).close)
            await tunnel.carry()
        raise CommandError(f"cannot {what} any more: {LOST}")


def _listen(addresses: Sequence[str], pairs: Sequence[Pair]) -> list[tuple[socket.socket, int]]:
    """Listeners at each address, with the pod's ports that they are for. Raises CommandError, and leaves none then."""
    with contextlib.ExitStack() as undo:
        found = []
        for pair in pairs:
            for address in addresses:
                for listener in _listeners(address, pair):
                    undo.callback(listener.close)
                    found.append((listener, pair.remote))
        undo.pop_all()
        return found


def _listeners(address: str, pair: Pair) -> list[socket.socket]:
    """For "localhost" those of IPv4 and IPv6 that can be had."""
    found: list[socket.socket] = []
    local, problem = pair.local, ""
    for host in LOCALHOST if address == "localhost" else (address,):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, local), family=family, backlog=128)
        except OSError as exc:
            problem = problem or exc.strerror or str(exc)
            continue
        local = listener.getsockname()[1]  # IPv6 gets the port that IPv4 was given
        print(f"Forwarding from {f'[{host}]' if ':' in host else host}:{local} -> {pair.remote}", flush=True)
        found.append(listener)
    if not found:
        hint = f"(hint: :{pair.remote} takes a port that is free)"
        raise CommandError(f"cannot listen at {address}:{pair.local}: {problem} {hint}")
    return found


class _Local:
    """A connection that somebody has made to us."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, remote: int) -> None:
        self.reader = reader
        self.writer = writer
        self.remote = remote
        self.came: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING)  # for it; b"" is the end
        self.room = asyncio.Event()

    def reset(self) -> None:
        """End it so that nobody takes it for an end that was meant."""
        linger = struct.pack("ii", 1, 0)  # socket(7): on, for no time
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


class Tunnel:
    """Local connections, and the one to the daemon that carries them all."""

    def __init__(self, line: Line, group: asyncio.TaskGroup) -> None:
        self._line = line
        self._codec: Forward = line.codec
        self._group = group
        self._locals: dict[int, _Local] = {}

    async def serve(self, listener: socket.socket, remote: int) -> asyncio.Server:
        """Take what connects to `listener` to a port of the pod."""
        port = listener.getsockname()[1]

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            print(f"Handling connection for {port}", flush=True)
            self._group.create_task(self._connect(_Local(reader, writer, remote)), name=f"connection to {remote}")

        return await asyncio.start_server(connected, sock=listener)

    async def carry(self) -> None:
        """Hand on what comes from the daemon, until no more does."""
        async for event in self._line.events():
            if (local := self._locals.get(event.connection)) is None:
                continue
            match event:
                case Received():
                    await local.came.put(event.data)
                case Ended():
                    await local.came.put(b"")
                case Room():
                    local.room.set()
                case Failed():
                    error = " ".join(event.error.split())
                    print(f"holdfast: cannot forward to port {local.remote}: {error}", file=sys.stderr)
                    local.reset()
                    local.room.set()
                    await local.came.put(b"")

    async def _connect(self, local: _Local) -> None:
        number = self._codec.connect(local.remote)
        self._locals[number] = local
        try:
            await self._line.flush()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._send(number, local), name=f"to {local.remote}")
                both.create_task(self._write(number, local), name=f"from {local.remote}")
        except* OSError:  # whoever has connected is gone
            local.writer.transport.abort()
        finally:
            self._codec.drop(number)
            del self._locals[number]
            while not local.came.empty():
                local.came.get_nowait()  # whoever waits to hand on more of it goes on
            local.writer.close()
            await self._line.flush()

    async def _send(self, number: int, local: _Local) -> None:
        while True:
            while not (room := self._codec.room(number)):
                local.room.clear()
                await local.room.wait()
            if not (data := await local.reader.read(min(room, CHUNK))):
                break
            self._codec.send(number, data)
            await self._line.flush()
        self._codec.end(number)
        await self._line.flush()

    async def _write(self, number: int, local: _Local) -> None:
        while data := await local.came.get():
            local.writer.write(data)
            await local.writer.drain()
            self._codec.consumed(number, len(data))
            await self._line.flush()
        local.writer.write_eof()
