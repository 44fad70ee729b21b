"""A network for tests: a namespace with the daemon and its bridge, Debian's plugins, and one that misbehaves."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from holdfast.config import toml
from holdfast.linux import mount, namespace
from kit.node import Node, until

BIN = "/usr/lib/cni"

# A plugin that does what a file beside it says, and writes down what it was told. It hands on what came before it.
PLUGIN = """#!@PYTHON@ -IS
import json, os, sys, time
here, verb = os.path.dirname(os.path.abspath(__file__)), os.environ["CNI_COMMAND"]
if verb == "VERSION":
    print(json.dumps({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}))
    sys.exit()
config = json.load(sys.stdin)
told = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
with open(here + "/told.jsonl", "a") as file:
    file.write(json.dumps({"verb": verb, "config": config, "env": told}) + "\\n")
try:
    does = json.load(open(here + "/does.json")).get(verb, "")
except FileNotFoundError:
    does = ""
if does == "hang":
    time.sleep(1000)
if does == "fail":
    print(json.dumps({"cniVersion": config["cniVersion"], "code": 11, "msg": "not today", "details": "rain"}))
    sys.exit(1)
if does == "garbage":
    print("this is { no JSON")
    sys.exit()
if does == "die":
    print("out of luck", file=sys.stderr)
    sys.exit(3)
if verb == "ADD":
    empty = {"cniVersion": config["cniVersion"], "interfaces": [], "ips": [], "dns": {}}
    print(json.dumps(config.get("prevResult", empty)))
"""


class Network:
    """A node in a network namespace of its own, whose pods are on a bridge there."""

    def __init__(self, **settings: Any) -> None:
        self.node = Node(cni_conf_dir="", **settings)  # replaced below, where the base is known
        base = self.node.base
        self.directory, self.bin, self.leases = base / "net.d", base / "cni", base / "leases"
        for place in (self.directory, self.bin, base / "netns"):
            place.mkdir()
        self.netns = namespace.pin(["net"], base / "netns")["net"]
        settings = {"cni_conf_dir": str(self.directory), "cni_bin_dirs": [str(self.bin), BIN], **settings}
        text = self.node.config.read_text().replace('cni_conf_dir = ""\n', "")
        for name, value in settings.items():
            text = "".join(line for line in text.splitlines(True) if not line.startswith(f"{name} ="))
            text = f"{name} = {toml(value)}\n{text}"
        self.node.config.write_text(text)
        plugin = self.bin / "odd"
        plugin.write_text(PLUGIN.replace("@PYTHON@", sys.executable))
        plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)

    def start(self) -> None:
        self.node.wrapper = ["nsenter", f"--net={self.netns}"]
        self.node.start()

    def kill(self) -> None:
        self.node.kill()

    def does(self, **verbs: str) -> None:
        """What the odd plugin does from now on: hang, fail, garbage or die."""
        (self.bin / "does.json").write_text(json.dumps(verbs))

    def told(self, verb: str = "") -> list[dict[str, Any]]:
        """What the odd plugin was told, as far as it has written it down."""
        try:
            found = [json.loads(line) for line in (self.bin / "told.jsonl").read_text().split("\n")[:-1]]
        except FileNotFoundError:
            return []
        return [one for one in found if verb in ("", one["verb"])]

    def forget(self) -> None:
        (self.bin / "told.jsonl").unlink(missing_ok=True)

    def write(self, name: str, version: str = "1.0.0", *, odd: bool = True, first: int = 2, last: int = 7) -> None:
        """A bridge with addresses from `first` to `last`, of both families, a portmap, a firewall, and the odd one."""
        v4 = {"subnet": "10.88.0.0/24", "rangeStart": f"10.88.0.{first}", "rangeEnd": f"10.88.0.{last}"}
        v6 = {"subnet": "fd00:88::/64", "rangeStart": f"fd00:88::{first:x}", "rangeEnd": f"fd00:88::{last:x}"}
        ipam = {
            "type": "host-local",
            "dataDir": str(self.leases),
            "ranges": [[v4], [v6]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        plugins: list[dict[str, Any]] = [
            {"type": "bridge", "bridge": "hf0", "isGateway": True, "ipMasq": True, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "firewall", "backend": "iptables"},
        ]
        self.configure(name, [*plugins, *([{"type": "odd"}] if odd else [])], version)

    def configure(self, name: str, plugins: list[dict[str, Any]], version: str = "1.0.0", **more: Any) -> None:
        text = json.dumps({"cniVersion": version, "name": "test", "plugins": plugins, **more})
        (self.directory / name).write_text(text)

    def run(self, *command: str, check: bool = True) -> str:
        """In the node's network namespace."""
        done = subprocess.run(
            ["nsenter", f"--net={self.netns}", *command], check=check, capture_output=True, text=True, timeout=20
        )
        return done.stdout

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread, and what it begins, is in the node's network namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            namespace.enter(str(self.netns), namespace.CLONE_NEWNET)
            try:
                yield
            finally:
                namespace.enter(f"/proc/thread-self/fd/{home}", namespace.CLONE_NEWNET)
        finally:
            os.close(home)

    def addresses(self) -> set[str]:
        """Those that host-local has given away."""
        names = os.listdir(self.leases / "test") if (self.leases / "test").exists() else []
        return {name for name in names if name[0].isdigit() or ":" in name}

    def rules(self) -> list[str]:
        """What plugins have written of single pods into iptables of the node's namespace."""
        found = []
        for command in ("iptables", "ip6tables"):
            for table in ("nat", "filter"):
                found += self.run(command, "-t", table, "-S").splitlines()
        return [rule for rule in found if "10.88.0." in rule or "fd00:88::" in rule or "CNI-DN-" in rule]

    def links(self) -> list[str]:
        """Ends of the pods' cables."""
        return [line.split()[1] for line in self.run("ip", "-o", "link").splitlines() if " veth" in line]

    def left(self) -> list[str]:
        return [*sorted(self.addresses()), *self.rules(), *self.links()]

    def close(self) -> None:
        self.does()
        self.node.wrapper = ["nsenter", f"--net={self.netns}"]
        left = [one for one in self.node.empty() if one != f"mount {self.netns}"]
        until(lambda: not self.left(), f"nothing to be left, but there is {self.left()}")
        with contextlib.suppress(OSError):
            namespace.unpin(self.netns)
        mount.unmount_tree(self.node.base)
        shutil.rmtree(self.node.base)  # noqa: TID251  (nothing is mounted below it any more)
        assert not left, f"left behind: {left}"


@contextlib.contextmanager
def network(**settings: Any) -> Iterator[Network]:
    """A node with a running daemon, a busybox image, and a network configuration."""
    one = Network(**settings)
    try:
        one.write("10-test.conflist")
        one.start()
        one.node.busybox()
        yield one
    finally:
        one.close()
