"""What the agent counts: gauges of pods, and what becomes of volumes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.workers import SECONDS, pod_of

from holdfast.agent.pod.env import Facts
from holdfast.agent.sync.measures import CountedManager, Measures
from holdfast.agent.volumes import plan

POD = pod_of(
    "{name: a, image: 'i:1'}", "volumes: [{name: v, emptyDir: {}}, {name: w, hostPath: {path: /none, type: File}}]"
)


def values(measures: Measures) -> dict[str, float]:
    """By name and labels, as "name a,b"."""
    return {
        " ".join((one.name.removeprefix("holdfast_agent_"), ",".join(labels))).strip(): value
        for one in measures.all
        if hasattr(one, "read") and "seconds" not in one.name
        for labels, value in one.read()
    }


def status(phase: str, *reasons: str) -> dict[str, Any]:
    waiting = [{"state": {"waiting": {"reason": reason}}} for reason in reasons]
    return {"phase": phase, "containerStatuses": [*waiting, {"state": {"running": {}}}]}


def test_gauges() -> None:
    measures = Measures()
    measures.look([status("Running", "CrashLoopBackOff"), status("Pending", "ErrImagePull", "ErrImagePull")], 3, 2, 1)
    found = values(measures)
    assert {key: value for key, value in found.items() if key.startswith("pods ")} == {
        "pods Pending": 1, "pods Running": 1, "pods Succeeded": 0, "pods Failed": 0, "pods Unknown": 0,
    }  # fmt: skip
    assert (found["containers_waiting CrashLoopBackOff"], found["containers_waiting ErrImagePull"]) == (1, 2)
    assert (found["backoffs"], found["volumes_kept"], found["manifests_unread"]) == (3, 2, 1)
    measures.look([], 0, 0, 0)
    assert values(measures)["containers_waiting ErrImagePull"] == 0, "a reason that there was is 0, not gone"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def test_volumes(tmp_path: Path, monkeypatch: Any) -> None:
    """One that is set up, one that fails, one that is kept until its pod is proven dead, and gone then."""
    monkeypatch.setattr(plan, "FIRST", 10_000_000)
    dead = False

    async def proven_dead(_: str) -> bool:
        return dead

    measures = Measures()
    manager = CountedManager(tmp_path, proven_dead, lambda _: Facts("here"), measures)
    manager.want([POD], complete=True)
    task = asyncio.get_running_loop().create_task(manager.run())
    try:
        await until(lambda: values(measures).get("volume_operations_total set_up,ok") == 1)
        await until(lambda: values(measures).get("volume_operations_total set_up,failed", 0) >= 1)
        assert manager.kept == 0
        manager.want([], complete=True)
        await until(lambda: manager.kept == 2)
        dead = True
        await until(lambda: manager.kept == 0 and not manager.told(POD.metadata.uid))
        assert values(measures)["volume_operations_total tear_down,ok"] == 2
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
