"""What the daemon asks a streamer for."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from holdfast.streaming.session import Request, Wanted


@dataclass(frozen=True, slots=True)
class Wish:
    """A session: "exec", "attach" or "forward". What a kind of session does not need is empty."""

    session: str
    request: Request
    rest: bytes  # what the client has sent behind his request
    wanted: Wanted
    ports: tuple[int, ...]
    addresses: tuple[str, ...]  # at which the pod's ports are; none for the loopback addresses of its network
    directory: Path
    shim: str
    service: str
    container: str
    attach: Mapping[str, str]  # who sends a copy of the output: socket, service, kind ("shim" or "logger")
    stdin: str  # the container's own
    stdin_once: bool
    idle_seconds: float  # 0 for as long as it lasts

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError for what is not a wish."""
        request = args["request"]
        headers = [(str(name), str(value)) for name, value in request["headers"]]
        wanted = args.get("wanted") or dict.fromkeys(("stdin", "stdout", "stderr", "tty"), False)
        return cls(
            session=args["session"],
            request=Request(request["method"], request["target"], headers),
            rest=base64.b64decode(args.get("rest", "")),
            wanted=Wanted(**wanted),
            ports=tuple(map(int, args.get("ports", ()))),
            addresses=tuple(map(str, args.get("addresses", ()))),
            directory=Path(args.get("directory", "")),
            shim=args.get("shim", ""),
            service=args.get("service", ""),
            container=args.get("container", ""),
            attach=args.get("attach") or {},
            stdin=args.get("stdin", ""),
            stdin_once=bool(args.get("stdin_once", False)),
            idle_seconds=float(args.get("idle_seconds", 0)),
        )

    @property
    def outputs(self) -> list[str]:
        """The output streams that there are."""
        wanted = self.wanted
        there = {"stdout": wanted.stdout, "stderr": wanted.stderr and not wanted.tty}
        return [name for name, asked in there.items() if asked]
