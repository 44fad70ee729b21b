"""Orphans: what exists below our two roots, in the keeper and in our cgroup, and no row owns. Planned purely."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast.images.service import Images
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.tasks import in_thread
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, files, mount, process
from holdfast.model.errors import HoldfastError
from holdfast.model.spec import is_id
from holdfast.model.state import ProcessRef
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.keeper import Keeper
from holdfast.runtime.shims import Shims
from holdfast.snapshots.overlay import Snapshots

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Orphan:
    """One thing without an owner."""

    kind: str  # "shim", "pod directory", "bundle", "runtime state", "cgroup"
    where: str


@dataclass(frozen=True, slots=True)
class Found:
    """What was seen, by kind: ids, or (pod id, container id) for bundles."""

    shims: frozenset[str]
    pod_directories: frozenset[str]
    bundles: frozenset[tuple[str, str]]
    runtime_states: frozenset[tuple[str, str]]  # (runtime root, container id)
    cgroups: frozenset[str]  # names directly below our root


def plan_sweep(found: Found, pods: frozenset[str], containers: frozenset[str], cgroup_root: str) -> list[Orphan]:
    """What nobody owns, in the order in which it must go: processes first, then what they use."""
    orphans = [Orphan("shim", pod) for pod in sorted(found.shims - pods)]
    orphans += [Orphan("cgroup", f"{cgroup_root}/{name}") for name in sorted(found.cgroups - pods) if is_id(name)]
    orphans += [
        Orphan("runtime state", f"{root}/{id}") for root, id in sorted(found.runtime_states) if id not in containers
    ]
    orphans += [
        Orphan("bundle", f"{pod}/{container}")
        for pod, container in sorted(found.bundles)
        if pod in pods and container not in containers
    ]
    return orphans + [Orphan("pod directory", pod) for pod in sorted(found.pod_directories - pods)]


class Sweeper:
    """Finds orphans and removes them; what cannot be removed is reported and left for the next time."""

    def __init__(
        self,
        world: World,
        keeper: Keeper,
        shims: Shims,
        handlers: Handlers,
        snapshots: Snapshots,
        images: Images,
        layout: Layout,
        cgroup_root: str,
    ) -> None:
        self._world = world
        self._keeper = keeper
        self._shims = shims
        self._handlers = handlers
        self._snapshots = snapshots
        self._images = images
        self._layout = layout
        self._cgroup_root = cgroup_root

    async def sweep(self, problems: list[str]) -> list[str]:
        """Remove every orphan. Returns what was removed; appends to `problems` what could not be."""
        workers = {worker.id: worker for worker in await self._keeper.list_workers() if worker.kind == "shim"}
        found = await in_thread(self._look, frozenset(workers))
        # A row that could not be read still owns what is its own.
        pods = frozenset(self._world.pods) | self._world.unreadable
        containers = frozenset(self._world.containers) | self._world.unreadable
        removed = []
        for orphan in plan_sweep(found, pods, containers, self._cgroup_root):
            try:
                if orphan.kind == "shim":
                    worker = workers[orphan.where]
                    await self._shims.end(worker.id, ProcessRef(worker.pid, worker.start_time, process.boot_id()))
                else:
                    await in_thread(self._remove, orphan)
                removed.append(f"{orphan.kind} {orphan.where}")
            except (OSError, HoldfastError) as exc:
                problems.append(f"cannot remove orphaned {orphan.kind} {orphan.where}: {exc}")
        await in_thread(cgroup.remove_if_empty, self._cgroup_root)
        removed += [f"layer {chain_id}" for chain_id in await self._images.collect()]
        removed += await self._snapshots.sweep()
        return removed

    def _look(self, shims: frozenset[str]) -> Found:
        directories = _names(self._layout.pods)
        roots = {handler.root for handler in self._handlers.all.values()}
        return Found(
            shims=shims,
            pod_directories=frozenset(directories),
            bundles=frozenset(
                (pod, name) for pod in directories for name in _names(self._layout.pods / pod) if is_id(name)
            ),
            runtime_states=frozenset((root, name) for root in roots for name in _names(Path(root)) if is_id(name)),
            cgroups=frozenset(cgroup.children(self._cgroup_root)),
        )

    def _remove(self, orphan: Orphan) -> None:
        removers: dict[str, Callable[[str], None]] = {
            "cgroup": _remove_cgroup,
            "runtime state": lambda where: files.remove_tree(Path(where)),
            "bundle": lambda where: _remove_directory(self._layout.pods / where),
            "pod directory": lambda where: _remove_directory(self._layout.pods / where),
        }
        removers[orphan.kind](orphan.where)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []


def _remove_cgroup(path: str) -> None:
    cgroup.kill(path)
    cgroup.remove(path)


def _remove_directory(path: Path) -> None:
    mount.unmount_tree(path)
    files.remove_tree(path)
