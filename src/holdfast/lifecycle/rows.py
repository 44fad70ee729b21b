"""Who owns what, according to the rows: taken from the world of a running daemon, or read from a store at rest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.images.layers import UNPACKING, chain_ids
from holdfast.lifecycle.world import World
from holdfast.model.cgroups import parent_path
from holdfast.model.errors import InvalidArgument
from holdfast.model.image import parse_config
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata, container_of_key
from holdfast.model.state import ContainerStatus, PodStatus
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.store import images, pods
from holdfast.store.images import ImageRow, SnapshotRow


@dataclass(frozen=True, slots=True)
class PodRow:
    meta: PodMetadata
    status: PodStatus
    intents: frozenset[str] = frozenset()

    @property
    def config(self) -> pb.PodSandboxConfig:
        """As it was asked for."""
        return pb.PodSandboxConfig.FromString(self.meta.config)


@dataclass(frozen=True, slots=True)
class ContainerRow:
    meta: ContainerMetadata
    status: ContainerStatus
    intents: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What a running daemon is at just now, and what it has given up; nothing when there is no daemon."""

    arriving: bool = False
    transfers: frozenset[str] = frozenset()  # names below ingest
    abandoned: frozenset[str] = frozenset()  # blobs of pulls that failed, for which nobody has come back
    directories: frozenset[int] = frozenset()  # of snapshots that get their row in a moment
    daemon: int = 0  # its pid
    restores: frozenset[str] = frozenset()  # ids of containers whose checkpoint is being read before they have a row
    sessions: frozenset[str] = frozenset()  # whose beginning or end it sees to


@dataclass(frozen=True, slots=True)
class Rows:
    """All that has a row. A row that could not be read still owns what bears its id."""

    pods: Mapping[str, PodRow]
    containers: Mapping[str, ContainerRow]
    unreadable: frozenset[str] = frozenset()
    loose_intents: tuple[tuple[str, str], ...] = ()  # (object id, operation) of objects without a row
    images: Mapping[str, str] = field(default_factory=dict)  # id -> a name
    layers: Mapping[str, str] = field(default_factory=dict)  # chain id -> image id
    doubtful: bool = False  # an image cannot be read: any layer may be one of its own
    blobs: frozenset[str] = frozenset()
    loose_blobs: frozenset[str] = frozenset()  # no image refers to them any more
    snapshots: tuple[SnapshotRow, ...] = ()
    under_way: UnderWay = UnderWay()

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(self.pods) | frozenset(self.containers) | self.unreadable

    @property
    def cgroup_parents(self) -> frozenset[str]:
        """Where the cgroups of pods are."""
        return frozenset(parent_path(pod.meta.cgroup_parent) for pod in self.pods.values())

    def snapshot_owner(self, row: SnapshotRow) -> str | None:
        """The image or container that a snapshot is for; None when nobody wants it."""
        if row.kind == "committed":
            if row.key in self.layers:
                return self.layers[row.key]
            if self.doubtful:
                return "an image that cannot be read"
            return "another layer" if self._is_parent(row) else None
        if row.key.startswith(UNPACKING):
            return "an image that is coming in" if self.under_way.arriving else None
        owner = container_of_key(row.key)
        return owner if owner in self.containers or owner in self.unreadable else None

    def _is_parent(self, row: SnapshotRow) -> bool:
        return any(other.parent == row.key for other in self.snapshots)


@dataclass(frozen=True, slots=True)
class Inventory:
    """The part that is read from the store by a daemon too: what it does not have at hand as rows."""

    images: tuple[ImageRow, ...]
    blobs: frozenset[str]
    loose_blobs: frozenset[str]
    snapshots: tuple[SnapshotRow, ...]
    intents: tuple[Intent, ...]


def read_inventory(tx: Any) -> Inventory:
    return Inventory(
        tuple(images.load_images(tx)),
        frozenset(images.load_blobs(tx)),
        frozenset(images.unused_blobs(tx)),
        tuple(images.load_snapshots(tx)),
        tuple(pods.load_intents(tx)),
    )


def of_world(world: World, inventory: Inventory, under_way: UnderWay) -> Rows:
    """As a running daemon has them; what it has in memory is what is on disk."""
    found_pods = {id: PodRow(pod.meta, pod.status, frozenset(pod.intents)) for id, pod in world.pods.items()}
    found_containers = {
        id: ContainerRow(one.meta, one.status, frozenset(one.intents)) for id, one in world.containers.items()
    }
    return _rows(found_pods, found_containers, world.unreadable, inventory, under_way)


def of_store(tx: Any) -> Rows:
    """As they lie in a store that nobody uses."""
    inventory = read_inventory(tx)
    found_pods = pods.load_pods(tx)
    found_containers = pods.load_containers(tx)
    intents: dict[str, set[str]] = {}
    for intent in inventory.intents:
        intents.setdefault(intent.object_id, set()).add(intent.op)
    return _rows(
        {meta.id: PodRow(meta, status, frozenset(intents.get(meta.id, ()))) for meta, status in found_pods},
        {meta.id: ContainerRow(meta, status, frozenset(intents.get(meta.id, ()))) for meta, status in found_containers},
        frozenset(key for _, key, _ in pods.quarantined(tx)),
        inventory,
        UnderWay(),
    )


def _rows(
    found_pods: Mapping[str, PodRow],
    found_containers: Mapping[str, ContainerRow],
    unreadable: frozenset[str],
    inventory: Inventory,
    under_way: UnderWay,
) -> Rows:
    chains = {row.id: _chain(row) for row in inventory.images}
    return Rows(
        pods=found_pods,
        containers=found_containers,
        unreadable=unreadable,
        loose_intents=tuple(_loose(inventory.intents, {*found_pods, *found_containers, *unreadable})),
        images={row.id: row.names[0] if row.names else row.id for row in inventory.images},
        layers={layer: image_id for image_id, chain in chains.items() for layer in chain or ()},
        doubtful=None in chains.values(),
        blobs=inventory.blobs,
        loose_blobs=inventory.loose_blobs,
        snapshots=inventory.snapshots,
        under_way=under_way,
    )


def _chain(row: ImageRow) -> tuple[str, ...] | None:
    try:
        return chain_ids(parse_config(row.id, row.config, row.size, (), ()).diff_ids)
    except InvalidArgument:
        return None


def _loose(intents: Iterable[Intent], owners: set[str]) -> Iterable[tuple[str, str]]:
    return ((intent.object_id, intent.op) for intent in intents if intent.object_id not in owners)
