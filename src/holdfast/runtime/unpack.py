"""Unpacking through the keeper: each layer in a worker of its own, locked into its target directory."""

import asyncio
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


def through(keeper: Keeper) -> Unpack:
    """A function (blob, snapshot directory, lower layers) that unpacks into `<snapshot directory>/fs`."""

    async def unpack(blob: Path, place: Path, lowers: list[Path]) -> UnpackResult:
        merged = place / "merged"
        files.mkdir(merged, 0o700, exist_ok=True)
        args: dict[str, object] = {
            "target": str(place / "fs"),
            "work": str(place / "work"),
            "merged": str(merged),
            "lowers": [str(lower) for lower in lowers],
        }
        try:
            return _result(await _run(keeper, blob, args), blob)
        finally:
            files.rmdir(merged)

    return unpack


async def _run(keeper: Keeper, blob: Path, args: dict[str, object]) -> bytes:
    """Fork the worker and read its one message; b"" when it ended without a word."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
            try:
                name = f"unpack-{secrets.token_hex(4)}"
                await keeper.fork("unpack", name, args, fds=[source, theirs.fileno()])
            finally:
                os.close(source)
        said = bytearray()
        async with asyncio.timeout(UNPACK_SECONDS):
            while data := await asyncio.get_running_loop().sock_recv(ours, REPLY_BYTES):
                said += data
        return bytes(said)


def _result(said: bytes, blob: Path) -> UnpackResult:
    if not said:
        raise Unavailable(f"cannot unpack {blob.name}: the unpacker died")
    message = json.loads(said)
    if message.get("error") == "invalid":
        raise InvalidArgument(f"cannot unpack layer {blob.name}: {message['message']}")
    if "error" in message:
        raise OSError(message["errno"], message["message"])
    return UnpackResult(message["diff_id"], message["bytes"], message["inodes"], message.get("shape", ""))
