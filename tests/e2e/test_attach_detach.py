"""10,000 clients attach and leave: nothing stays of them, and memory neither (CVE-2022-23471, CVE-2025-64329)."""

import base64
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kit import invariants, resources
from kit.node import SECONDS, Node, until
from wsproto.connection import CLIENT, Connection
from wsproto.events import BytesMessage, CloseConnection

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper
from holdfast.streaming.spdy import Data, Encoder, GoAway, Reset, SynStream

SHORT, MANY = 60, 10_000
WARM = 40  # sessions after which caches are filled, and what they take is no leak
GROWTH = 3 * 1024  # KiB that each process may have grown by in the end, whatever their number
ECHO = "while read -r line; do echo got $line; done"


class Client:
    """A connection after its upgrade."""

    def __init__(self, url: str, headers: str) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname or "", where.port or 0), SECONDS)
        self.socket.sendall(f"GET {where.path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n".encode())
        self.received = b""
        answer = self._until(lambda: b"\r\n\r\n" in self.received and self.received.partition(b"\r\n\r\n")[0])
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        self.received = self.received.partition(b"\r\n\r\n")[2]

    def _until(self, found: Callable[[], bytes]) -> bytes:
        while not (answer := found()):
            piece = self.socket.recv(65536)
            assert piece, f"closed after {self.received!r}"
            self.received += piece
        return answer

    def hears(self, words: bytes) -> None:
        """Waits for output, in whatever frame it comes; it is short enough to come in one."""
        self._until(lambda: words if words in self.received else b"")

    def reset(self) -> None:
        """As a machine that is switched off."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class WebSocket(Client):
    def __init__(self, url: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        super().__init__(
            url,
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
        )
        self._protocol = Connection(CLIENT)

    def types(self, line: bytes) -> None:
        self.socket.sendall(self._protocol.send(BytesMessage(b"\0" + line)))

    def leaves(self) -> None:
        """With the words of the protocol, to which the server has the last one."""
        self.socket.sendall(self._protocol.send(CloseConnection(1000)))
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
        self.socket.close()


class Spdy(Client):
    def __init__(self, url: str) -> None:
        super().__init__(url, "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n")
        self._encoder = Encoder()
        opened = [SynStream(2 * at + 1, {"streamtype": kind}) for at, kind in enumerate(("error", "stdin", "stdout"))]
        self.socket.sendall(b"".join(map(self._encoder.encode, opened)))

    def types(self, line: bytes) -> None:
        self.socket.sendall(self._encoder.encode(Data(3, line)))

    def leaves(self) -> None:
        """As kubectl."""
        gone = [*(Reset(stream, 5) for stream in (1, 3, 5)), GoAway(0)]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(b"".join(map(self._encoder.encode, gone)))
        self.socket.close()


def processes(one: Node) -> dict[str, int]:
    """Those that outlive a session, by what they are."""
    assert one.process is not None
    found = {"daemon": one.process.pid, "keeper": resources.keeper_pid(one)}
    return found | {worker.kind: worker.pid for worker in keeper.workers(one.state) if worker.kind == "shim"}


def held(one: Node) -> dict[str, int]:
    """Descriptors, threads and children of each of them, and what sessions have on disk."""
    found = {}
    for name, pid in processes(one).items():
        found[f"{name}'s descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        found[f"{name}'s children"] = len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    found["workers"] = len(keeper.workers(one.state))
    found["directories"] = len(list((one.state / "pods").glob("*/*/attach/*")))
    return found


def grown(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What there is more of. It may be less: at the first look a session that was over was not taken apart yet."""
    return {name: many for name, many in now.items() if many > before.get(name, 0)}


def memory(one: Node) -> dict[str, int]:
    """KiB that are each one's own."""
    found = {}
    for name, pid in processes(one).items():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        private = (line.split() for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
        found[name] = sum(int(size) for _, size, _ in private)
    return found


def attach(one: Node, container: str, turn: int) -> None:
    """Attached by one protocol or the other, seen to work, and left in one way or the other."""
    url = one.call("Attach", pb.AttachRequest(container_id=container, stdin=True, stdout=True)).url
    client = WebSocket(url) if turn % 2 else Spdy(url)
    try:
        client.types(f"{turn}\n".encode())
        client.hears(f"got {turn}\n".encode())
        (client.leaves, client.reset, client.socket.close)[turn % 3]()
    finally:
        client.socket.close()


@pytest.mark.parametrize("count", [SHORT, pytest.param(MANY, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
def test_attached_and_left(life: Node, count: int) -> None:
    pod = life.run_pod()
    container = life.run(pod, ECHO, stdin=True)
    pid, started = life.pid(container), process.start_time(life.pid(container))
    for turn in range(WARM):
        attach(life, container, turn)
    until(lambda: held(life)["workers"] == 1, "the first sessions to be over")
    before, small = held(life), memory(life)
    for turn in range(WARM, count):
        attach(life, container, turn)
    until(lambda: not grown(held(life), before), f"nothing more than there was, {before}")
    more = {name: size - small[name] for name, size in memory(life).items()}
    print(f"{count} times; held: {before}; KiB: {small}, grown by {more}")
    assert max(more.values()) < GROWTH, more
    assert life.pid(container) == pid and process.start_time(pid) == started
    lines = life.container_log(container).decode().splitlines()
    assert [line.split()[-1] for line in lines] == [str(turn) for turn in range(count)], "each was heard once"
    life.remove_pod(pod)
    invariants.check(life)
