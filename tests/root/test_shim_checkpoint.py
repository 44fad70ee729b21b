"""The shim's part in checkpoints, with real runc and CRIU: freezing on a lease, images, restored tasks."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.tools import CRIU, needs_criu
from shim_kit import Container, ShimKit, reader, running_shim, until

from holdfast.linux import cgroup, mount, process
from holdfast.model import errors
from holdfast.model.checkpoint import CriuSettings
from holdfast.runtime.task import Status, TaskClient

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_criu]

COUNT = "n=0; while :; do n=$((n+1)); echo $n; usleep 20000; done"


@pytest.fixture
def kit(tmp_path: Path, lower: Path) -> Iterator[ShimKit]:
    with running_shim(tmp_path, "runc", lower) as made:
        yield made


def settings(directory: Path, program: str = CRIU) -> CriuSettings:
    (directory / "images").mkdir(parents=True, exist_ok=True)
    return CriuSettings(program, str(directory))


async def begun(kit: ShimKit, client: TaskClient, script: str = COUNT, **changes: object) -> Container:
    """One that has said something: what there is to be frozen and dumped is the script, and not runc before it."""
    one = await kit.run(client, "a", script, **changes)
    await until(one.records)
    return one


async def checkpoint(client: TaskClient, one: Container, directory: Path) -> CriuSettings:
    """Freeze, dump, thaw."""
    made = settings(directory)
    await client.freeze([one.id], 30)
    await client.checkpoint(one.id, directory / "images", made)
    await client.thaw([one.id])
    return made


def copy_of(kit: ShimKit, one: Container, name: str, args: list[str] | str = COUNT, **changes: object) -> Container:
    """A container whose root has in it what the other one's had."""
    made = kit.container(name, args, **changes)
    before, after = (kit.base / f"writable-{each.id}" / "upper" for each in (one, made))
    shutil.copytree(before, after, dirs_exist_ok=True)
    return made


async def restore(kit: ShimKit, client: TaskClient, one: Container, made: CriuSettings, **streams: object) -> int:
    await kit.create(client, one, restore=(Path(made.work) / "images", made), **streams)
    return await client.start(one.id)


def numbers(one: Container) -> list[int]:
    return [int(line) for line in one.text().split()]


async def test_restored_container_counts_on_into_its_log_and_its_exit_is_exact(
    kit: ShimKit, client: TaskClient, tmp_path: Path
) -> None:
    one = await kit.run(client, "a", f"echo kept > /tmp/file; exec 5< /tmp/file; {COUNT}")
    await until(lambda: len(numbers(one)) > 5)
    made = await checkpoint(client, one, tmp_path / "images")
    at = len(numbers(one))
    await until(lambda: len(numbers(one)) > at + 3)  # it was left running
    two = copy_of(kit, one, "b")
    pid = await restore(kit, client, two, made)
    await until(lambda: len(numbers(two)) > 5)
    first, *rest = numbers(two)
    assert 5 < first <= at + 2 and rest == list(range(first + 1, first + 1 + len(rest)))
    assert (await client.state("b")).status is Status.RUNNING
    assert (await client.state("b")).pid == pid
    assert cgroup.of_process(pid) == f"{kit.parent}/b"
    await client.kill("b", signal.SIGKILL)
    code, at_ns = await client.wait("b")
    assert (code, two.exit.code, two.exit.witness, two.exit.finished_at) == (137, 137, "shim", at_ns)
    await client.delete("b")
    assert (await client.state("a")).status is Status.RUNNING
    await client.kill("a", signal.SIGKILL)
    await client.wait("a")
    await client.delete("a")
    assert not kit.leftovers()


async def test_a_terminal_is_restored(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    one = await kit.run(client, "a", COUNT, terminal=True)
    await until(lambda: b"5\r\n" in one.text() or b"5\n" in one.text())
    made = await checkpoint(client, one, tmp_path / "images")
    two = copy_of(kit, one, "b", terminal=True)
    await restore(kit, client, two, made, terminal=True)
    await until(lambda: len(two.text().split()) > 3)
    assert int(two.text().split()[0]) > 4


async def test_what_was_typed_for_a_container_reaches_it_after_its_restore(
    kit: ShimKit, client: TaskClient, tmp_path: Path
) -> None:
    one = kit.container("a", "echo ready; while read line; do echo got $line; done; sleep 1000")
    await kit.create(client, one, stdin=str(one.bundle / "stdin"))
    await client.start("a")
    await until(lambda: b"ready" in one.text())
    made = await checkpoint(client, one, tmp_path / "images")
    two = copy_of(kit, one, "b")
    await restore(kit, client, two, made, stdin=str(two.bundle / "stdin"))
    (two.bundle / "stdin").write_bytes(b"hello\n")
    await until(lambda: b"got hello" in two.text())


async def test_other_streams_than_logs_are_restored_too(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    async with reader(tmp_path / "one") as said, reader(tmp_path / "two") as again:
        one = await kit.run(client, "a", COUNT, stdout=str(tmp_path / "one"))
        await until(lambda: len(said.split()) > 3)
        made = await checkpoint(client, one, tmp_path / "images")
        two = copy_of(kit, one, "b")
        await restore(kit, client, two, made, stdout=str(tmp_path / "two"))
        await until(lambda: len(again.split()) > 3)


async def test_frozen_containers_stand_still_until_they_are_thawed(kit: ShimKit, client: TaskClient) -> None:
    made = [await kit.run(client, name, COUNT) for name in ("a", "b")]
    await until(lambda: all(len(numbers(one)) > 2 for one in made))
    await client.freeze(["a", "b"], 30)
    assert all(cgroup.frozen(f"{kit.parent}/{name}") for name in ("a", "b"))
    with pytest.raises(errors.FailedPrecondition, match="it is frozen"):
        await client.freeze(["a"], 30)
    await client.freeze(["a", "b"], 30, again=True)
    await client.thaw(["a", "b"])
    before = [len(numbers(one)) for one in made]
    await until(lambda: all(len(numbers(one)) > at + 2 for one, at in zip(made, before, strict=True)))
    with pytest.raises(errors.FailedPrecondition, match="was thawed before"):
        await client.thaw(["a"])


async def test_a_lease_that_is_over_thaws_by_itself(kit: ShimKit, client: TaskClient) -> None:
    one = await kit.run(client, "a", COUNT)
    await client.freeze(["a"], 0.2)
    before = len(numbers(one))
    await until(lambda: len(numbers(one)) > before + 3)
    with pytest.raises(errors.FailedPrecondition, match="thawed meanwhile"):
        await client.freeze(["a"], 30, again=True)
    assert not (one.bundle / "frozen").exists()


async def test_sigkill_reaches_a_frozen_container(kit: ShimKit, client: TaskClient) -> None:
    await kit.run(client, "a", COUNT)
    await client.freeze(["a"], 30)
    await client.kill("a", signal.SIGKILL)
    assert (await client.wait("a"))[0] == 137


async def test_a_command_waits_until_its_container_is_thawed(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    await begun(kit, client)
    await client.freeze(["a"], 30)
    process = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    await client.exec("a", "e", process)
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(client.start("a", "e"), name="start")
        await client.checkpoint("a", tmp_path / "w/images", settings(tmp_path / "w"))
        assert not starting.done()
        await client.thaw(["a"])
    assert (await client.wait("a", "e"))[0] == 0


async def test_what_cannot_be_checkpointed_says_why_and_runs_on(
    kit: ShimKit, client: TaskClient, tmp_path: Path
) -> None:
    one = await kit.run(client, "a", COUNT)
    process = {"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    await client.exec("a", "e", process)
    await client.start("a", "e")
    with pytest.raises(errors.HoldfastError, match="was executed in it"):
        await checkpoint(client, one, tmp_path / "images")
    await client.thaw(["a"])
    await client.kill("a", signal.SIGKILL, "e")
    await client.wait("a", "e")
    with pytest.raises(errors.HoldfastError, match="not frozen"):
        await client.checkpoint("a", tmp_path / "images/images", settings(tmp_path / "images"))
    await client.freeze(["a"], 30)
    with pytest.raises(errors.HoldfastError, match="checkpoint task a"):
        await client.checkpoint("a", tmp_path / "images/images", settings(tmp_path / "images", "/bin/false"))
    await client.thaw(["a"])
    before = len(numbers(one))
    await until(lambda: len(numbers(one)) > before + 3)


async def test_who_was_stopped_before_it_was_frozen_holds_nothing_up(
    kit: ShimKit, client: TaskClient, tmp_path: Path
) -> None:
    """CRIU would wait for ever in ptrace(2)."""
    one = await kit.run(client, "a", f"sh -c 'kill -STOP $$; exit' & {COUNT}")
    await until(lambda: any(process.is_stopped(pid) for pid in cgroup.pids(f"{kit.parent}/a")))
    with pytest.raises(errors.HoldfastError, match="stopped by a signal"):
        await checkpoint(client, one, tmp_path / "images")
    await client.thaw(["a"])
    [stopped] = [pid for pid in cgroup.pids(f"{kit.parent}/a") if process.is_stopped(pid)]
    os.kill(stopped, signal.SIGCONT)
    await until(lambda: process.state(stopped) in ("", "Z"))
    await checkpoint(client, one, tmp_path / "images")


async def test_what_is_restored_may_be_held(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    """It stands still, with all that it has begun, until it is thawed or nobody wants that any more."""
    one = await kit.run(client, "a", f"sh -c 'while :; do touch /tmp/beat; usleep 1000; done' & {COUNT}")
    await until(lambda: len(numbers(one)) > 5 and (kit.base / "writable-a/upper/tmp/beat").exists())
    made = replace(await checkpoint(client, one, tmp_path / "images"), held=30)
    two = copy_of(kit, one, "b")
    pid = await restore(kit, client, two, made)
    assert (await client.state("b")).status is Status.RUNNING
    assert cgroup.frozen(f"{kit.parent}/b")
    beat = kit.base / "writable-b/upper/tmp/beat"
    stood = beat.stat().st_mtime_ns
    await client.freeze(["b"], 30, again=True)
    three = copy_of(kit, one, "c")
    await restore(kit, client, three, replace(made, held=0.3))
    await until(lambda: len(numbers(three)) > 3)  # its lease was over
    assert beat.stat().st_mtime_ns == stood and not numbers(two)
    await client.thaw(["b"])
    await until(lambda: len(numbers(two)) > 3 and beat.stat().st_mtime_ns != stood)
    first, *rest = numbers(two)
    assert rest == list(range(first + 1, first + 1 + len(rest)))
    os.kill(pid, signal.SIGKILL)
    assert (await client.wait("b"))[0] == 137


async def test_sigkill_reaches_what_is_held(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    one = await begun(kit, client)
    made = replace(await checkpoint(client, one, tmp_path / "images"), held=30)
    await restore(kit, client, copy_of(kit, one, "b"), made)
    await client.kill("b", signal.SIGKILL)
    assert (await client.wait("b"))[0] == 137


async def test_a_shim_that_ends_leaves_nobody_frozen(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    one = await begun(kit, client)
    made = replace(await checkpoint(client, one, tmp_path / "images"), held=30)
    await restore(kit, client, copy_of(kit, one, "b"), made)
    await client.freeze(["a"], 30)
    await client.shutdown("pod", now=True)
    await until(lambda: not any(cgroup.frozen(f"{kit.parent}/{name}") for name in ("a", "b")))


async def test_a_restore_that_fails_leaves_nobody(kit: ShimKit, client: TaskClient, tmp_path: Path) -> None:
    one = await begun(kit, client, f"echo kept > /tmp/file; exec 5< /tmp/file; {COUNT}")
    made = await checkpoint(client, one, tmp_path / "images")
    two = kit.container("b", COUNT)  # without the file
    with pytest.raises(errors.HoldfastError, match="CRIU: .*tmp/file"):
        await restore(kit, client, two, made)
    assert (await client.state("b")).status is Status.CREATED
    await client.delete("b")
    assert not cgroup.exists(f"{kit.parent}/b")
    assert not list(mount.mounts_below(two.bundle))


async def test_a_container_that_ends_while_it_is_restored_has_its_exit_code(
    kit: ShimKit, client: TaskClient, tmp_path: Path
) -> None:
    """What it waits for has come by then: it may be over before runc has told its pid."""
    script = "echo ready; while [ ! -e /data/go ]; do usleep 1000; done; exit 7"
    one = await begun(kit, client, script, mounts=[_data(tmp_path)])
    made = await checkpoint(client, one, tmp_path / "images")
    two = copy_of(kit, one, "b", mounts=[_data(tmp_path)])
    (tmp_path / "data/go").touch()
    await restore(kit, client, two, made)
    assert (await client.wait("b"))[0] == 7
    assert two.exit.code == 7


def _data(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "data").mkdir(exist_ok=True)
    return {"destination": "/data", "type": "bind", "source": str(tmp_path / "data"), "options": ["rbind"]}
