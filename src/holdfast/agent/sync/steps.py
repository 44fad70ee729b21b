"""The steps that a worker takes for its pod: each asks and changes, and raises what keeps it from being done.

Trouble has a word for it; HoldfastError is what the runtime has said, or Unavailable when it said nothing; OSError is
the machine's. Every step may be taken again from its beginning.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from holdfast.agent.plan.actions import Start
from holdfast.agent.plan.observed import Observed, Run, State
from holdfast.agent.pod import env
from holdfast.agent.pod.containers import Container, Handler, pull_policy
from holdfast.agent.pod.logins import logins
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import convert, files, hooks, images, limits, rotation
from holdfast.agent.sync.parts import Mounted, Parts, Trouble
from holdfast.linux.files import mkdir
from holdfast.linux.threads import in_thread
from holdfast.model.errors import HoldfastError, NotFound, Unavailable
from holdfast.proto import runtime_v1_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

VOLUMES: Final = 5.0  # seconds to wait for volumes at a time
GONE: Final = 5.0
HOOK: Final = 3600  # seconds for a postStart hook: Kubernetes sets no limit
NS: Final = 1_000_000_000
LEAST_GRACE: Final = 2  # seconds, after a preStop hook that has taken it all, as a kubelet's
KEPT: Final = 1  # ended runs of a container beside the last one, a kubelet's

CREATING: Final = "ContainerCreating"
CONFIG: Final = "CreateContainerConfigError"
CREATE: Final = "CreateContainerError"
RUN: Final = "RunContainerError"
SANDBOX: Final = "FailedCreatePodSandBox"
STOPPING: Final = "FailedKillPod"


def container_of(pod: Pod, name: str) -> Container | None:
    return next((one for one in (*pod.spec.init_containers, *pod.spec.containers) if one.name == name), None)


def address_of(there: Observed, pod: Pod, facts: env.Facts) -> str:
    """Where a pod is reached from its host; "" for nowhere, which is never the host instead."""
    if pod.spec.host_network:
        return next(iter(facts.host_addresses), "127.0.0.1")
    sandbox = there.current
    return next(iter(sandbox.addresses), "") if sandbox is not None else ""


async def sandbox_config(parts: Parts, pod: Pod, attempt: int, users: int) -> pb.PodSandboxConfig:
    return convert.sandbox_config(pod, attempt, parts.node, await parts.runtime.cgroup_driver(), users)


async def make_sandbox(parts: Parts, pod: Pod, attempt: int, stops: Iterable[str], users: int) -> None:
    """A new sandbox, once those before it are stopped and nothing of the pod lives that the runtime has forgotten."""
    async with parts.volumes.watched(pod.metadata.uid):
        for sandbox_id in stops:
            await parts.runtime.stop_pod(sandbox_id)
    if why := await parts.runtime.is_populated(pod.metadata.uid):
        raise Trouble(SANDBOX, f"something of it lives on: {why}")
    await volumes(parts.volumes.ready(pod.metadata.uid, VOLUMES))
    config = await sandbox_config(parts, pod, attempt, users)
    await in_thread(limits.make, config.linux.cgroup_parent, limits.of_pod(pod))
    await in_thread(mkdir, Path(config.log_directory), 0o755, parents=True, exist_ok=True)
    try:
        await parts.runtime.run_pod(config, pod.spec.runtime_class_name)
    except HoldfastError as exc:
        raise Trouble(SANDBOX, str(exc)) from exc


async def pull(parts: Parts, pod: Pod, container: Container, sandbox: pb.PodSandboxConfig) -> pb.Image:
    """The container's image, and those that it mounts."""

    async def ensure(reference: str, policy: str) -> pb.Image:
        data = parts.facts(pod).data
        names = [one.name for one in pod.spec.image_pull_secrets]
        secrets = {name: data.get(("Secret", pod.metadata.namespace, name)) for name in names}
        known = logins(reference, [one.data for one in secrets.values() if one is not None])
        try:
            return await images.ensure(parts.runtime, reference, policy, sandbox, known)
        except Trouble as exc:
            if missing := [name for name, one in secrets.items() if one is None]:
                exc.message += f"; of imagePullSecrets there is no {', '.join(missing)}"
            raise

    found = await ensure(container.image, container.pull_policy)
    mounted = {one.name for one in container.volume_mounts}
    for one in pod.spec.volumes:
        if one.image is not None and one.name in mounted:
            policy = pull_policy(one.image.reference, one.image.pull_policy)
            await ensure(one.image.reference, policy)
    return found


async def start(parts: Parts, pod: Pod, there: Observed, start: Start, image: pb.Image, users: int) -> str:
    """Create and start a run; its id. What was created before and never ran is removed first."""
    container = container_of(pod, start.name)
    sandbox = there.current
    assert container is not None
    assert sandbox is not None
    for left in there.runs_of(container.name):
        if left.state is State.CREATED:
            await parts.runtime.remove(left.id)
    config = await _config(parts, pod, container, start.attempt, image, sandbox.addresses, users)
    of_sandbox = await sandbox_config(parts, pod, sandbox.attempt, users)
    directory = Path(of_sandbox.log_directory, container.name)
    await in_thread(mkdir, directory, 0o755, parents=True, exist_ok=True)
    try:
        run_id = await parts.runtime.create(sandbox.id, config, of_sandbox)
    except Unavailable:
        raise
    except HoldfastError as exc:
        raise Trouble(CREATE, str(exc)) from exc
    try:
        await parts.runtime.start(run_id)
    except Unavailable:
        raise
    except HoldfastError as exc:
        raise Trouble(RUN, str(exc)) from exc
    return run_id


async def _config(
    parts: Parts,
    pod: Pod,
    container: Container,
    attempt: int,
    image: pb.Image,
    addresses: tuple[str, ...],
    users: int,
) -> pb.ContainerConfig:
    uid = pod.metadata.uid
    await volumes(parts.volumes.ready(uid, VOLUMES))
    try:
        convert.check_user(pod, container, image)
        variables = env.environment(pod, container, replace(parts.facts(pod), addresses=addresses))
    except env.Missing as exc:
        raise Trouble(CONFIG, str(exc)) from exc
    found = await volumes(parts.volumes.mounts(pod, container, variables))
    taken = {one.container_path.rstrip("/") for one in found}
    mounts = [await _mount(parts, pod, one) for one in found]
    if convert.HOSTS not in taken:
        path = await in_thread(files.write_hosts, parts.paths, pod, addresses)
        mounts.append(convert.mount(convert.HOSTS, os.fspath(path)))
    if (where := container.termination_message_path) and where not in taken:
        path = await in_thread(files.make_message, parts.paths, uid, container.name, attempt)
        mounts.append(convert.mount(where, os.fspath(path)))
    config = convert.container_config(
        pod, container, attempt, image=image.id, variables=variables, mounts=mounts, node=parts.node, users=users
    )
    if convert.needs_group(container, pod.spec):
        convert.with_user(config, image)
    return config


async def _mount(parts: Parts, pod: Pod, one: Mounted) -> pb.Mount:
    recursive = one.recursive_read_only == "Enabled"
    if one.recursive_read_only == "IfPossible":
        recursive = await parts.runtime.mounts_read_only(pod.spec.runtime_class_name)
    return convert.mount(
        one.container_path,
        one.host_path,
        read_only=one.readonly,
        recursive=recursive,
        propagation=one.propagation,
        image=one.image,
        part=one.image_sub_path,
    )


async def post_start(parts: Parts, pod: Pod, there: Observed, run_id: str, container: Container) -> str:
    """The hook of a run that has begun: "" or why it has failed, which is to be the run's end."""
    hook = container.lifecycle.post_start
    if hook is None:
        return ""
    return await _hook(parts, pod, there, run_id, container, hook, HOOK)


async def last_words(parts: Parts, pod: Pod, run: Run) -> str:
    """What a run that has ended leaves to be said."""
    container = container_of(pod, run.name)
    if container is None:
        return ""
    where = Path(convert.log_path(pod, parts.node, run.name, run.attempt))
    return await in_thread(files.last_words, parts.paths, pod, container, run.attempt, run.code, where)


async def stop(parts: Parts, pod: Pod, there: Observed, run: Run, until: int) -> None:
    """End a run by `until`, in ns since the epoch: its preStop hook first, then the signal, then SIGKILL."""
    container = container_of(pod, run.name)
    hook = container.lifecycle.pre_stop if container is not None else None
    left = _seconds(until - parts.clock())
    if container is not None and hook is not None and run.state is State.RUNNING and left:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                if why := await _hook(parts, pod, there, run.id, container, hook, left):
                    log.warning("the preStop hook of %s has failed: %s", run.id[:13], why)
        left = max(_seconds(until - parts.clock()), LEAST_GRACE)
    await parts.runtime.stop(run.id, left)
    with contextlib.suppress(NotFound):
        if (await parts.runtime.container(run.id)).state != pb.CONTAINER_EXITED:
            raise Trouble(STOPPING, f"the stop of {run.name} was answered, and it has not ended")


def _seconds(nanoseconds: int) -> int:
    """Whole ones, rounded up: the last one that was promised is given."""
    return max(-(-nanoseconds // NS), 0)


async def _hook(
    parts: Parts, pod: Pod, there: Observed, run_id: str, container: Container, hook: Handler, seconds: int
) -> str:
    address = address_of(there, pod, parts.facts(pod))
    try:
        return await hooks.perform(hook, container, run_id, address, parts.runtime, seconds)
    except (HoldfastError, env.Missing) as exc:
        return str(exc)


async def collect(parts: Parts, pod: Pod, there: Observed) -> None:
    """Remove runs that have ended, but for the last ones of each container, and sandboxes before the last two.

    A run's log goes first: there is nobody else who knows of it.
    """
    sandboxes = sorted(there.sandboxes, key=lambda one: (one.attempt, one.created_at))
    old = [one for one in sandboxes[:-2] if not one.ready]
    for name in {one.name for one in there.runs}:
        runs = sorted(there.runs_of(name), key=lambda one: (one.attempt, one.created_at))
        for run in runs[: -KEPT - 1]:
            if run.state is State.EXITED:
                path = convert.log_path(pod, parts.node, run.name, run.attempt)
                await in_thread(rotation.remove, Path(path))
                await parts.runtime.remove(run.id)
    for sandbox in old:
        if not any(run.alive for run in there.runs if run.sandbox == sandbox.id):
            await parts.runtime.stop_pod(sandbox.id)
            await parts.runtime.remove_pod(sandbox.id)


async def end_sandboxes(parts: Parts, uid: str, there: Observed, stops: Collection[str]) -> None:
    """Of sandboxes in which no run lives: those that never ran go, and the sandboxes are stopped."""
    for run in there.runs:
        if run.state is State.CREATED and run.sandbox in stops:
            await parts.runtime.remove(run.id)
    async with parts.volumes.watched(uid):
        for sandbox_id in stops:
            await parts.runtime.stop_pod(sandbox_id)


async def leave(parts: Parts, pod: Pod, there: Observed) -> None:
    """The end of a pod that was proven dead: its volumes first, then what the runtime has of it, then its files."""
    uid = pod.metadata.uid
    if whys := await parts.volumes.gone(uid, GONE):
        raise Trouble(STOPPING, "; ".join(whys))
    for sandbox in there.sandboxes:
        await parts.runtime.stop_pod(sandbox.id)
        await parts.runtime.remove_pod(sandbox.id)
    await in_thread(limits.remove, uid, parts.node.cgroup_root)
    await in_thread(files.remove_pod, parts.paths, uid, convert.log_directory(pod, parts.node))


async def volumes(question: Awaitable[T]) -> T:
    """What the volume manager says is not ready is a container that is being made."""
    try:
        return await question
    except Exception as exc:  # the manager's own, whatever it is
        raise Trouble(CREATING, str(exc) or type(exc).__name__) from exc
