"""`holdfast agent`: a process of its own, the client of a runtime. It ends by SIGTERM or SIGINT; pods run on."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

from holdfast import logs
from holdfast.agent.pod.quantity import Quantity
from holdfast.agent.sync.agent import Agent, Settings, node_of
from holdfast.agent.sync.api import SOCKET, Api
from holdfast.agent.sync.kept import Retention
from holdfast.agent.sync.rotation import Limits
from holdfast.linux import files, systemd
from holdfast.model.cgroups import DRIVERS
from holdfast.model.errors import Unavailable

DAY: Final = 24 * 3600 * 1_000_000_000  # ns


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    os.umask(0o022)
    options = _parser().parse_args(argv)
    logs.configure(options.log_level, "text")
    try:
        files.make_private(options.root)
        lock = files.lock(options.root / "lock")
    except BlockingIOError:
        print(f"holdfast: cannot use root {options.root}: another agent is using it", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as exc:
        print(f"holdfast: cannot use root {options.root}: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        asyncio.run(_serve(options))
    except Unavailable as exc:
        print(f"holdfast: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        os.close(lock)
    return 0


def _parser() -> argparse.ArgumentParser:
    """`holdfast agent` says all of them; what they are is in its help."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.agent", description="See holdfast agent --help.")
    for name in ("socket", "log-root", "cgroup-root", "log-level"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("root", "manifests"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--node-name", default="")
    parser.add_argument("--checkpoint-quota", required=True, type=size)
    parser.add_argument("--checkpoint-days", required=True, type=float)
    parser.add_argument("--cgroup-driver", default="", choices=DRIVERS)
    parser.add_argument("--metrics-address", default="", type=address)
    parser.add_argument("--container-log-max-size", required=True, type=size)
    parser.add_argument("--container-log-max-files", required=True, type=int)
    parser.add_argument("--container-log-monitor-interval", required=True, type=float)
    return parser


def size(text: str) -> int:
    """Raises ValueError; argparse says it by this function's name."""
    return Quantity.parse(text).whole


def address(text: str) -> str:
    """ "host:port", or "" for nowhere. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if text and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(text)
    return text


async def _serve(options: argparse.Namespace) -> None:
    node = node_of(options.node_name, options.log_root, options.cgroup_root)
    logs_of_containers = Limits(
        options.container_log_max_size, options.container_log_max_files, options.container_log_monitor_interval
    )
    settings = Settings(
        options.socket,
        options.root,
        (options.manifests,),
        node,
        options.cgroup_driver,
        logs_of_containers,
        options.metrics_address,
        Retention(options.checkpoint_quota, int(options.checkpoint_days * DAY)),
    )
    agent = Agent(settings)
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.ExitStack() as stack:
        if settings.metrics_address:
            from holdfast.metrics import serve  # nobody else is to pay for it

            stack.callback(serve(settings.metrics_address, agent.measures.all))
        systemd.notify("READY=1")
        stack.enter_context(contextlib.suppress(asyncio.CancelledError))
        async with asyncio.TaskGroup() as group:
            group.create_task(Api(agent).serve(options.root / SOCKET), name="the agent's socket")
            group.create_task(agent.run(), name="agent")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
