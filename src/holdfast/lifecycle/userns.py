"""Pods with users of their own: whether this host can, their namespaces, and images shown, or given, to those users.

What the kernel and each OCI runtime can do is found out by doing it, when it is first asked for, and kept for as
long as this daemon lives; what they cannot is tried again after a while. What is made for a pod is taken apart like
everything else of it (lifecycle.cleanup).
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from holdfast.lifecycle.bundle import hostname
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.tasks import in_thread
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import HoldfastError, Unimplemented
from holdfast.model.spec import Mount
from holdfast.model.userns import UserNamespace
from holdfast.runtime import errand
from holdfast.runtime.handlers import Handler, fingerprint, probe_spec
from holdfast.runtime.keeper import Keeper
from holdfast.snapshots.overlay import Snapshots

log = logging.getLogger(__name__)

SHIFTED: Final = "shifted"  # in a snapshot's directory: its files were given to the pod's users
MAKE_SECONDS: Final = 30.0
TRY_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 60.0  # for which what cannot be done is not tried again
SHIFT_SECONDS: Final = 1800.0
PASS: Final = 0o011
_TRIED: Final = UserNamespace(uid=1 << 16, gid=1 << 16, uids=1 << 16, gids=1 << 16)
_FIELD: Final = "config.linux.security_context.namespace_options.userns_options"


class Users:
    """User namespaces of this node's pods. Everything that needs a process of one thread is a worker's."""

    def __init__(self, keeper: Keeper, snapshots: Snapshots, layout: Layout) -> None:
        self._keeper = keeper
        self._snapshots = snapshots
        self._layout = layout
        self._trying = asyncio.Lock()
        self._asking: dict[str, asyncio.Task[bool]] = {}  # by handler
        self._found: dict[str, tuple[str, float]] = {}  # by what was tried: what was in the way, if anything, and when

    async def require(self, handler: Handler) -> None:
        """Raises Unimplemented that says why pods of this handler cannot have users of their own."""
        if problem := await self._problem(handler):
            raise Unimplemented(f"{_FIELD}: runtime handler {handler.name} cannot do it here: {problem}")

    async def supported(self, handler: Handler) -> bool:
        """Whether pods of this handler can, volumes included. What cannot be found out at once is no, for now."""
        asking = self._asking.get(handler.name)
        if asking is None or asking.done():
            loop, name = asyncio.get_running_loop(), f"users of {handler.name}"
            asking = self._asking[handler.name] = loop.create_task(self._supported(handler), name=name)
        done, _ = await asyncio.wait([asking], timeout=ANSWER_SECONDS)
        return bool(done) and asking.result()

    async def _supported(self, handler: Handler) -> bool:
        try:
            return not await self._problem(handler) and await self._mounts_can_be_mapped()
        except (HoldfastError, OSError) as exc:
            log.warning("cannot find out whether pods of %s can have users of their own: %s", handler.name, exc)
            return False

    async def make(self, pod: Pod, kinds: Sequence[str]) -> None:
        """Pin the user namespace of a pod that has one, and in it those of `kinds`. Its directory is there."""
        if (users := pod.users) is None:
            return
        directory, pinned = self._layout.pod(pod.meta.id), self._layout.namespaces(pod.meta.id)
        await in_thread(self._open_the_way, directory, users)
        await in_thread(files.make_private, pinned)
        args: dict[str, object] = {
            "op": "pin",
            "users": asdict(users),
            "kinds": list(kinds),
            "directory": str(pinned),
            "hostname": hostname(pod.config),
        }
        what = f"make the namespaces of pod {pod.meta.id}"
        await errand.run(self._keeper, "namespaces", args, what, MAKE_SECONDS)
        crashpoint("run.users")

    async def own(self, container: Container) -> None:
        """Give the image's files to the pod's users where they cannot be shown as theirs; for a new snapshot."""
        users, key = container.pod.users, container.meta.snapshot_key
        if users is None or await self._mounts_can_be_mapped():
            return
        place = self._snapshots.place(key).parent
        merged = place / "merged"
        await in_thread(files.mkdir, merged, 0o700, exist_ok=True)
        args: dict[str, object] = {
            "users": asdict(users),
            "target": str(place / "fs"),
            "work": str(place / "work"),
            "merged": str(merged),
            "lowers": [str(layer) for layer in self._snapshots.layers(key)[1:]],
        }
        what = f"give the image of container {container.meta.id} to the users of its pod"
        try:
            await errand.run(self._keeper, "shift", args, what, SHIFT_SECONDS)
        finally:
            await in_thread(files.rmdir, merged)
        await in_thread(files.write_atomic, place / SHIFTED, b"")
        crashpoint("create.shifted")

    def shown(self, container: Container, mounts: Sequence[Mount]) -> list[Mount]:
        """The mounts of a container's snapshot as its pod's users are to see them."""
        users, key = container.pod.users, container.meta.snapshot_key
        if users is None or (self._snapshots.place(key).parent / SHIFTED).exists():
            return list(mounts)
        return [replace(one, options=(*one.options, *users.options)) for one in mounts]

    def _open_the_way(self, directory: Path, users: UserNamespace) -> None:
        """The OCI runtime looks for the rootfs as the pod's root: let that pass, and nobody look around."""
        for above in (self._layout.state, self._layout.pods):
            mode = above.stat().st_mode
            if mode & PASS != PASS:
                above.chmod(mode & 0o7777 | PASS)
        files.give_way(directory, users.gid)

    async def _problem(self, handler: Handler) -> str:
        if handler.shim:
            return "it is that of a foreign shim"
        if handler.gvisor:
            return "it is gVisor's"
        if shutil.which(handler.binary) is None:
            return f"there is no program {handler.binary}"
        for above in self._layout.state.resolve().parents:
            if not above.stat().st_mode & 0o001:
                return f"{above} lets nobody but its owner through, and containers are below it"
        key = f"{handler.name} {fingerprint(handler.binary)}"
        otherwise = f"pods of {handler.name} have no users of their own"
        return await self._once(key, lambda: self._try_runtime(handler), otherwise)

    async def _mounts_can_be_mapped(self) -> bool:
        """Whether an overlay can be made of layers that are shown through a mapping, where the layers are."""
        return not await self._once("mounts", self._try_mounts, "images are copied for pods with users of their own")

    async def _once(self, what: str, attempt: Callable[[], Awaitable[str]], otherwise: str) -> str:
        async with self._trying:
            problem, since = self._found.get(what, ("", 0.0))
            if what not in self._found or (problem and time.monotonic() - since > AGAIN_SECONDS):
                problem = await attempt()
                self._found[what] = problem, time.monotonic()
                if problem:
                    log.warning("%s: %s", otherwise, problem)
            return problem

    async def _try_mounts(self) -> str:
        root = self._layout.root
        layers = [str(root / "snapshots"), str(root / "content")]  # any two directories there
        with tempfile.TemporaryDirectory(prefix="holdfast-users-") as scratch:
            return await self._try({"op": "try mounts", "layers": layers, "scratch": scratch})

    async def _try_runtime(self, handler: Handler) -> str:
        with tempfile.TemporaryDirectory(prefix="holdfast-users-") as bundle:
            os.chmod(bundle, 0o711)
            name = os.path.basename(bundle)
            args: dict[str, object] = {
                "op": "try runtime",
                "runtime": handler.to_args(),
                "bundle": bundle,
                "spec": probe_spec(name, Path(bundle, "rootfs"), readonly=False),
            }
            return await self._try(args)

    async def _try(self, args: dict[str, object]) -> str:
        args = {"users": asdict(_TRIED), **args}
        answer = await errand.run(self._keeper, "namespaces", args, "try a user namespace", TRY_SECONDS)
        return str(answer["problem"])
