"""Files that a volume has already are copied into what a gVisor pod makes of it, before any container of it begins.

By cp(1) of the host, in a container of the pod that sees the host's programs, read-only, and the volume twice: as it
is, and as the pod has it. Nothing of anybody else's runs in it, and it is gone before the pod is ready.
"""

import contextlib
import json
import signal
from pathlib import Path
from typing import Any, Final

from holdfast.lifecycle.gvisor import existing
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Pod
from holdfast.lifecycle.tasks import in_thread, within
from holdfast.linux import files
from holdfast.model import cgroups
from holdfast.model.errors import FailedPrecondition, HoldfastError
from holdfast.oci.gvisor import Volume
from holdfast.runtime.handlers import probe_spec
from holdfast.runtime.task import TaskClient

NAME: Final = "bring-in"
SECONDS: Final = 600.0
END_SECONDS: Final = 5.0
RIGHTS: Final = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP")


def brought_in(pod: Pod) -> str:
    """The cgroup of that container, which is left if its runsc was killed."""
    return cgroups.path_of(pod.meta.cgroup_parent, f"{pod.meta.id}-{NAME}")


async def bring_in(layout: Layout, pod: Pod, task: TaskClient, volume: Volume) -> None:
    """Copy what there is. Raises FailedPrecondition when not all of it could be, and what the shim says."""
    id = f"{pod.meta.id}-{NAME}"
    bundle = layout.bundle(pod.meta.id, id)
    if not await in_thread(_write, bundle, pod, id, volume):
        return
    try:
        await task.create(id, bundle=bundle)
        await task.start(id)
        code, _ = await within(SECONDS, task.wait(id), f"copy the files of volume {volume.name}")
    finally:
        with contextlib.suppress(HoldfastError):  # what is left goes with the sandbox
            await task.kill(id, signal.SIGKILL, everything=True)
            await within(END_SECONDS, task.wait(id), f"end the copying of volume {volume.name}")
        await task.delete(id)
        await in_thread(files.remove_tree, bundle)
    if code:
        raise FailedPrecondition(f"cannot bring in the files of volume {volume.name}: cp ended with status {code}")


def _write(bundle: Path, pod: Pod, id: str, volume: Volume) -> bool:
    """The bundle; whether there is anything to be copied."""
    names = existing(volume)
    if not names:
        return False
    files.make_private(bundle)
    spec: dict[str, Any] = probe_spec(id, bundle / "rootfs")
    mounts = [
        # Spelled otherwise than in the hint, so that it is what is on the host.
        {"destination": "/from", "type": "bind", "source": f"{volume.source}/.", "options": ["rbind", "ro"]},
        {"destination": "/to", "type": "tmpfs", "source": volume.source, "options": ["rw"]},
    ]
    for place in ("from", "to"):
        (bundle / "rootfs" / place).mkdir()
    process = {
        **spec["process"],
        "args": ["/bin/cp", "-a", "--", *(f"/from/{name}" for name in names), "/to/"],
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), RIGHTS),
    }
    prefix = "io.kubernetes.cri"
    annotations = {
        f"{prefix}.container-type": "container",
        f"{prefix}.container-name": NAME,
        f"{prefix}.sandbox-id": pod.meta.id,
    }
    linux = {**spec["linux"], "cgroupsPath": cgroups.oci_path(pod.meta.cgroup_parent, id)}
    whole = {
        **spec,
        "mounts": [*spec["mounts"], *mounts],
        "process": process,
        "annotations": annotations,
        "linux": linux,
    }
    files.write_atomic(bundle / "config.json", json.dumps(whole).encode(), sync=False)
    return True
