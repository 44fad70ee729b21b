"""The OCI bundle of a container: config.json made from the CRI's words, the image's defaults and this host's facts."""

import errno
import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from holdfast.images.service import Images
from holdfast.lifecycle import target
from holdfast.lifecycle.confinement import Confinement
from holdfast.lifecycle.devices import Devices
from holdfast.lifecycle.gvisor import GvisorVolumes
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.tasks import apart, in_thread, within
from holdfast.lifecycle.volumes import CONFIG_FILE, CONFIG_LIMIT, Volumes
from holdfast.linux import files, mount
from holdfast.model import cgroups, trace
from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image
from holdfast.model.spec import Mount
from holdfast.oci import gvisor, lsm, process
from holdfast.oci.build import build
from holdfast.oci.request import HostFacts, SpecRequest
from holdfast.oci.resources import in_force, to_oci
from holdfast.oci.users import ResolvedUser, resolve_user
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handlers
from holdfast.snapshots.overlay import Snapshots

OF_THE_IMAGE: Final = frozenset({errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG})  # whose fault they are
HOST_SHM: Final = "/dev/shm"
LABEL_LENGTH: Final = 63  # of a host name that nobody has chosen, RFC 1123
LOOK_SECONDS: Final = 10.0  # that the host's devices may take to be looked at


class Bundles:
    """Writes bundles into the pod's volatile directory."""

    def __init__(
        self,
        snapshots: Snapshots,
        images: Images,
        layout: Layout,
        facts: HostFacts,
        confinement: Confinement,
        handlers: Handlers,
        devices: Devices,
        volumes: Volumes,
        in_gvisor: GvisorVolumes,
    ) -> None:
        self._in_gvisor = in_gvisor
        self._handlers = handlers
        self._devices = devices
        self._volumes = volumes
        self._snapshots = snapshots
        self._images = images
        self._layout = layout
        self._facts = facts
        self._confinement = confinement

    def path(self, container: Container) -> Path:
        return self._layout.bundle(container.pod.meta.id, container.meta.id)

    @trace.step("write bundle")
    async def write(self, container: Container, image: Image) -> pb.ContainerUser:
        """Make the bundle's directory and config.json. Returns who the process will be.

        Raises InvalidArgument that names the field.
        """
        sources = await self._volumes.prepare(container)
        mounts = await self._snapshots.mounts(container.meta.snapshot_key)
        found: dict[str, Any] = {}
        if self._devices.wanted(container.config):
            look = apart(self._devices.found, container.config, self._handlers.get(container.pod.meta.handler))
            found = await within(LOOK_SECONDS, look, "look at config.devices")
        user = await in_thread(self._write, container, image, mounts[0], {**found, "sources": sources})
        linux = pb.LinuxContainerUser(uid=user["uid"], gid=user["gid"], supplemental_groups=user["additionalGids"])
        return pb.ContainerUser(linux=linux)

    def mounts_at_start(self, container: Container) -> bool:
        """Whether the OCI runtime mounts what the container has when it is started, and not when it is created."""
        return self._handlers.get(container.pod.meta.handler).gvisor

    async def ensure(self, container: Container) -> None:
        """Make the bundle unless it is there; the state directory may have been lost since it was written.

        Only then is the image needed, which may have been removed meanwhile. The limits in it are those of the row.
        """
        if not (self.path(container) / CONFIG_FILE).exists():
            await self.write(container, self._images.find(container.meta.image_id))
        else:
            await self.limit(container, self.limits(container))

    def limits(self, container: Container) -> pb.LinuxContainerResources:
        """What is in force, or will be when it starts, as its row has it; an old one's has it only after an update."""
        if container.status.resources:
            return pb.LinuxContainerResources.FromString(container.status.resources)
        return self.first_limits(container.config)

    def first_limits(self, config: pb.ContainerConfig) -> pb.LinuxContainerResources:
        """Those with which a container begins. Raises InvalidArgument."""
        return in_force(config.linux.resources, self._facts, "config.linux.resources")

    async def limit(self, container: Container, limits: pb.LinuxContainerResources) -> None:
        """Change the limits with which a container that was not started will start. One that is lost is made later."""
        await in_thread(self._limit, container, limits)

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

    def _write(self, container: Container, image: Image, rootfs: Mount, found: dict[str, Any]) -> dict[str, Any]:
        files.make_private(self.path(container))
        if (users := container.pod.users) is not None:
            files.give_way(self.path(container), users.gid)
        user = self._user(container, image, rootfs)
        in_gvisor = self._handlers.get(container.pod.meta.handler).gvisor
        if in_gvisor:
            gvisor.check(container.config)
        request = replace(self._request(container, image, user), **found)
        spec = build(self._confinement.completed(request))
        if in_gvisor:
            options = container.config.linux.security_context.namespace_options
            shm = request.shm if request.shm != HOST_SHM else ""
            spec = gvisor.suited(spec, options, self._in_gvisor.placed(container.pod), shm)
        self._save(container, spec)
        process_user: dict[str, Any] = spec["process"]["user"]
        return process_user

    def _save(self, container: Container, spec: dict[str, object]) -> None:
        data = json.dumps(spec, separators=(",", ":")).encode()
        files.write_atomic(self.path(container) / CONFIG_FILE, data, sync=False)

    def _limit(self, container: Container, limits: pb.LinuxContainerResources) -> None:
        try:
            spec: dict[str, Any] = self.load(container)
        except FileNotFoundError:
            return
        before = spec["linux"]["resources"]
        after = {**to_oci(limits), "devices": before["devices"]}
        if after != before:
            spec["linux"]["resources"] = after
            self._save(container, spec)

    def _user(self, container: Container, image: Image, rootfs: Mount) -> ResolvedUser:
        """Who the process will be, looked up in the image's own files through a mount that nobody else sees."""
        descriptor = mount.open_detached(rootfs)
        try:
            have_directories(descriptor)
            check_directory(descriptor, container.config.working_dir or image.workdir)
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
            namespaces=self._namespaces(pod) | {"target_pid": str(self.path(container) / target.PIN)},
            cgroups_path=cgroups.oci_path(pod.meta.cgroup_parent, container.meta.id),
            limits=self.limits(container),
            hostname=hostname(pod.config),
            user=user,
            facts=self._facts,
            **self._files(pod),
        )

    def _namespaces(self, pod: Pod) -> dict[str, str]:
        """Paths of the namespaces that were pinned for the pod; what is not pinned is the host's or the container's."""
        pinned = self._layout.namespaces(pod.meta.id)
        return {kind: str(pinned / kind) for kind in ("user", "net", "ipc", "uts", "pid") if (pinned / kind).exists()}

    def _files(self, pod: Pod) -> dict[str, Any]:
        directory = self._layout.pod(pod.meta.id)
        shm = self._layout.shm(pod.meta.id)
        return {
            "resolv_conf": str(directory / "resolv.conf"),
            "hosts": str(directory / "hosts"),
            "hostname_path": str(directory / "hostname"),
            "shm": str(shm) if shm.exists() else HOST_SHM,
        }


def check_directory(root: int, asked: str) -> None:
    """Refuse a working directory that leads out of an image, whatever links it has. Raises InvalidArgument."""
    try:
        leads_to = files.follow(root, asked)
    except OSError as exc:
        if exc.errno not in OF_THE_IMAGE:
            raise
        raise InvalidArgument(f"config.working_dir: {asked!r} cannot be followed: {exc.strerror}") from exc
    except ValueError as exc:  # it is no path at all
        raise InvalidArgument(f"config.working_dir: {asked!r} cannot be followed: {exc}") from exc
    process.check_directory(asked, leads_to)


def have_directories(root: int) -> None:
    """Put directories in the place of whatever else an image has where the OCI runtime mounts what is the kernel's.

    Runtimes have written to the host through links there: crun before 1.28 and runc before 1.3.6 through /dev
    (CVE-2026-47766, CVE-2026-41579). What is directly below the root is the same for whoever looks at it.
    """
    for name in ("dev", "proc", "sys"):
        try:
            found = os.stat(name, dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=root)
            os.mkdir(name, dir_fd=root)
            os.chmod(name, 0o755, dir_fd=root)  # whatever our umask is


def read_in(root: int, path: str, limit: int) -> bytes | None:
    """At most `limit` bytes of a regular file of an image; None when it has none of that name.

    Looked at before it is opened: opening a device or a FIFO does things. Raises InvalidArgument.
    """
    try:
        found = files.open_beneath(root, path.lstrip("/"), os.O_PATH, in_root=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno not in OF_THE_IMAGE:
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
    if options.network == pb.NODE:
        return os.uname().nodename
    return config.hostname or re.sub("[^A-Za-z0-9.-]", "-", config.metadata.name)[:LABEL_LENGTH].strip("-.") or "pod"
