"""Failed calls in the words of the command line."""

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc

from holdfast.cli.errors import CommandError, Missing, Unreachable


@contextlib.contextmanager
def explained(whom: str, socket: str, hint: str) -> Iterator[None]:
    """What gRPC raises inside becomes a CommandError. `whom` is who serves that socket, as in "daemon"."""
    try:
        yield
    except grpc.RpcError as exc:
        raise _explain(exc, whom, socket, hint) from exc


def _explain(error: Any, whom: str, socket: str, hint: str) -> CommandError:
    code, details = error.code(), " ".join((error.details() or "").split())
    if code is grpc.StatusCode.UNAVAILABLE:
        if "connect" in details:
            return Unreachable(f"cannot reach the {whom} at {socket} (hint: {hint})")
        if not details.startswith("cannot"):  # from the transport, not from whoever serves
            return Unreachable(f"cannot finish the call: the {whom} at {socket} went away ({details})")
        return Unreachable(details)
    if code is grpc.StatusCode.NOT_FOUND:
        return Missing(details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and not details.startswith("cannot"):
        return CommandError("cannot finish the call: no answer in time (hint: holdfast --timeout SECONDS)")
    return CommandError(details or f"cannot finish the call: {code.name}")
