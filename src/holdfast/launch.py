"""holdfastd up to the point where threads may exist: configuration, the lock, the keeper; then the daemon proper."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

from holdfast import config as configuration
from holdfast import logs
from holdfast.linux import files, process, systemd
from holdfast.model.errors import FailedPrecondition, HoldfastError
from holdfast.runtime import keeper as keeper_client

LEFT: Final = "holdfastd.toml"
GRPC_EXPERIMENTS: Final = "-event_engine_listener"  # fewer threads between a call and its answer, see ADR 37


def main(argv: list[str] | None = None) -> int:
    """Run the daemon until SIGTERM or SIGINT; containers run on. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    os.umask(0o077)
    try:
        load = configuration.from_command_line(arguments)
        config = load()
        logs.configure(config.log_level, config.log_format)
        files.make_private(config.root)
        if not files.is_passage(config.state):  # which pods with users of their own have made of it
            files.make_private(config.state)
        if not config.socket.parent.exists():  # one that exists is somebody's, and keeps its mode
            files.make_private(config.socket.parent)
        lock = take_lock(config.root)
        _leave_configuration(config)
        limit = process.raise_file_limit()  # a few descriptors for each container; not theirs
        keeper_client.ensure_running(config.state, limit)
    except (HoldfastError, OSError) as exc:
        print(f"holdfastd: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return _serve(config, load, lock, limit)


def _leave_configuration(config: configuration.Config) -> None:
    """Beside the socket, for whoever finds the daemon down; the daemon itself never reads it."""
    with contextlib.suppress(OSError):
        files.write_atomic(config.state / LEFT, configuration.render(config).encode(), sync=False)


def take_lock(root: Path) -> int:
    """One daemon per root. Returns the locked descriptor; raises FailedPrecondition that names the holder."""
    path = root / "lock"
    try:
        lock = files.lock(path)
    except BlockingIOError as exc:
        holder = files.read_bounded(path, 64).decode(errors="replace").strip() or "unknown"
        raise FailedPrecondition(f"cannot use root {root}: holdfastd with pid {holder} is using it") from exc
    with contextlib.suppress(OSError):  # a full disk: it is the lock that counts, whoever is named in it
        own = f"{os.getpid()}\n".encode()
        os.pwrite(lock, own, 0)  # over what is there, whose block is not given away
        os.ftruncate(lock, len(own))
    return lock


def _serve(config: configuration.Config, load: Any, lock: int, limit: int) -> int:
    # Imported here: gRPC starts threads, and the keeper had to be started before any existed.
    import asyncio

    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    from holdfast.daemon import Daemon

    try:
        asyncio.run(Daemon(config, load, limit).run())
    except HoldfastError as exc:
        print(f"holdfastd: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        systemd.notify("STOPPING=1")
        os.close(lock)
    return 0
