"""A running daemon's part in the sweep: its rows, what it has under way, and the removal of what has a row."""

import os

from holdfast.images.service import Images
from holdfast.lifecycle.diagnosis import Finding, Fix
from holdfast.lifecycle.restores import Restores
from holdfast.lifecycle.rows import Rows, UnderWay, of_world, read_inventory
from holdfast.lifecycle.sessions import Sessions
from holdfast.lifecycle.world import World
from holdfast.model.errors import Unavailable
from holdfast.runtime.keeper import Keeper, WorkerInfo
from holdfast.snapshots.overlay import Snapshots
from holdfast.store import pods as pod_rows
from holdfast.store.db import Store


class Live:
    """The daemon's side of the sweeper."""

    def __init__(
        self,
        store: Store,
        world: World,
        images: Images,
        snapshots: Snapshots,
        keeper: Keeper,
        sessions: Sessions,
        restores: Restores,
    ) -> None:
        self._restores = restores
        self._sessions = sessions
        self._store = store
        self._world = world
        self._images = images
        self._snapshots = snapshots
        self._keeper = keeper

    async def rows(self) -> Rows:
        """The store is read first: whatever has no row there any more is not in memory either."""
        inventory = await self._store.read(read_inventory)
        under_way = UnderWay(
            arriving=self._images.arriving,
            transfers=self._images.transfers,
            abandoned=self._images.abandoned(inventory.blobs),
            directories=self._snapshots.directories,
            daemon=os.getpid(),
            restores=frozenset(self._restores.reading),
            sessions=frozenset(self._sessions.mine),
        )
        return of_world(self._world, inventory, under_way)

    async def workers(self) -> list[WorkerInfo] | None:
        try:
            return await self._keeper.list_workers()
        except Unavailable:
            return None

    async def remove_rows(self, findings: list[Finding]) -> None:
        for one in findings:
            if one.fix is Fix.DROP_SNAPSHOT:
                await self._snapshots.remove(one.where)
            elif one.fix is Fix.CLEAR_INTENT:
                op = one.where.partition(" ")[0]
                await self._store.write(lambda tx, id=one.id, op=op: pod_rows.clear_intent(tx, id, op))  # type: ignore[misc]
        if any(one.fix is Fix.COLLECT for one in findings):
            await self._images.collect(asked=True)
