"""Unpacking through the keeper: each layer in a worker of its own, locked into its target directory."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.model.errors import InvalidArgument, Unavailable
from holdfast.model.image import UnpackResult
from holdfast.runtime.keeper import Keeper

Unpack = Callable[[Path, Path, list[Path]], Awaitable[UnpackResult]]

REPLY_BYTES: Final = 64 * 1024
UNPACK_SECONDS: Final = 1800.0


class Unpacker:
    """Raises InvalidArgument for what no honest archive asks for, OSError for what the machine is to blame for."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def image_layer(self, blob: Path, place: Path, lowers: list[Path]) -> UnpackResult:
        """Unpack a layer of an image into `<place>/fs`; `place` is the snapshot's directory."""
        return await self._overlaid(blob, place, lowers, [])

    async def writable_layer(self, blob: Path, deleted: Path | None, place: Path, lowers: list[Path]) -> None:
        """The same with what a checkpoint has kept of a container's; without the list it has whiteouts."""
        await self._overlaid(blob, place, lowers, [] if deleted is None else [deleted])

    async def volume(self, blob: Path, directory: Path) -> None:
        """Fill a directory that is there, and take its owner, mode and times from the archive."""
        args: dict[str, object] = {"target": str(directory), "work": "", "merged": "", "lowers": [], "volume": True}
        _result(await _run(self._keeper, args, [blob]), blob, directory)

    async def _overlaid(self, blob: Path, place: Path, lowers: list[Path], deleted: list[Path]) -> UnpackResult:
        merged = place / "merged"
        files.mkdir(merged, 0o700, exist_ok=True)
        args: dict[str, object] = {
            "target": str(place / "fs"),
            "work": str(place / "work"),
            "merged": str(merged),
            "lowers": [str(lower) for lower in lowers],
        }
        try:
            return _result(await _run(self._keeper, args, [blob, *deleted]), blob, place)
        finally:
            files.rmdir(merged)


async def _run(keeper: Keeper, args: dict[str, object], sources: list[Path]) -> bytes:
    """Fork the worker and read its one message; b"" when it ended without a word."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs, contextlib.ExitStack() as opened:
            blob, *others = [os.open(source, os.O_RDONLY | os.O_CLOEXEC) for source in sources]
            for descriptor in (blob, *others):
                opened.callback(os.close, descriptor)
            await keeper.fork("unpack", f"unpack-{secrets.token_hex(4)}", args, fds=[blob, theirs.fileno(), *others])
        said = bytearray()
        async with asyncio.timeout(UNPACK_SECONDS):
            while data := await asyncio.get_running_loop().sock_recv(ours, REPLY_BYTES):
                said += data
        return bytes(said)


def _result(said: bytes, blob: Path, place: Path) -> UnpackResult:
    if not said:
        raise Unavailable(f"cannot unpack {blob.name}: the unpacker died")
    message = json.loads(said)
    if message.get("error") == "invalid":
        raise InvalidArgument(f"cannot unpack layer {blob.name}: {message['message']}")
    if "error" in message:
        raise OSError(message["errno"], message["message"], str(place / blob.name))
    return UnpackResult(message["diff_id"], message["bytes"], message["inodes"], message.get("shape", ""))
