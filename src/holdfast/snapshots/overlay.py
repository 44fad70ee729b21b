"""Snapshots on overlayfs: committed layers that never change, and one writable or read-only view a key.

    snapshots/<n>/fs     the layer itself, overlayfs's upper or lower directory
    snapshots/<n>/work   overlayfs's own, for active snapshots
    snapshots/<n>/row    a copy of its row, see witness
    snapshots/<n>/seal   of a committed layer: its shape as it was when all of it was on disk, see witness

Directories have short numbers for names because mount(2) takes one page of options. A directory is made before its
row and deleted after it: a crash leaves a directory to sweep, never a row without one. (After a power cut there may be
a row without one: directories are not synced for each container. It had nothing in it that was on disk.) A committed
layer whose content is gone, or has another shape than its seal says, is lost: nothing stands on it until it is unpacked
again.

What the process knows moves first, and without waiting, so that of two changes at once the later one sees the earlier.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import stat
from pathlib import Path

from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.linux.threads import in_thread
from holdfast.model import trace
from holdfast.model.errors import AlreadyExists, FailedPrecondition, HoldfastError, InvalidArgument, NotFound
from holdfast.model.spec import Mount
from holdfast.snapshots import witness
from holdfast.store import images as rows
from holdfast.store.db import Store
from holdfast.store.images import SnapshotRow
from holdfast.store.quarantine import set_aside

log = logging.getLogger(__name__)


class Snapshots:
    """All snapshots of a node; the rows are kept in memory as well."""

    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._rows: dict[str, SnapshotRow] = {}
        self._numbers = itertools.count(1)
        self._undeleted: set[Path] = set()
        self._lost: set[str] = set()  # committed, and their content is gone or damaged
        self._proofs: dict[int, asyncio.Future[bool]] = {}  # by directory: whether it is as its seal says
        self.unfinished = asyncio.Event()  # something could not be deleted, by us or by whoever shares our disk

    async def load(self) -> list[str]:
        """Read the rows; to be called once, before anything else. Returns what there is to say about lost directories.

        Raises InvalidArgument for an unusable path.
        """
        if any(sign in str(self._directory) for sign in ":,\\"):
            raise InvalidArgument(f"root: {self._directory} has a sign in it that overlayfs takes for its own")
        files.make_private(self._directory)
        self._rows = {row.key: row for row in await self._store.read(rows.load_snapshots)}
        taken = {int(name) for name in os.listdir(self._directory) if name.isdigit()}
        self._numbers = itertools.count(max([0, *taken, *(row.directory for row in self._rows.values())]) + 1)
        told = []
        for row in self._rows.values():
            if row.kind == "committed" and self._is_lost(row):
                told.append(f"the content of layer {row.key} is lost")
                self._lost.add(row.key)
            elif row.kind != "committed" and row.directory not in taken:
                told.append(f"directory of snapshot {row.key} was lost; it starts afresh")
                try:
                    self._make_directories(row)
                except OSError as exc:  # one container's loss is no reason not to start
                    log.error("directory of snapshot %s cannot be made: %s", row.key, exc)
        return told

    def _is_lost(self, row: SnapshotRow) -> bool:
        """As far as a look at the top of it tells; to compare every file would take long."""
        try:
            return row.inodes > 1 and not os.listdir(self._place(row) / "fs")
        except FileNotFoundError:
            return True
        except OSError as exc:
            log.warning("layer %s cannot be looked at: %s", row.key, exc)
            return False

    def is_committed(self, key: str) -> bool:
        """Whether it is there, whole as far as is known."""
        row = self._rows.get(key)
        return row is not None and row.kind == "committed" and key not in self._lost

    def has(self, key: str) -> bool:
        return key in self._rows

    def parent(self, key: str) -> str | None:
        """What it stands on. Raises NotFound."""
        return self._row(key).parent

    def starting_with(self, prefix: str) -> list[str]:
        """Keys that begin so."""
        return sorted(key for key in self._rows if key.startswith(prefix))

    @trace.step("prepare snapshot")
    async def prepare(self, key: str, parent: str | None) -> list[Mount]:
        """A writable snapshot on top of a committed one, or on nothing. Raises AlreadyExists, NotFound."""
        await self._make(key, "active", parent)
        return await self.mounts(key)

    async def view(self, key: str, parent: str | None) -> list[Mount]:
        """A read-only snapshot of a committed one, or of nothing. Raises AlreadyExists, NotFound."""
        await self._make(key, "view", parent)
        return await self.mounts(key)

    async def lost_below(self, key: str | None) -> str | None:
        """The topmost layer of a stack that is lost, if any. Each is held against its seal at its first use."""
        while key is not None:
            row = self._row(key)
            if row.kind == "committed" and key not in self._lost and not await self._prove(row):
                log.error("layer %s is not as it was when it was unpacked", key)
                if self._rows.get(key) == row:
                    self._lost.add(key)
            if key in self._lost:
                return key
            key = row.parent
        return None

    async def commit(self, name: str, key: str, size: int = 0, inodes: int = 0, shape: str = "") -> None:
        """Make an active snapshot immutable, under `name`. Its content, which has that shape, must be on disk already.

        It takes the place of one of that name that is lost, which is set aside.
        """
        row = self._row(key)
        if row.kind != "active":
            raise FailedPrecondition(f"cannot commit snapshot {key}: it is {row.kind}")
        await in_thread(witness.seal_layer, self._place(row), shape)
        self._proofs[row.directory] = asyncio.get_running_loop().create_future()
        self._proofs[row.directory].set_result(True)
        before = self._rows.get(name)
        if before is not None and name not in self._lost:
            raise AlreadyExists(f"cannot commit snapshot {key}: {name} exists", name)
        committed = SnapshotRow(name, "committed", row.parent, row.directory, size, inodes)
        del self._rows[key]
        self._rows[name] = committed
        try:
            witness.write(self._place(committed), committed)
            commit = rows.commit_snapshot if before is None else rows.replace_snapshot
            await self._store.write(lambda tx: commit(tx, key, committed))
        except (HoldfastError, OSError):  # but not when it is cancelled: what is queued will be done
            self._rows[key] = row
            if before is None:
                del self._rows[name]
            else:
                self._rows[name] = before
            raise
        if before is not None:
            self._lost.discard(name)
            await self._set_aside(self._place(before))

    async def mounts(self, key: str) -> list[Mount]:
        """How to see a snapshot; performed by whoever wants to."""
        if (lost := await self.lost_below(key)) is not None:
            raise FailedPrecondition(f"cannot mount snapshot {key}: layer {lost} is lost; pull the image again")
        row = self._row(key)
        lowers = self.layers(row.parent)
        if row.kind == "committed":
            lowers = self.layers(key)
        own = self._place(row)
        if row.kind != "active":
            return [view_of(lowers or [own / "fs"])]
        if not lowers:
            return [Mount("bind", str(own / "fs"), options=("bind", "rw"))]
        options = (f"lowerdir={_joined(lowers)}", f"upperdir={own / 'fs'}", f"workdir={own / 'work'}")
        return [Mount("overlay", "overlay", options=options)]

    def place(self, key: str) -> Path:
        """The directory of one layer by itself."""
        return self._place(self._row(key)) / "fs"

    def layers(self, key: str | None) -> list[Path]:
        """The directories of a committed snapshot and its ancestors, the topmost first."""
        found = []
        while key is not None:
            row = self._row(key)
            found.append(self._place(row) / "fs")
            key = row.parent
        return found

    def below(self, key: str) -> list[Path]:
        """What a view shows: the layers that it stands on, or its own directory, which is empty."""
        row = self._row(key)
        return self.layers(row.parent) or [self._place(row) / "fs"]

    async def remove(self, key: str) -> None:
        """Remove a snapshot, its row first. Idempotent. Raises FailedPrecondition while others stand on it."""
        row = self._rows.get(key)
        if row is None:
            return
        if any(other.parent == key for other in self._rows.values()):
            raise FailedPrecondition(f"cannot remove snapshot {key}: another one stands on it")
        del self._rows[key]
        try:
            await self._store.write(lambda tx: rows.delete_snapshot(tx, key))
        except BaseException:
            self._rows.setdefault(key, row)
            raise
        crashpoint("snapshot.row")
        await self._delete(self._place(row))

    @property
    def directories(self) -> frozenset[int]:
        """The numbers of the directories in use, also of snapshots whose row is about to be written."""
        return frozenset(row.directory for row in self._rows.values())

    def loose(self) -> list[str]:
        """Committed snapshots on which nothing stands."""
        parents = {row.parent for row in self._rows.values()}
        return [row.key for row in self._rows.values() if row.kind == "committed" and row.key not in parents]

    def usage(self) -> tuple[int, int]:
        """(bytes, inodes) of all committed layers, as they were when they were unpacked."""
        committed = [row for row in self._rows.copy().values() if row.kind == "committed"]
        return sum(row.bytes for row in committed), sum(row.inodes for row in committed)

    async def finish_deletions(self) -> bool:
        """Try again to delete what could not be deleted. Returns whether nothing is left of it."""
        for place in list(self._undeleted):
            await self._delete(place)
        return not self._undeleted

    async def _make(self, key: str, kind: str, parent: str | None) -> None:
        if (lost := await self.lost_below(parent)) is not None:
            raise FailedPrecondition(f"cannot make snapshot {key}: layer {lost} is lost; pull the image again")
        if key in self._rows:
            raise AlreadyExists(f"cannot make snapshot {key}: it exists", key)
        if parent is not None and self._row(parent).kind != "committed":
            raise FailedPrecondition(f"cannot make snapshot {key}: {parent} is not committed")
        row = SnapshotRow(key, kind, parent, next(self._numbers))
        self._rows[key] = row
        try:
            self._make_directories(row)
            crashpoint("snapshot.directory")
            await self._store.write(lambda tx: rows.insert_snapshot(tx, row))
        except BaseException:
            del self._rows[key]
            with contextlib.suppress(HoldfastError):  # a write that was cancelled is done all the same
                await self._store.write(lambda tx: rows.delete_snapshot(tx, key))
            await self._delete(self._place(row))
            raise

    async def _prove(self, row: SnapshotRow) -> bool:
        """Once for each directory, whoever asks; in a thread, since a layer may have many files."""
        proof = self._proofs.get(row.directory)
        if proof is None:
            look = in_thread(witness.is_sealed, self._place(row))
            proof = asyncio.get_running_loop().create_task(look, name=f"prove layer {row.key}")
            self._proofs[row.directory] = proof
        return await asyncio.shield(proof)

    def _make_directories(self, row: SnapshotRow) -> None:
        """The root directory is as the parent has it: overlayfs shows the attributes of the topmost."""
        place = self._place(row)
        files.mkdir(place, 0o711)
        files.mkdir(place / "work", 0o711)
        files.mkdir(place / "fs", 0o755)
        like = os.stat(self.place(row.parent) if row.parent is not None else place / "fs")
        os.chown(place / "fs", like.st_uid, like.st_gid)
        os.chmod(place / "fs", stat.S_IMODE(like.st_mode) if row.parent is not None else 0o755)
        witness.write(place, row)

    async def _set_aside(self, place: Path) -> None:
        """By renaming: a container that runs on it runs on."""
        try:
            await in_thread(set_aside, self._directory.parent, place, "its layer is damaged")
        except FileNotFoundError:
            return
        except OSError as exc:  # the sweep finds it: it has no row any more
            log.warning("cannot set %s aside: %s", place, exc)

    async def _delete(self, place: Path) -> bool:
        """Delete a directory, in a thread: there may be a lot in it. What cannot be deleted now is tried again."""
        try:
            await in_thread(files.remove_tree, place)
        except OSError as exc:
            log.warning("snapshot directory %s is left for later: %s", place, exc)
            self._undeleted.add(place)
            self.unfinished.set()
            return False
        self._undeleted.discard(place)
        return True

    def _place(self, row: SnapshotRow) -> Path:
        return self._directory / str(row.directory)

    def _row(self, key: str) -> SnapshotRow:
        if (row := self._rows.get(key)) is None:
            raise NotFound(f"cannot find snapshot {key}")
        return row


def view_of(layers: list[Path]) -> Mount:
    """How to see layers, the topmost first, and not to change them."""
    if len(layers) == 1:
        return Mount("bind", str(layers[0]), options=("bind", "ro"))
    return Mount("overlay", "overlay", options=(f"lowerdir={_joined(layers)}",))


def _joined(layers: list[Path]) -> str:
    return ":".join(map(str, layers))
