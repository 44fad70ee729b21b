"""Sandbox containers, for handlers whose shims know a pod by its first container. It waits, and does nothing else.

It is a task with the pod's id, in a bundle and a cgroup with that name, from a program that is made here rather than
pulled. It joins the namespaces that are pinned for the pod; a pid namespace that the pod shares is its own, pinned as
well. No row and no list has it: it comes and goes with the sandbox, and its end makes the pod NOTREADY.
"""

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from holdfast.lifecycle.bring_in import bring_in, brought_in
from holdfast.lifecycle.confinement import Confinement
from holdfast.lifecycle.gvisor import GvisorVolumes
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Pod, init_cgroup
from holdfast.lifecycle.sandbox_checkpoints import SandboxCheckpoints
from holdfast.lifecycle.tasks import Background, apart, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, files, mount, namespace, process
from holdfast.linux.inject import crashpoint
from holdfast.model import cgroups
from holdfast.model.errors import HoldfastError, NotFound, Unavailable
from holdfast.model.gvisor import LOOK
from holdfast.model.spec import Mount
from holdfast.model.state import REASON_SANDBOX, ProcessRef
from holdfast.model.witness import INIT_FILE, InitRecord, decode_init, encode
from holdfast.oci import gvisor
from holdfast.oci.request import HostFacts
from holdfast.oci.resources import SHARES
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import command, pause
from holdfast.runtime.handlers import Handler
from holdfast.runtime.shims import Shims, alive, wait_gone

log = logging.getLogger(__name__)

PROGRAM: Final = "pause"
NOBODY: Final = 65535
END_SECONDS: Final = 5.0
RECORD_LIMIT: Final = 64 * 1024
ANNOTATIONS: Final = "io.kubernetes.cri"


class Sandboxes:
    """The sandbox containers of this node. Nothing is done for a handler that needs none."""

    def __init__(
        self,
        world: World,
        shims: Shims,
        background: Background,
        layout: Layout,
        facts: HostFacts,
        confinement: Confinement,
        volumes: GvisorVolumes,
        checkpoints: SandboxCheckpoints,
    ) -> None:
        self._volumes = volumes
        self._checkpoints = checkpoints
        self._world = world
        self._shims = shims
        self._foreign = shims.foreign
        self._background = background
        self._layout = layout
        self._facts = facts
        self._confinement = confinement

    def prepare(self, pod: Pod, handler: Handler, hostname: str) -> None:
        """Write the bundle, from which a foreign shim is started, and the program. Blocks.

        Raises OSError, FailedPrecondition.
        """
        bundle = self._bundle(pod)
        files.make_private(bundle)
        if handler.shim:
            self._foreign.prepare(bundle, handler)
        spec = self._spec(pod, hostname)
        data = json.dumps(self._in_gvisor(pod, spec) if handler.gvisor else spec, separators=(",", ":")).encode()
        files.write_atomic(bundle / "config.json", data, sync=False)
        directory = self._layout.root / PROGRAM
        for place in (directory, *(directory / name for name in ("proc", "dev", gvisor.VOLUMES.strip("/")))):
            files.mkdir(place, exist_ok=True)
            place.chmod(0o755)  # whatever our umask is: it is nobody who runs there
        for name, program in ((PROGRAM, pause.program()), (LOOK, pause.look())):
            if not (directory / name).exists() or files.read_bounded(directory / name, len(program) + 1) != program:
                files.write_atomic(directory / name, program, mode=0o755)

    async def begin(self, pod: Pod, handler: Handler) -> None:
        """Run the pod's sandbox container. Raises Unavailable and what the shim says."""
        if not handler.sandbox:
            return
        pod_id, bundle = pod.meta.id, self._bundle(pod)
        task = await self._shims.task(pod_id)
        rootfs = Mount("bind", str(self._layout.root / PROGRAM), "", ("rbind", "ro"))
        origin = self._checkpoints.origin(pod)
        pid = await task.create(pod_id, bundle=bundle, rootfs=[rootfs], options=handler.options, restore=origin)
        crashpoint("foreign.sandbox")
        if not handler.shim:  # ours sees to the rest
            await task.start(pod_id)
            for one in await in_thread(self._volumes.placed, pod):
                if one.brings_in and origin is None:
                    await bring_in(self._layout, pod, task, one)
            return
        await in_thread(record_init, bundle, pid)
        if pod.config.linux.security_context.namespace_options.pid == pb.POD:
            pinned = self._layout.namespaces(pod_id) / "pid"
            await in_thread(namespace.pin_existing, f"/proc/{pid}/ns/pid", pinned)
        await in_thread(record_start, bundle)
        await task.start(pod_id)

    def watch(self, pod: Pod) -> None:
        """See to it that the sandbox container's end is noticed."""
        if self._bundle(pod).exists():
            self._background.see_through(f"sandbox-watch {pod.meta.id}", lambda: self._watch(pod))

    async def end(self, pod: Pod, handler: Handler) -> None:
        """End the sandbox container and delete its task, with the shim or without it. Idempotent."""
        if self._bundle(pod).exists():
            await self._end(pod, handler)
        if handler.gvisor:
            await apart(self._volumes.clear, pod)
        crashpoint("foreign.ended")

    async def _end(self, pod: Pod, handler: Handler) -> None:
        pod_id, bundle = pod.meta.id, self._bundle(pod)
        if pod.status.shim is not None and alive(pod.status.shim):
            await within(END_SECONDS, self._delete(pod_id), f"end the sandbox container of pod {pod_id}")
        else:
            await self._kill(pod)
            if handler.shim:
                await self._foreign.delete(pod_id, pod_id, handler)
            elif await in_thread(handler.state(pod_id, pod_id).exists):
                await command.run(handler, "delete", "--force", pod_id)
        if handler.gvisor:
            await apart(handler.forget, pod_id, pod_id)
            await apart(cgroup.remove_if_empty, brought_in(pod))
        await apart(mount.unmount_tree, bundle / "rootfs")

    async def kill(self, pod: Pod, handler: Handler) -> None:
        """End a sandbox whose containers do not end, and cannot without it. Only gVisor's is such a one."""
        if handler.gvisor:
            await self._kill(pod)

    async def _kill(self, pod: Pod) -> None:
        path = init_cgroup(pod.meta)
        if await in_thread(cgroup.exists, path):
            await apart(cgroup.kill, path)

    async def _delete(self, pod_id: str) -> None:
        task = await self._shims.task(pod_id)
        try:
            await task.kill(pod_id, signal.SIGKILL, everything=True)
            await task.wait(pod_id)
        except NotFound:
            pass  # it has ended, or there never was one
        except HoldfastError as exc:
            log.info("sandbox container of pod %s takes no signal: %s", pod_id, exc)
        try:
            await task.delete(pod_id)
        except NotFound:
            return

    async def _watch(self, pod: Pod) -> None:
        ref = await in_thread(read_ref, self._bundle(pod))
        if ref is None or not await wait_gone(ref):
            return
        if pod.released or not pod.status.ready or pod.meta.id not in self._world.pods:
            return
        log.warning("pod %s: its sandbox container has ended", pod.meta.id)
        await self._world.learn_pod(pod, lambda status: replace(status, ready=False, reason=REASON_SANDBOX))

    def _spec(self, pod: Pod, hostname: str) -> dict[str, Any]:
        """The OCI spec: no rights, nothing to write to, the pod's namespaces and profiles."""
        context = pod.config.linux.security_context
        options = context.namespace_options
        confined, rules = self._confinement.of_sandbox(pod.meta.id, context, (), self._facts)
        pinned = self._layout.namespaces(pod.meta.id)
        namespaces: list[dict[str, str]] = [{"type": "mount"}]
        if options.network != pb.NODE:
            namespaces += [
                {"type": "network", "path": str(pinned / "net")},
                {"type": "uts", "path": str(pinned / "uts")},
            ]
        if options.ipc != pb.NODE:
            namespaces.append({"type": "ipc", "path": str(pinned / "ipc")})
        if options.pid != pb.NODE:
            namespaces.append({"type": "pid"})
        named = pod.config.metadata
        return {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": True},
            "process": {
                "args": [f"/{PROGRAM}"],
                "env": ["PATH=/"],
                "cwd": "/",
                "user": {"uid": NOBODY, "gid": NOBODY},
                "noNewPrivileges": True,
                "capabilities": {},
                "oomScoreAdj": max(-998, self._facts.oom_score_adj_min),
                **confined,
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "annotations": {
                f"{ANNOTATIONS}.container-type": "sandbox",
                f"{ANNOTATIONS}.sandbox-id": pod.meta.id,
                f"{ANNOTATIONS}.sandbox-name": named.name,
                f"{ANNOTATIONS}.sandbox-namespace": named.namespace,
                f"{ANNOTATIONS}.sandbox-uid": named.uid,
                **_sizes(pod.config.linux),
            },
            "linux": {
                "cgroupsPath": cgroups.oci_path(pod.meta.cgroup_parent, pod.meta.id),
                "namespaces": namespaces,
                "resources": {"cpu": {"shares": SHARES[0]}},
                **rules,
            },
        } | ({"hostname": hostname} if options.network != pb.NODE else {})

    def _in_gvisor(self, pod: Pod, spec: dict[str, Any]) -> dict[str, Any]:
        """The same for runsc: all that runs in the pod runs in this container's cgroup, and namespaces are its own."""
        shm = self._layout.shm(pod.meta.id)
        hints, mounts = gvisor.of_sandbox(self._volumes.take_over(pod), str(shm) if shm.exists() else "")
        kinds = [one for one in spec["linux"]["namespaces"] if one["type"] == "network"]
        namespaces = [*kinds, *({"type": kind} for kind in ("mount", "pid", "ipc", "uts"))]
        linux = {"cgroupsPath": spec["linux"]["cgroupsPath"], "namespaces": namespaces}
        process = {
            key: value for key, value in spec["process"].items() if key not in ("selinuxLabel", "apparmorProfile")
        }
        return {
            **spec,
            "process": process,
            "mounts": [*spec["mounts"][:1], *mounts],
            "annotations": {**spec["annotations"], **hints},
            "linux": linux,
        }

    def _bundle(self, pod: Pod) -> Path:
        return self._layout.bundle(pod.meta.id, pod.meta.id)


def _sizes(linux: pb.LinuxPodSandboxConfig) -> dict[str, str]:
    """How large the pod is to be, for shims that make a machine for it, as containerd tells them."""
    if not linux.HasField("resources"):
        return {}
    asked = linux.resources
    return {
        f"{ANNOTATIONS}.sandbox-cpu-period": str(asked.cpu_period),
        f"{ANNOTATIONS}.sandbox-cpu-quota": str(asked.cpu_quota),
        f"{ANNOTATIONS}.sandbox-cpu-shares": str(asked.cpu_shares),
        f"{ANNOTATIONS}.sandbox-memory": str(asked.memory_limit_in_bytes),
    }


def record_init(bundle: Path, pid: int) -> None:
    """init.json, as our own shim writes it, of an init that a foreign one has created. Raises Unavailable, OSError."""
    if (started := process.start_time(pid)) is None:
        raise Unavailable("its init ended before it was started")
    path = cgroup.of_process(pid)
    record = InitRecord(pid, started, process.boot_id(), path, cgroup.oom_kills(path))
    files.write_atomic(bundle / INIT_FILE, encode(record), sync=False)


def record_start(bundle: Path) -> None:
    """The same, right before the start."""
    record = decode_init(files.read_bounded(bundle / INIT_FILE, RECORD_LIMIT))
    files.write_atomic(bundle / INIT_FILE, encode(replace(record, started=True)), sync=False)


def read_ref(bundle: Path) -> ProcessRef | None:
    try:
        record = decode_init(files.read_bounded(bundle / INIT_FILE, RECORD_LIMIT))
    except FileNotFoundError:
        return None
    return ProcessRef(record.pid, record.start_time, record.boot_id)
