"""Pod networks by CNI plugins (SPEC.md of the Container Network Interface, versions 0.3.0 to 1.1.0).

The configuration is read anew whenever something is planned. What is planned is recorded by the caller before ADD, with
the whole configuration: DEL gets just that, in reverse order, whatever the files say by then. Loopback is up already.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, files
from holdfast.linux.threads import in_thread
from holdfast.model.errors import FailedPrecondition, HoldfastError, InvalidArgument, Unavailable
from holdfast.network.arguments import arguments, environment
from holdfast.network.conf import SUFFIXES, NetworkList, addresses, parse
from holdfast.network.network import Attachment, NetworkResult, PodNetwork, Record
from holdfast.network.plugin import Plugins

log = logging.getLogger(__name__)

FILE_LIMIT: Final = 1024 * 1024
STATUS_AGE: Final = 10.0
TEMPLATED: Final = "10-holdfast.conflist"


class Cni:
    """The networks that are configured in `directory`, of which a pod gets the first `most`."""

    def __init__(
        self, directory: Path, plugins: Plugins, cgroup_root: str, most: int = 1, template: Path | None = None
    ) -> None:
        self._directory = directory
        self._plugins = plugins
        self._cgroup = f"{cgroup_root}/cni"
        self._cgroup_root = cgroup_root
        self._most = most
        self._template = template
        self._status: tuple[float, list[NetworkList], str] = (0.0, [], "")
        self.pod_cidrs: tuple[str, ...] = ()
        self.measures = plugins.calls.measures

    async def plan(self, pod: PodNetwork) -> NetworkResult:
        """Raises FailedPrecondition where there is nothing that could be used, InvalidArgument that names the field."""
        lists = await in_thread(self._load)
        if not lists:
            raise FailedPrecondition(f"cannot set up a network: there is no network configuration in {self._directory}")
        told = arguments(pod, frozenset().union(*(one.capabilities for one in lists)), self.pod_cidrs)
        planned = []
        for number, one in enumerate(lists):
            wanted = {name: value for name, value in told.items() if name in one.capabilities}
            planned.append(Attachment(f"eth{number}", one.raw, wanted))
        return NetworkResult((), tuple(planned))

    async def add(self, pod: PodNetwork, namespace: Path, planned: NetworkResult, record: Record) -> NetworkResult:
        """A plugin's rules can be removed only by what those before it have said: each answer is recorded."""
        done, ips = list(planned.attachments), list[str]()
        try:
            for number, one in enumerate(planned.attachments):
                network = NetworkList(one.network)
                for plugin in network.plugins:
                    if done[number].result is not None:
                        await record(NetworkResult((), tuple(done)))
                    answer = await self._call("ADD", pod, namespace, done[number], plugin)
                    done[number] = replace(one, result=answer or done[number].result)
                result = done[number].result
                if result is None:
                    raise Unavailable(f"cannot set up network {one.name}: no plugin of it has answered")
                ips += _addresses(one, result)
        finally:
            await in_thread(_remove, pod.cgroup)
        return NetworkResult(tuple(ips), tuple(done))

    async def delete(self, pod: PodNetwork, namespace: Path, attached: NetworkResult) -> None:
        """What an earlier ADD still does is ended first. One network that fails does not keep the others."""
        await in_thread(_end, pod.cgroup)
        failure: HoldfastError | None = None
        try:
            for one in reversed(attached.attachments):
                try:
                    await self._chain("DEL", pod, namespace, one)
                except HoldfastError as exc:
                    log.warning("pod %s: %s", pod.id, exc)
                    failure = failure or exc
        finally:
            await in_thread(_remove, pod.cgroup)
        if failure is not None:
            raise failure

    async def check(self, pod: PodNetwork, namespace: Path, attached: NetworkResult) -> None:
        """Whether all is still as ADD has left it. Raises Unavailable with what a plugin finds missing."""
        try:
            for one in attached.attachments:
                if one.result is not None and NetworkList(one.network).checks:
                    await self._chain("CHECK", pod, namespace, one)
        finally:
            await in_thread(_remove, pod.cgroup)

    async def collect(self, alive: Iterable[tuple[str, Attachment]]) -> None:
        """Tell the plugins which attachments, with their pods' ids, there are: GC releases all others of ours.

        Only for networks whose version has it. Failures are logged: nothing waits for this.
        """
        attachments = list(alive)
        lists = [NetworkList(attachment.network) for _, attachment in attachments]
        try:
            lists += await in_thread(self._load)
        except HoldfastError as exc:
            log.warning("cannot collect what networks have lost: %s", exc)
        for name, one in {one.name: one for one in lists if one.collects}.items():
            valid = [
                {"containerID": id, "ifname": attachment.interface}
                for id, attachment in attachments
                if attachment.name == name
            ]
            for plugin in one.plugins:
                config = one.for_plugin(plugin, {}, None, **{"cni.dev/valid-attachments": valid})
                try:
                    await self._plugins.call(str(plugin["type"]), "GC", config, {}, f"{self._cgroup}-gc")
                except HoldfastError as exc:
                    log.warning("cannot collect what network %s has lost: %s", name, exc)
        for purpose in ("gc", "status"):  # an earlier daemon may have left either
            await in_thread(_remove, f"{self._cgroup}-{purpose}")
        await in_thread(cgroup.remove_if_empty, self._cgroup_root)

    async def ready(self) -> tuple[bool, str, str]:
        """Whether there is a configuration, its programs are there, and those that have STATUS say they are ready."""
        try:
            lists = await in_thread(self._load)
            if not lists:
                return False, "NetworkPluginNotReady", f"there is no network configuration in {self._directory}"
            for one in lists:
                for plugin in one.plugins:
                    await in_thread(self._plugins.find, str(plugin["type"]))
        except (HoldfastError, OSError) as exc:
            return False, "NetworkPluginNotReady", str(exc)
        trouble = await self._trouble(lists)
        return (False, "NetworkPluginNotReady", trouble) if trouble else (True, "", "")

    def write_template(self) -> None:
        """As containerd does: only while there is no configuration but the one that was made so."""
        if self._template is None or not self.pod_cidrs:
            return
        others = [name for name in self._names() if name != TEMPLATED]
        if others:
            log.info("no network configuration is made from %s: there is %s", self._template, others[0])
            return
        made = _text(self._template).replace("{{.PodCIDR}}", self.pod_cidrs[0])
        made = made.replace("{{.PodCIDRRanges}}", json.dumps([[{"subnet": cidr}] for cidr in self.pod_cidrs]))
        parse(made, str(self._template))
        files.mkdir(self._directory, parents=True, exist_ok=True)
        files.write_atomic(self._directory / TEMPLATED, made.encode(), mode=0o644)

    async def _trouble(self, lists: list[NetworkList]) -> str:
        """What the plugins say by VERSION and STATUS, asked at most every ten seconds; "" for nothing."""
        since, asked, said = self._status
        if asked == lists and time.monotonic() - since < STATUS_AGE:
            return said
        said = ""
        for one in lists:
            for plugin in one.plugins:
                try:
                    await self._ask(one, plugin)
                except HoldfastError as exc:
                    said = said or str(exc)
        await in_thread(_remove, f"{self._cgroup}-status")
        await in_thread(cgroup.remove_if_empty, self._cgroup_root)
        self._status = (time.monotonic(), lists, said)
        return said

    async def _ask(self, network: NetworkList, plugin: Mapping[str, Any]) -> None:
        """Raises Unavailable, DeadlineExceeded for a plugin that does not know the version, or is not ready."""
        kind, path, version = str(plugin["type"]), f"{self._cgroup}-status", str(network.raw["cniVersion"])
        known = await self._plugins.versions(kind, version, path)
        if known and version not in known:
            raise Unavailable(
                f"cannot use network {network.name}: plugin {kind} does not know version {version}, "
                f"but {', '.join(known)}"
            )
        if network.tells_status:
            await self._plugins.call(kind, "STATUS", network.for_plugin(plugin, {}, None), {}, path)

    async def _chain(self, verb: str, pod: PodNetwork, namespace: Path, attachment: Attachment) -> None:
        """All plugins of one network; what was made last goes first."""
        plugins: Sequence[Mapping[str, Any]] = NetworkList(attachment.network).plugins
        for plugin in reversed(plugins) if verb == "DEL" else plugins:
            await self._call(verb, pod, namespace, attachment, plugin)

    async def _call(
        self, verb: str, pod: PodNetwork, namespace: Path, attachment: Attachment, plugin: Mapping[str, Any]
    ) -> dict[str, Any]:
        variables = {
            "CNI_CONTAINERID": pod.id,
            "CNI_IFNAME": attachment.interface,
            "CNI_NETNS": str(namespace) if verb != "DEL" or await in_thread(_is_namespace, namespace) else "",
            "CNI_ARGS": environment(pod),
        }
        config = NetworkList(attachment.network).for_plugin(plugin, attachment.arguments, attachment.result)
        return await self._plugins.call(str(plugin["type"]), verb, config, variables, pod.cgroup)

    def _load(self) -> list[NetworkList]:
        """The first ones by file name. Raises InvalidArgument that names the file, Unavailable."""
        found: list[NetworkList] = []
        for name in self._names()[: self._most]:
            path = self._directory / name
            one = parse(_text(path), str(path))
            if one.name in (other.name for other in found):
                raise InvalidArgument(f"{path}: name: {one.name!r} is the name of a network before it as well")
            found.append(one)
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._directory) if name.endswith(SUFFIXES))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise Unavailable(f"cannot list network configurations: {exc}") from exc


def _text(path: Path) -> str:
    try:
        return files.read_bounded(path, FILE_LIMIT).decode(errors="replace")
    except OSError as exc:
        raise Unavailable(f"cannot read a network configuration: {exc}") from exc


def _addresses(attachment: Attachment, result: Mapping[str, Any]) -> list[str]:
    try:
        return addresses(result, attachment.interface)
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise Unavailable(f"cannot understand the result of network {attachment.name}: {exc!r}") from exc


def _is_namespace(path: Path) -> bool:
    """Whether a namespace is still pinned there, and not just the file where it was."""
    try:
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False


def _end(path: str) -> None:
    if cgroup.exists(path):
        cgroup.kill(path)


def _remove(path: str) -> None:
    """It goes when its processes have gone; whoever ends the pod removes what is left of it."""
    try:
        cgroup.kill(path)
        cgroup.remove(path)
    except OSError as exc:
        log.warning("cannot remove cgroup %s yet: %s", path, exc)
