"""The OCI bundle of a container: config.json made from the CRI's words, the image's defaults and this host's facts."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from holdfast.images.service import Images
from holdfast.lifecycle.cleanup import container_cgroup
from holdfast.lifecycle.confinement import Confinement
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.tasks import in_thread
from holdfast.lifecycle.world import Container, Pod
from holdfast.linux import files, mount
from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image
from holdfast.model.spec import Mount
from holdfast.oci import lsm
from holdfast.oci.build import build
from holdfast.oci.request import HostFacts, SpecRequest
from holdfast.oci.resources import resources_to_oci
from holdfast.oci.users import ResolvedUser, resolve_user
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.snapshots.overlay import Snapshots

CONFIG_FILE: Final = "config.json"
CONFIG_LIMIT: Final = 8 * 1024 * 1024


class Bundles:
    """Writes bundles into the pod's volatile directory."""

    def __init__(
        self, snapshots: Snapshots, images: Images, layout: Layout, facts: HostFacts, confinement: Confinement
    ) -> None:
        self._snapshots = snapshots
        self._images = images
        self._layout = layout
        self._facts = facts
        self._confinement = confinement

    def path(self, container: Container) -> Path:
        return self._layout.bundle(container.pod.meta.id, container.meta.id)

    async def write(self, container: Container, image: Image) -> None:
        """Make the bundle's directory and config.json. Raises InvalidArgument that names the field."""
        mounts = await self._snapshots.mounts(container.meta.snapshot_key)
        await in_thread(self._write, container, image, mounts[0])

    async def ensure(self, container: Container) -> None:
        """Make the bundle unless it is there; the state directory may have been lost since it was written.

        Only then is the image needed, which may have been removed meanwhile.
        """
        if not (self.path(container) / CONFIG_FILE).exists():
            await self.write(container, self._images.find(container.meta.image_id))

    async def update_resources(self, container: Container, resources: pb.LinuxContainerResources) -> None:
        """Change the limits with which a container that was not started will start."""
        await in_thread(self._update_resources, container, resources)

    def to_oci(self, resources: pb.LinuxContainerResources) -> dict[str, Any]:
        """Limits as the OCI spec has them, as far as this host knows them."""
        return resources_to_oci(resources, self._facts)

    async def labelled(self, container: Container, mounts: list[Mount]) -> list[Mount]:
        """The root's mounts, with the container's SELinux label where the host has SELinux."""
        if self._facts.selinux is None:
            return mounts
        spec: dict[str, Any] = await in_thread(self.load, container)
        return [lsm.labelled(one, spec["linux"].get("mountLabel", "")) for one in mounts]

    def load(self, container: Container) -> dict[str, object]:
        """The OCI spec as it was written."""
        spec: dict[str, object] = json.loads(files.read_bounded(self.path(container) / CONFIG_FILE, CONFIG_LIMIT))
        return spec

    def _write(self, container: Container, image: Image, rootfs: Mount) -> None:
        files.make_private(self.path(container))
        request = self._request(container, image, self._user(container, image, rootfs))
        self._save(container, build(self._confinement.completed(request)))

    def _save(self, container: Container, spec: dict[str, object]) -> None:
        data = json.dumps(spec, separators=(",", ":")).encode()
        files.write_atomic(self.path(container) / CONFIG_FILE, data, sync=False)

    def _update_resources(self, container: Container, resources: pb.LinuxContainerResources) -> None:
        spec = self.load(container)
        linux = spec["linux"]
        assert isinstance(linux, dict)
        before = linux.get("resources", {})
        for key, value in self.to_oci(resources).items():
            merged = {**before.get(key, {}), **value} if isinstance(value, dict) else value
            before[key] = merged
        linux["resources"] = before
        self._save(container, spec)

    def _user(self, container: Container, image: Image, rootfs: Mount) -> ResolvedUser:
        """Who the process will be, looked up in the image's own files through a mount that nobody else sees."""
        descriptor = mount.open_detached(rootfs)
        try:
            return resolve_user(container.config, image.user, lambda path, limit: read_in(descriptor, path, limit))
        finally:
            os.close(descriptor)

    def _request(self, container: Container, image: Image, user: ResolvedUser) -> SpecRequest:
        pod = container.pod
        return SpecRequest(
            pod_id=pod.meta.id,
            container_id=container.meta.id,
            pod=pod.config,
            container=container.config,
            image=image,
            namespaces=self._namespaces(pod),
            cgroups_path=container_cgroup(container),
            hostname=hostname(pod.config),
            user=user,
            facts=self._facts,
            **self._files(pod),
        )

    def _namespaces(self, pod: Pod) -> dict[str, str]:
        """Paths of the namespaces that were pinned for the pod; what is not pinned is the host's or the container's."""
        pinned = self._layout.namespaces(pod.meta.id)
        return {kind: str(pinned / kind) for kind in ("net", "ipc", "uts", "pid") if (pinned / kind).exists()}

    def _files(self, pod: Pod) -> dict[str, Any]:
        directory = self._layout.pod(pod.meta.id)
        shm = self._layout.shm(pod.meta.id)
        return {
            "resolv_conf": str(directory / "resolv.conf"),
            "hosts": str(directory / "hosts"),
            "hostname_path": str(directory / "hostname"),
            "shm": str(shm) if shm.exists() else "/dev/shm",
        }


def read_in(root: int, path: str, limit: int) -> bytes | None:
    """At most `limit` bytes of a regular file of an image; None when it has none of that name.

    Looked at before it is opened: opening a device or a FIFO does things. Raises InvalidArgument.
    """
    try:
        found = files.open_beneath(root, path.lstrip("/"), os.O_PATH, in_root=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG):  # not the image's fault
            raise
        raise InvalidArgument(f"image: cannot read its {path}: {exc.strerror}") from exc
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise InvalidArgument(f"image: its {path} is not a regular file")
        with open(f"/proc/self/fd/{found}", "rb") as file:
            return file.read(limit)
    finally:
        os.close(found)


def hostname(config: pb.PodSandboxConfig) -> str:
    """The pod's own host name; that of the host for a pod on its network."""
    options = config.linux.security_context.namespace_options
    return os.uname().nodename if options.network == pb.NODE else config.hostname or config.metadata.name[:63]
