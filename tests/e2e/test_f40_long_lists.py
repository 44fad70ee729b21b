"""F40: a node whose history is never collected: lists stay quick, and one in parts takes no memory for its length."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit.node import Node, node, until
from kit.resources import held

from holdfast.lifecycle.loading import load_rows
from holdfast.model.spec import new_id
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub
from holdfast.snapshots.overlay import Snapshots
from holdfast.store import images
from holdfast.store import pods as rows
from holdfast.store.db import Store

EACH = 120  # containers of a pod
QUICK = 2.0  # seconds for a list, on a busy machine: it takes some milliseconds for each thousand
PART = 2 << 20  # bytes at most
PEAK = 24 << 10  # KiB that a list in parts may take at most, however long: some parts on their way


def multiply(node: Node, many: int) -> None:
    """While the daemon is down: as many containers that have exited as that, after the one that there is."""

    async def insert() -> None:
        store = Store.open(node.root / "holdfast.db")
        try:
            ((pod, pod_status),), ((one, status),) = await store.read(load_rows)
            config = pb.ContainerConfig.FromString(one.config)
            snapshots = Snapshots(store, node.root / "snapshots")
            await snapshots.load()
            (parent,) = [row.parent for row in await store.read(images.load_snapshots) if row.key == one.snapshot_key]
            for first in range(0, many, EACH):
                owner = replace(pod, id=new_id(), uid=f"{pod.uid}-{first}", created_at=pod.created_at + first)
                copies = []
                for number in range(first, min(first + EACH, many)):
                    config.metadata.attempt = number + 1
                    changed = {"attempt": number + 1, "config": config.SerializeToString(), "pod_id": owner.id}
                    id = new_id()
                    copies.append(replace(one, id=id, snapshot_key=id, created_at=one.created_at + number, **changed))

                def change(tx: Any, owner: Any = owner, copies: Any = copies) -> None:
                    rows.insert_pod(tx, owner, pod_status)
                    for copy in copies:
                        rows.insert_container(tx, copy, status)

                await store.write(change)
                await asyncio.gather(*(snapshots.prepare(copy.snapshot_key, parent) for copy in copies))
        finally:
            store.close()

    asyncio.run(insert())


@contextmanager
def history(many: int) -> Iterator[Node]:
    with node() as one:
        pod = one.run_pod()
        one.exited(one.run(pod, "exit 3"))
        one.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        one.end(15)
        multiply(one, many)
        one.start()
        yield one


def quickest(call: Callable[[], Any]) -> tuple[float, Any]:
    """Of three, in seconds; and the last one's answer."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        answer = call()
        times.append(time.monotonic() - began)
    return min(times), answer


def peak(pid: int, does: Callable[[], None]) -> int:
    """By how many KiB a process is larger meanwhile than it was before, at most (proc(5), clear_refs and VmHWM)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")

    def largest() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    before = largest()
    does()
    return largest() - before


def slowly(parts: Iterable[Any]) -> Iterator[Any]:
    """As a client reads that has other things to do."""
    for part in parts:
        assert part.ByteSize() < PART
        time.sleep(0.05)
        yield part


def lists_stay_usable(many: int) -> None:
    pods = 1 + -(-many // EACH)
    with history(many) as one:
        assert one.process is not None
        runtime = RuntimeServiceStub(one.channel)
        took, found = quickest(one.containers)
        assert len(found) == many + 1
        assert {(item.state, item.image_ref) for item in found} == {(pb.CONTAINER_EXITED, found[0].image_ref)}
        assert took < QUICK
        took, shown = quickest(one.pods)
        assert (len(shown), took < QUICK) == (pods, True)
        lone = pb.ContainerFilter(id=found[-1].id)
        took, answer = quickest(lambda: one.call("ListContainers", pb.ListContainersRequest(filter=lone)))
        assert [item.id for item in answer.containers] == [found[-1].id]
        assert took < QUICK
        assert one.status(found[-1].id).exit_code == 3

        def in_parts() -> None:
            for _ in range(3):
                parts = list(slowly(runtime.StreamContainers(pb.StreamContainersRequest(), timeout=60)))
                assert [item.id for part in parts for item in part.containers] == [item.id for item in found]
                parts = list(slowly(runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest(), timeout=60)))
                assert [item.id for part in parts for item in part.pod_sandboxes] == [item.id for item in shown]

        assert peak(one.process.pid, in_parts) < PEAK
        before = held(one.process.pid)
        for _ in range(5):
            abandoned = runtime.StreamContainers(pb.StreamContainersRequest(), timeout=60)
            next(iter(abandoned))
            abandoned.cancel()
        until(lambda: not held(one.process.pid).grew(before), "nothing to be kept for clients that have gone")

        running = one.run(one.run_pod(), "sleep 1000")
        took, answer = quickest(lambda: one.call("ListContainerStats", pb.ListContainerStatsRequest()))
        assert [item.attributes.id for item in answer.stats] == [running]
        assert took < QUICK
        for method, request, field in (
            ("StreamContainerStats", pb.StreamContainerStatsRequest(), "container_stats"),
            ("StreamPodSandboxStats", pb.StreamPodSandboxStatsRequest(), "pod_sandbox_stats"),
            ("StreamPodSandboxMetrics", pb.StreamPodSandboxMetricsRequest(), "pod_sandbox_metrics"),
        ):
            call = getattr(runtime, method)
            took, parts = quickest(lambda call=call, request=request: list(call(request, timeout=60)))
            assert sum(len(getattr(part, field)) for part in parts) == 1, method
            assert took < QUICK, method
        took, _ = quickest(lambda: one.restart())
        print(f"{many} containers: a start takes {took:.2f} s")
        assert len(one.containers()) == many + 2


def test_f40_lists_of_a_long_history() -> None:
    lists_stay_usable(600)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_f40_lists_of_twelve_thousand() -> None:
    lists_stay_usable(12_000)
