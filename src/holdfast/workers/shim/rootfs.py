"""The root filesystem of a container, as it is or shown through the mapping of a user namespace.

An overlay cannot be mapped itself; its lower layers can (Linux 5.19), each as a mount of its own. These are made in a
mount namespace that lasts only until the overlay is there, which then holds its own copies of them: nobody else ever
sees them, and nothing is to be taken away again, whoever dies. The upper directory is not mapped: what is made in it
belongs to the pod's ids on disk too, and so does its root, from the first mount on.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from holdfast.linux import files, mount, namespace, userns
from holdfast.linux.process import CLONE_NEWNS
from holdfast.model.spec import Mount
from holdfast.model.userns import UserNamespace, from_options, is_mapping

LOWER: Final = "lowerdir="
UPPER: Final = "upperdir="


def is_mapped(one: Mount) -> bool:
    """Whether it is to be shown through a mapping, for which a child is forked."""
    return any(map(is_mapping, one.options))


def mount_on(one: Mount, target: Path) -> None:
    """Perform a described mount at `target`; with uidmap and gidmap among its options, through that mapping.

    For a process with one thread. Raises OSError.
    """
    try:
        users, options = from_options(one.options)
    except ValueError as exc:
        raise OSError(errno.EINVAL, f"cannot mount {one.source}: {exc}") from exc
    plain = Mount(one.type, one.source, one.target, options)
    if users is None:
        mount.mount_one(plain, target)
        return
    descriptor = open_overlay(plain, users, target) if one.type == "overlay" else _open_bind(plain, users)
    try:
        mount.attach(descriptor, target)
    finally:
        os.close(descriptor)


def open_overlay(one: Mount, users: UserNamespace, scratch: Path) -> int:
    """A descriptor of an overlay whose lower layers are shown through the mapping; it is attached nowhere.

    `scratch` is a directory that may be covered for the time being, where only this process sees it.
    """
    lowers = _values(one.options, LOWER)[0].split(":")
    for upper in _values(one.options, UPPER):
        give(upper, users)
    rest = tuple(option for option in one.options if not option.startswith(LOWER))
    with userns.opened([users.uid_map], [users.gid_map]) as descriptor, _aside(scratch):
        for number, lower in enumerate(lowers):
            files.mkdir(scratch / str(number))
            mount.bind_idmapped(lower, scratch / str(number), descriptor)
        os.chdir(scratch)  # so that many layers are few bytes
        joined = ":".join(map(str, range(len(lowers))))
        return mount.open_detached(Mount("overlay", "overlay", "", (f"{LOWER}{joined}", *rest)))


def give(path: str, users: UserNamespace) -> None:
    """Have an upper directory belong to what its owner is outside, unless it was given before."""
    found = os.lstat(path)
    if found.st_uid not in range(users.uid, users.uid + users.uids):
        os.chown(path, *users.outside(found.st_uid, found.st_gid), follow_symlinks=False)


def _open_bind(one: Mount, users: UserNamespace) -> int:
    """An image without layers has no overlay: its one directory is that of the container alone."""
    descriptor = mount.open_detached(one)
    try:
        with userns.opened([users.uid_map], [users.gid_map]) as mapped:
            mount.idmap(descriptor, mapped)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _aside(scratch: Path) -> Iterator[None]:
    """For the time being in a mount namespace of one's own, with an empty filesystem at `scratch`."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace.unshare(CLONE_NEWNS)
        try:
            mount.set_propagation("/", mount.MS_PRIVATE, recursive=True)
            mount.mount("none", scratch, "tmpfs", 0, "mode=700")
            yield
        finally:
            namespace.enter(f"/proc/self/fd/{home}", CLONE_NEWNS)
    finally:
        os.close(home)


def _values(options: tuple[str, ...], name: str) -> list[str]:
    return [option.removeprefix(name) for option in options if option.startswith(name)]
