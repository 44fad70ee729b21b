"""Work on paths that are a user's: on a network filesystem whose server has gone that may take for ever.

So it is done by a process that somebody else can give up and kill, and that has nothing else to lose. It is given a
list of things and says of each, in a line of JSON, what came of it; after an {"errno", "message", "of_ids"} no more.

    directory  {path}                                made, with its parents, as far as it is not there -> {}
    source     {path, holder, label, uids, gids}     the same; what it is -> {path, propagation, place}
    stage      {path, target, recursive_read_only, uids, gids}   mounted at `target`, a part of it if it is a bind -> {}
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from holdfast.linux import files, mount, selinux, userns
from holdfast.linux.inject import crashpoint
from holdfast.model.spec import Mount
from holdfast.workers.context import Context

UMASK: Final = 0o022  # what is made for a container is 0755, whatever our own umask is


class NotMapped(OSError):
    """Not the path is at fault, but the mapping of ids that was asked for it."""


def main(context: Context) -> None:
    """fds: a socket on which the list comes in, and goes out what there is to say."""
    (result_fd,) = context.fds
    context.ready()
    os.umask(UMASK)
    work = WORK[context.args["op"]]
    with socket.socket(fileno=result_fd) as result, result.makefile("rb") as given:
        for item in json.load(given):
            try:
                said = work(item)
            except OSError as exc:
                said = {"errno": exc.errno or errno.EIO, "message": exc.strerror or str(exc)}
                said["of_ids"] = isinstance(exc, NotMapped)
            result.sendall(json.dumps(said).encode() + b"\n")
            if "errno" in said:
                return


def make_directory(item: Mapping[str, Any]) -> dict[str, Any]:
    crashpoint("path.made")
    files.mkdir(item["path"], parents=True, exist_ok=True)
    return {}


def look_at(item: Mapping[str, Any]) -> dict[str, Any]:
    """As containerd: what is missing becomes a directory, and links are followed once, here."""
    try:
        os.stat(item["path"])
    except FileNotFoundError:
        make_directory(item)
    path = os.path.realpath(item["path"], strict=True)
    propagation, place = _holder(path) if item["holder"] else ("", "")
    if item["label"]:
        selinux.relabel(path, item["label"])
    if item["uids"]:  # now rather than when the container is to start
        with _cloned(path, item):
            pass
    return {"path": path, "propagation": propagation, "place": place}


def _holder(path: str) -> tuple[str, str]:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        held = mount.holding(descriptor)
    finally:
        os.close(descriptor)
    return held.propagation, held.target


def stage(item: Mapping[str, Any]) -> dict[str, Any]:
    with _cloned(item["path"], item) as descriptor:
        place_for(item["target"], is_directory=os.path.isdir(item["path"]))
        mount.attach(descriptor, item["target"])
    crashpoint("path.staged")
    return {}


def place_for(target: str, *, is_directory: bool) -> None:
    """Something to mount upon."""
    files.mkdir(os.path.dirname(target), 0o700, exist_ok=True)
    if is_directory:
        files.mkdir(target, 0o700, exist_ok=True)
    else:
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


@contextlib.contextmanager
def _cloned(path: str, item: Mapping[str, Any]) -> Iterator[int]:
    """A detached copy of what is mounted there, as the item wants it. Of mounts below it the ids stay the same."""
    descriptor = mount.open_detached(Mount("bind", path, options=("rbind",)))
    try:
        if item.get("recursive_read_only"):
            mount.set_attributes(descriptor, mount.MS_RDONLY, recursive=True)
        if item["uids"]:
            _map_ids(descriptor, item)
        yield descriptor
    finally:
        os.close(descriptor)


def _map_ids(descriptor: int, item: Mapping[str, Any]) -> None:
    try:
        with userns.opened(item["uids"], item["gids"]) as namespace:
            mount.idmap(descriptor, namespace)
    except OSError as exc:
        raise NotMapped(exc.errno, exc.strerror) from exc


WORK: Final = {"directory": make_directory, "source": look_at, "stage": stage}
