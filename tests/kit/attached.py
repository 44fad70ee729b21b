"""One who is attached to a container, as a streamer is: FIFOs of his own, and the call that has copies sent to them."""

import os
import re
import select
import time
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from holdfast.linux import files
from holdfast.proto import task_pb2
from holdfast.runtime.task import V2
from holdfast.ttrpc.client import Client
from holdfast.workers.shim.attach import ATTACH, DIRECTORY

LOST = re.compile(rb"\r\nholdfast: lost (\d+) bytes of output: the reader was too slow\r\n")
UNSURE = b"\r\nholdfast: output may be lost here: what copied it was killed\r\n"
SECONDS = 60.0


class Reader:
    """`streams` are those that he has FIFOs for."""

    def __init__(self, bundle: Path, name: str, *streams: str) -> None:
        self.directory = bundle / DIRECTORY / name
        self.directory.mkdir(parents=True, mode=0o700)
        self.fds: dict[str, int] = {}
        self._kept: list[int] = []
        for stream in streams or ("stdout",):
            files.fifo(self.directory / stream)
            self.fds[stream] = os.open(self.directory / stream, os.O_RDONLY | os.O_NONBLOCK)

    async def attach(self, socket: Path, container: str, service: str = V2, method: str = "Update") -> None:
        """Ask a shim, or a logger, for copies. Raises TtrpcError."""
        client = await Client.connect(socket)
        request = task_pb2.UpdateTaskRequest(id=container, annotations={ATTACH: str(self.directory)})
        try:
            await client.call(service, method, request, Empty, 10)
        finally:
            client.close()

    def keep(self) -> None:
        """See no end when the shim is killed."""
        self._kept += [os.open(self.directory / stream, os.O_WRONLY) for stream in self.fds]

    def release(self) -> None:
        while self._kept:
            os.close(self._kept.pop())

    def some(self, size: int, stream: str = "stdout") -> bytes:
        """The next bytes: so many, or what there is before the end."""
        found = bytearray()
        poll = select.poll()
        poll.register(self.fds[stream], select.POLLIN)
        deadline = time.monotonic() + SECONDS
        while len(found) < size:
            left = deadline - time.monotonic()
            assert left > 0, f"only {len(found)} bytes of {size} have come: {bytes(found[-200:])!r}"
            if poll.poll(left * 1000):
                if not (data := os.read(self.fds[stream], min(65536, size - len(found)))):
                    break
                found += data
        return bytes(found)

    def rest(self, stream: str = "stdout") -> bytes:
        """Everything up to the end."""
        return self.some(1 << 40, stream)

    def until(self, words: bytes, stream: str = "stdout") -> bytes:
        """Everything up to these words, and them."""
        found = b""
        while not found.endswith(words):
            data = self.some(1, stream)
            assert data, f"ended before {words!r}: {found[-200:]!r}"
            found += data
        return found

    def close(self) -> None:
        self.release()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def written(received: bytes) -> int:
    """How much the container has written: what was received, without the words about losses, and what they say."""
    return len(LOST.sub(b"", received)) + sum(int(lost[1]) for lost in LOST.finditer(received))


def type_in(stdin: Path, data: bytes) -> None:
    """As somebody does who attaches, writes, and goes."""
    fd = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)
