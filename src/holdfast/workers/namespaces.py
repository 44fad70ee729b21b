"""Makes the namespaces of a pod that has its own users: a process of one thread, which the daemon is not, has to.

The others are made inside the user namespace and so belong to it: whoever is root there may set up the pod's network
and its sysctls, and those of nobody else. All of them are pinned from outside, where they are found by the rest.

With "try" it makes none that stay: it finds out whether this host can.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, files, namespace, null, userns
from holdfast.linux.inject import crashpoint
from holdfast.model.spec import Mount
from holdfast.model.userns import UserNamespace
from holdfast.workers.context import Context
from holdfast.workers.shim import rootfs
from holdfast.workers.shim.loop import Failed
from holdfast.workers.shim.oci import Runtime

USER: Final = "user"
# What a kernel or a filesystem says that cannot do such a thing. All else says nothing of what it can do.
CANNOT: Final = frozenset({errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


def pin(users: UserNamespace, kinds: list[str], directory: Path, hostname: str) -> None:
    """Make them and pin each at `directory/<kind>`. Raises OSError; what was pinned by then is the caller's to undo."""
    with userns.child([users.uid_map], [users.gid_map], lambda: namespace.move(kinds, hostname)) as pid:
        for kind in (USER, *kinds):
            namespace.pin_existing(f"/proc/{pid}/ns/{kind}", directory / kind)
            crashpoint("users.pinned")


def try_mounts(users: UserNamespace, layers: list[str], scratch: Path) -> str:
    """Why layers cannot be shown through a mapping, on the filesystem they are on; "" when they can."""
    overlay = Mount("overlay", "overlay", "", (f"lowerdir={':'.join(layers)}",))
    try:
        os.close(rootfs.open_overlay(overlay, users, scratch))
    except OSError as exc:
        if exc.errno not in CANNOT:
            raise
        return exc.strerror or str(exc)
    return ""


def try_runtime(users: UserNamespace, runtime: Runtime, bundle: Path, spec: dict[str, Any]) -> str:
    """Why the OCI runtime cannot run the container of a bundle in namespaces as a pod has them; "" when it can.

    Nothing is left of it, the bundle neither, whether or not whoever wanted to know still lives.
    """
    kinds = ["net", "ipc", "uts"]
    try:
        with userns.child([users.uid_map], [users.gid_map], lambda: namespace.move(kinds)) as pid:
            named = {"net": "network"}
            paths = [{"type": named.get(kind, kind), "path": f"/proc/{pid}/ns/{kind}"} for kind in (USER, *kinds)]
            linux = {**spec["linux"], "namespaces": [*spec["linux"]["namespaces"], *paths]}
            for name, (_, host, size) in (("uidMappings", users.uid_map), ("gidMappings", users.gid_map)):
                linux[name] = [{"containerID": 0, "hostID": host, "size": size}]
            data = json.dumps({**spec, "linux": linux}).encode()
            files.write_atomic(bundle / "config.json", data, sync=False)
            own = null.open_own()
            runtime.run("run", "--bundle", str(bundle), bundle.name, fds=dict.fromkeys((0, 1, 2), own))
    except Failed as exc:
        with contextlib.suppress(Failed):
            runtime.run("delete", "--force", bundle.name)
        return str(exc)
    except OSError as exc:
        if exc.errno not in CANNOT:
            raise
        return exc.strerror or str(exc)
    finally:
        cgroup.remove(spec["linux"]["cgroupsPath"])
        files.remove_tree(bundle)
    return ""


def answer(args: Mapping[str, Any]) -> dict[str, object]:
    users = UserNamespace(**args["users"])
    if args["op"] == "pin":
        pin(users, args["kinds"], Path(args["directory"]), args["hostname"])
        return {}
    if args["op"] == "try mounts":
        return {"problem": try_mounts(users, args["layers"], Path(args["scratch"]))}
    runtime = Runtime.from_args(args["runtime"], -1)
    return {"problem": try_runtime(users, runtime, Path(args["bundle"]), args["spec"])}


def main(context: Context) -> None:
    """fds: a socket for the one message that tells how it went: {...} or {"errno", "message"}."""
    (result_fd,) = context.fds
    context.ready()
    with socket.socket(fileno=result_fd) as result:
        try:
            found = answer(context.args)
        except OSError as exc:
            found = {"errno": exc.errno or errno.EIO, "message": exc.strerror or str(exc)}
        result.sendall(json.dumps(found).encode())
