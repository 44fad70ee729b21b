"""What the store has lost is brought back from witnesses beside it, before anything is loaded.

Rows of pods, containers and images come from their copies (store.copies), those of snapshots from what each directory
says of itself, for whatever is needed by a container or an image. In a start that finds nothing lost this only looks.
"""

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw
from google.protobuf.message import DecodeError

from holdfast.images.layers import chain_ids
from holdfast.lifecycle.loading import load_rows
from holdfast.lifecycle.tasks import in_thread
from holdfast.model.errors import AlreadyExists, InvalidArgument
from holdfast.model.image import parse_config
from holdfast.model.spec import volume_key
from holdfast.model.state import ContainerStatus, PodStatus, container_state
from holdfast.oci.mounts import image_volumes
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.snapshots import witness
from holdfast.store import images, pods
from holdfast.store.copies import ContainerCopy, Copies, Copy, ImageCopy, PodCopy, encode
from holdfast.store.db import Store
from holdfast.store.images import ImageRow, SnapshotRow

log = logging.getLogger(__name__)

# The store keeps what rows refer to in this order, and so must what is brought back.
ORDER: Final = (PodCopy, ContainerCopy, ImageCopy)


@dataclass(slots=True)
class Rebuilt:
    """What was brought back and what could not be; copies without a row; copies that are missing; all snapshots."""

    told: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    missing: list[Copy] = field(default_factory=list)
    snapshots: list[SnapshotRow] = field(default_factory=list)


async def rebuild(store: Store, copies: Copies, snapshots: Path, *, only_look: bool = False) -> list[str]:
    """Bring back rows that were lost. Returns what there is to say; the store remembers that it is in doubt.

    With `only_look` nothing changes but the store, which is somebody's own copy then.
    """
    try:
        found, told = await in_thread(lambda: copies.load(only_look=only_look))
    except OSError as exc:
        found, told = [], [f"the copies of rows cannot be read: {exc}"]
    generation = store.generation
    store.count_from(max((copy.generation for copy in found), default=0))

    def change(tx: apsw.Connection) -> Rebuilt:
        rebuilt = reconcile(tx, found, generation)
        bring_back_snapshots(tx, snapshots, rebuilt)
        rebuilt.snapshots = images.load_snapshots(tx)
        rebuilt.missing = missing(tx, {copy.id for copy in found}, generation)
        return rebuilt

    rebuilt = await store.mend(change)
    told = [*told, *rebuilt.told, *rebuilt.gone]
    for line in told:
        log.error("%s", line)
    if rebuilt.told:
        await store.doubt(rebuilt.told)
    if only_look:
        return told
    try:
        await in_thread(_tidy, copies, snapshots, rebuilt)
    except OSError as exc:
        log.warning("copies of rows could not be brought up to date: %s", exc)
    return told


def reconcile(tx: apsw.Connection, copies: Iterable[Copy], generation: int) -> Rebuilt:
    """`generation` is the store's, 0 if it was salvaged. A row is changed only by a copy that is newer than the store,
    and an exit by nothing at all.
    """
    pod_rows, container_rows = load_rows(tx)
    there: dict[str, PodStatus | ContainerStatus | ImageRow] = {
        **{meta.id: status for meta, status in pod_rows},
        **{meta.id: status for meta, status in container_rows},
        **{row.id.partition(":")[2]: row for row in images.load_images(tx)},
    }
    aside = {key for _, key, _ in pods.quarantined(tx)}
    rebuilt = Rebuilt()
    for copy in sorted(copies, key=lambda copy: (ORDER.index(type(copy)), copy.generation)):
        newer = copy.generation > generation
        row = there.get(copy.id)
        if row is None and not newer and copy.id not in aside:
            rebuilt.stale.append(copy.id)
        elif row is None:
            rebuilt.told.append(_bring_back(tx, copy))
        elif newer:
            rebuilt.told += _bring_up(tx, copy, row)
    return rebuilt


def bring_back_snapshots(tx: apsw.Connection, directory: Path, rebuilt: Rebuilt) -> None:
    """Rows of snapshots that somebody needs, from the directories that say that they are those."""
    there = {row.key: row for row in images.load_snapshots(tx)}
    wanted = set(_needed(tx))
    if wanted <= there.keys():
        return
    taken = {row.directory for row in there.values()}
    on_disk = {row.key: row for row in witness.read_all(directory) if row.directory not in taken}
    for key in sorted(wanted - there.keys()):
        chain = _chain(key, on_disk, there)
        if chain is None:
            rebuilt.gone.append(f"the row of snapshot {key} was lost, and nothing is left to bring it back from")
            continue
        for row in reversed(chain):
            images.insert_snapshot(tx, row)
            there[row.key] = row
            rebuilt.told.append(f"the row of snapshot {row.key} was lost and was brought back from its directory")


def _chain(key: str, on_disk: dict[str, SnapshotRow], there: dict[str, SnapshotRow]) -> list[SnapshotRow] | None:
    """The snapshot and those that it stands on and that have no row either, the topmost first."""
    found: list[SnapshotRow] = []
    wanted: str | None = key
    while wanted is not None and wanted not in there:
        if wanted not in on_disk or len(found) > len(on_disk):
            return None
        found.append(on_disk[wanted])
        wanted = found[-1].parent
    return found


def _needed(tx: apsw.Connection) -> Iterable[str]:
    for id, key, config in tx.execute("SELECT id, snapshot_key, config FROM containers WHERE snapshot_key != ''"):
        yield str(key)
        with contextlib.suppress(DecodeError, TypeError):  # it is set aside later
            numbers = image_volumes(pb.ContainerConfig.FromString(config))
            yield from (volume_key(str(id), number) for number in numbers)
    for row in images.load_images(tx):
        try:
            yield from chain_ids(parse_config(row.id, row.config, row.size, (), ()).diff_ids)
        except InvalidArgument as exc:
            log.warning("which layers image %s has cannot be read: %s", row.id, exc)


def _bring_back(tx: apsw.Connection, copy: Copy) -> str:
    pods.forget_quarantined(tx, copy.id)
    try:
        with tx:  # a savepoint
            if isinstance(copy, PodCopy):
                pods.insert_pod(tx, copy.meta, copy.status)
            elif isinstance(copy, ContainerCopy):
                pods.insert_container(tx, copy.meta, copy.status)
            else:
                images.put_image(tx, copy.row, copy.blobs)
    except (AlreadyExists, apsw.ConstraintError) as exc:
        pods.set_aside(tx, "copies", copy.id, encode(copy).decode(), str(exc))
        return f"the row of {copy} was lost and cannot be brought back: {exc}"
    return f"the row of {copy} was lost and was brought back from its copy"


def _bring_up(tx: apsw.Connection, copy: Copy, row: PodStatus | ContainerStatus | ImageRow) -> list[str]:
    """An operation that was acknowledged is not under way any more, whatever the row says."""
    if isinstance(copy, ImageCopy):
        images.put_image(tx, copy.row, copy.blobs)
        return [] if copy.row == row else [f"names of {copy} were lost and were brought back from its copy"]
    pods.clear_intent(tx, copy.id, "run" if isinstance(copy, PodCopy) else "create")
    if row == copy.status or (isinstance(row, ContainerStatus) and row.finished_at):
        return []
    if isinstance(copy, PodCopy):
        pods.update_pod(tx, copy.id, lambda before: copy.status)
        return [f"the status of {copy} was lost and was brought back from its copy"]
    pods.update_container(tx, copy.id, lambda before: copy.status)
    return [f"the status of {copy} was lost and was brought back from its copy: {container_state(copy.status)}"]


def missing(tx: apsw.Connection, there: set[str], generation: int) -> list[Copy]:
    """Copies of what has a row and none yet, and was acknowledged."""
    ids = {id for table in ("pods", "containers") for (id,) in tx.execute(f"SELECT id FROM {table}")}
    ids |= {id.partition(":")[2] for (id,) in tx.execute("SELECT id FROM images")}
    if ids <= there:
        return []
    begun = {(intent.object_id, intent.op) for intent in pods.load_intents(tx)}
    pod_rows, container_rows = load_rows(tx)
    wanted: list[Copy] = [
        PodCopy(generation, meta, status) for meta, status in pod_rows if (meta.id, "run") not in begun
    ]
    wanted += [
        ContainerCopy(generation, meta, status) for meta, status in container_rows if (meta.id, "create") not in begun
    ]
    wanted += [ImageCopy(generation, row, images.blobs_of(tx, row.id)) for row in images.load_images(tx)]
    return [copy for copy in wanted if copy.id not in there]


def _tidy(copies: Copies, snapshots: Path, rebuilt: Rebuilt) -> None:
    for id in rebuilt.stale:
        copies.drop(id)
    for copy in rebuilt.missing:
        copies.keep(copy)
    if snapshots.is_dir():
        witness.mend(snapshots, rebuilt.snapshots)
