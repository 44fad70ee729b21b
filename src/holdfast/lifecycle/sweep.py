"""The sweep: what nobody owns is removed, at recovery and by `holdfast doctor --fix`; and the doctor's report.

What is found in one look only may be on its way in or out. So a finding counts when it is made twice, with rows that
were read after each look; and the second look is right before anything is done.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from holdfast.lifecycle.belongings import plan
from holdfast.lifecycle.cgroups import Cgroups
from holdfast.lifecycle.diagnosis import Finding, Fix, Verdict
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.rows import Rows
from holdfast.lifecycle.survey import Place, take
from holdfast.lifecycle.tasks import apart
from holdfast.linux import files, mount, process
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import DeadlineExceeded, HoldfastError
from holdfast.model.state import ProcessRef
from holdfast.model.tally import Counter as Tally
from holdfast.runtime.keeper import WorkerInfo
from holdfast.runtime.shims import Shims, wait_gone

log = logging.getLogger(__name__)

END_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 0.1  # between two looks

ReadRows = Callable[[], Awaitable[Rows]]
ListWorkers = Callable[[], Awaitable[list[WorkerInfo] | None]]
Collect = Callable[[list[Finding]], Awaitable[None]]


@dataclass(slots=True)
class Examination:
    """What the doctor has to say, and what he has done."""

    findings: list[Finding]
    milliseconds: float = 0.0
    fixed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def orphans(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict is Verdict.ORPHAN]

    def as_data(self, daemon: str) -> dict[str, Any]:
        return {
            "daemon": daemon,
            "milliseconds": round(self.milliseconds, 1),
            "counts": dict(sorted(Counter(str(finding.verdict) for finding in self.findings).items())),
            "findings": [asdict(finding) for finding in self.findings],
            "fixed": self.fixed,
            "problems": self.problems,
        }


class Sweeper:
    """Looks, judges, and removes orphans; what cannot be removed is reported and left for the next time.

    `remove_rows` removes what has a row, or files that go with one, by the rules of whoever has them.
    """

    def __init__(
        self,
        layout: Layout,
        cgroups: Cgroups,
        rows: ReadRows,
        workers: ListWorkers,
        shims: Shims,
        remove_rows: Collect | None = None,
    ) -> None:
        self._layout = layout
        self._cgroups = cgroups
        self._rows = rows
        self._workers = workers
        self._shims = shims
        self._remove_rows = remove_rows
        self.orphans = Tally(
            "holdfast_orphans_total", "What nobody owns any more, by kind and by what was done.", ("kind", "result")
        )
        self.found: dict[tuple[str, ...], int] = {}  # by kind and verdict but ok, at the last look that counts

    async def sweep(self, problems: list[str]) -> list[str]:
        """Remove every orphan. Returns what was removed; appends to `problems` what could not be."""
        try:
            found = Examination(await self._look())
            if found.orphans:
                found = self._agreed(found.findings, await self._look())
        except (OSError, HoldfastError) as exc:
            problems.append(f"cannot look for orphans: {exc}")
            return []
        self._count(found)
        await self._fix(found)
        await self._cgroups.remove_root()
        problems += found.problems
        problems += [f"{one.where}: {one.why}" for one in found.findings if one.kind == "place"]
        return found.fixed

    async def examine(self, *, fix: bool = False) -> Examination:
        """Look at everything; with `fix` remove the orphans."""
        began = time.monotonic()
        found = Examination(await self._look())
        if any(finding.verdict is not Verdict.OK for finding in found.findings):
            await asyncio.sleep(PAUSE_SECONDS)
            found = self._agreed(found.findings, await self._look())
        self._count(found)
        if fix:
            await self._fix(found)
        found.milliseconds = (time.monotonic() - began) * 1000
        return found

    def _count(self, found: Examination) -> None:
        wrong = (one for one in found.findings if one.verdict is not Verdict.OK)
        self.found = dict(Counter((one.kind, str(one.verdict)) for one in wrong))

    def _agreed(self, before: list[Finding], now: list[Finding]) -> Examination:
        known = {(*finding.key, finding.verdict) for finding in before}
        return Examination([one for one in now if one.verdict is Verdict.OK or (*one.key, one.verdict) in known])

    async def _look(self) -> list[Finding]:
        rows = await self._rows()
        place = Place(self._layout, self._cgroups.root, rows.cgroup_parents, rows.ids)
        survey = await apart(take, place, process.boot_id())
        if (workers := await self._workers()) is not None:
            survey = replace(survey, workers=tuple(workers))
        return plan(survey, await self._rows())

    async def _fix(self, found: Examination) -> None:
        for orphan in found.orphans:
            try:
                if not await self._remove(orphan):
                    continue
                found.fixed.append(str(orphan))
                self.orphans.add(orphan.kind, "removed")
                log.info("removed orphaned %s: %s", orphan, orphan.why)
            except (OSError, HoldfastError) as exc:
                found.problems.append(f"cannot remove orphaned {orphan}: {exc}")
                self.orphans.add(orphan.kind, "failed")
            crashpoint("sweep.removed")
        by_rows = [one for one in found.orphans if one.fix in (Fix.COLLECT, Fix.DROP_SNAPSHOT, Fix.CLEAR_INTENT)]
        if by_rows and self._remove_rows is not None:
            await self._remove_rows(by_rows)
            found.fixed += map(str, by_rows)
            for one in by_rows:
                self.orphans.add(one.kind, "removed")
        elif by_rows:
            found.problems += [f"{one} is left to the daemon's next start" for one in by_rows]

    async def _remove(self, orphan: Finding) -> bool:
        """Returns whether this is where it is removed, and not together with others."""
        if orphan.fix is Fix.END_SHIM and orphan.process is not None:
            await self._shims.end(orphan.id, orphan.process)
        elif orphan.fix is Fix.KILL and orphan.process is not None:
            await _kill(orphan.process)
        elif orphan.fix is Fix.REMOVE_CGROUP:
            await self._cgroups.remove(orphan.where, kill=True)
        elif orphan.fix is Fix.DETACH:
            await apart(_detach, orphan.where)
        elif orphan.fix is Fix.DELETE:
            await apart(_delete, orphan.where)
        else:
            return False
        return True


async def _kill(ref: ProcessRef) -> None:
    with process.pin(ref.pid, ref.start_time) as pinned:
        if pinned is not None:
            pinned.send(signal.SIGKILL)
    if not await wait_gone(ref, END_SECONDS):
        raise DeadlineExceeded(f"pid {ref.pid} does not die")


def _detach(target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        mount.unmount_tree(target)


def _delete(path: str) -> None:
    """What is still mounted below goes first; what lies behind it is not touched."""
    if os.path.isdir(path) and not os.path.islink(path):
        mount.unmount_tree(path)
    files.remove_tree(path)
