"""Settings, each declared once: the table feeds the TOML file, the flags of holdfastd, `config show` and the docs."""

import argparse
import dataclasses
import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.model.cgroups import CGROUPFS, DRIVERS, SYSTEMD, check_parent
from holdfast.model.errors import InvalidArgument
from holdfast.model.gvisor import PLATFORMS, RUNSC

LONGEST: Final = 100  # below that at which the daemon gives up a call to a shim
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*([KMGT]i?B?|B)?", re.ASCII | re.IGNORECASE)
_HANDLER: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")  # it names a directory, and RuntimeClasses refer to it
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
CGROUP_ROOTS: Final = {CGROUPFS: "/holdfast", SYSTEMD: "holdfast.slice"}
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_RUNTIME_FLAGS: Final = (
    "sandbox_container", "isolated", "privileged_without_host_devices",
    "privileged_without_host_devices_all_devices_allowed",
)  # fmt: skip
_RUNTIME_KEYS: Final = frozenset({"binary", "shim", "options", "platform", *_RUNTIME_FLAGS})


def setting(
    default: Any, help: str, *, parse: Callable[[str, Any], Any], reloadable: bool = False, flag: bool = False
) -> Any:
    """One row of the table: a field of Config with how to read it and what to say of it."""
    meta = {"help": help, "parse": parse, "reloadable": reloadable, "flag": flag}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def _path(key: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value).startswith("/"):
        raise InvalidArgument(f"{key}: {value!r} is not an absolute path")
    return Path(value)


def _path_or_none(key: str, value: Any) -> str:
    return str(_path(key, value)) if value else ""


def _paths(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise InvalidArgument(f"{key}: {value!r} is not a list of absolute paths")
    return tuple(str(_path(f"{key}[{number}]", item)) for number, item in enumerate(value))


def _number(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LONGEST:
        raise InvalidArgument(f"{key}: {value!r} is not a number from 1 to {LONGEST}")
    return value


def _word(*allowed: str) -> Callable[[str, Any], str]:
    def parse(key: str, value: Any) -> str:
        if value not in allowed:
            raise InvalidArgument(f"{key}: {value!r} is not one of {', '.join(allowed)}")
        return str(value)

    return parse


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{key}: {value!r} is not a string, or is empty")
    return value


def size_value(key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidArgument(f"{key}: {value!r} is not a size such as 8388608 or '8MiB'")
    return int(match[1]) * _UNITS.get((match[2] or "B")[0].upper(), 1)


def _seconds(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LONGEST:
        raise InvalidArgument(f"{key}: {value!r} is not a number of seconds from 1 to {LONGEST}")
    return value


def _optional(key: str, value: Any) -> str:
    return "" if value == "" else _text(key, value)


def _seccomp(key: str, value: Any) -> str:
    text = _text(key, value)
    if text not in ("runtime/default", "docker/default", "unconfined") and not re.fullmatch("localhost/.+", text):
        raise InvalidArgument(f"{key}: {text!r} is not runtime/default, unconfined, or localhost/ and a file")
    return text


def _cves(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(re.fullmatch("CVE-[0-9]+-[0-9]+", str(one)) for one in value):
        raise InvalidArgument(f"{key}: {value!r} is not a list such as ['CVE-2024-21626']")
    return tuple(value)


def _hosts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise InvalidArgument(f"{key}: {value!r} is not a list of host names")
    return tuple(value)


def _address(key: str, value: Any) -> str:
    text = _text(key, value) if value else ""
    host, _, port = text.rpartition(":")
    if text and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidArgument(f"{key}: {text!r} is not an address such as '127.0.0.1:9113'")
    return text


def _listening(key: str, value: Any) -> str:
    text = _text(key, value)
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    named = not bare.replace(".", "").isdigit() and _HOST.fullmatch(bare)
    if not (port.isascii() and port.isdigit() and int(port) < 65536 and (named or _is_address(bare, host))):
        raise InvalidArgument(f"{key}: {text!r} is not an address such as '127.0.0.1:0' or '[::1]:10010'")
    return text


def _is_address(bare: str, host: str) -> bool:
    try:
        return (ipaddress.ip_address(bare).version == 6) == (bare != host)
    except ValueError:
        return False


def _idle(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidArgument(f"{key}: {value!r} is not a number of seconds, or 0 for no limit")
    return value


def _ratio(key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidArgument(f"{key}: {value!r} is not a number from 0 to 1")
    return float(value)


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{key}: {value!r} is not true or false")
    return value


def _directories(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise InvalidArgument(f"{key}: {value!r} is not a list of directories")
    return tuple(str(_path(key, one)) for one in value)


def _runtimes(key: str, value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{key}: {value!r} is not a table")
    for name, table in value.items():
        if not _HANDLER.fullmatch(name):
            raise InvalidArgument(f"{key}.{name}: {name!r} is not a handler name such as 'crun'")
        if not isinstance(table, Mapping):
            raise InvalidArgument(f"{key}.{name}: {table!r} is not a table")
        for unknown in table.keys() - _RUNTIME_KEYS:
            raise InvalidArgument(f"{key}.{name}.{unknown}: there is no such setting")
        if "shim" not in table or "binary" in table:
            _text(f"{key}.{name}.binary", table.get("binary"))
        if "shim" in table:
            _text(f"{key}.{name}.shim", table["shim"])
        for setting in ("options", "sandbox_container"):
            if setting in table and "shim" not in table:
                raise InvalidArgument(f"{key}.{name}.{setting}: it is for a shim only, and none is named")
        for setting in ("platform", "isolated"):
            if setting in table and ("shim" in table or Path(table.get("binary", "")).name != RUNSC):
                raise InvalidArgument(f"{key}.{name}.{setting}: it is for a binary called {RUNSC} only")
        if "platform" in table:
            _word(*PLATFORMS)(f"{key}.{name}.platform", table["platform"])
        if not isinstance(table.get("options", {}), Mapping):
            raise InvalidArgument(f"{key}.{name}.options: {table['options']!r} is not a table")
        for setting in _RUNTIME_FLAGS:
            _flag(f"{key}.{name}.{setting}", table.get(setting, False))
    return {name: dict(table) for name, table in value.items()}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one daemon."""

    root: Path = setting(
        Path("/var/lib/holdfast"), "Persistent state: the store, images, writable layers.", parse=_path, flag=True
    )
    state: Path = setting(
        Path("/run/holdfast"),
        "Volatile state: sockets, namespaces, bundles. Should be a tmpfs.",
        parse=_path,
        flag=True,
    )
    socket: Path = setting(
        Path("/run/holdfast/holdfast.sock"),
        "The CRI socket; by default holdfast.sock in `state`.",
        parse=_path,
        flag=True,
    )
    log_level: str = setting(
        "info", "debug, info, warning or error.", parse=_word("debug", "info", "warning", "error"), reloadable=True,
        flag=True,
    )  # fmt: skip
    log_format: str = setting("text", "text or json.", parse=_word("text", "json"), reloadable=True)
    log_root: Path = setting(
        Path("/var/log/holdfast/pods"), "Where `holdfast run` puts the logs of its containers.", parse=_path
    )
    cgroup_driver: str = setting(
        CGROUPFS, "Who makes cgroups: cgroupfs, Holdfast and the OCI runtime themselves; systemd, asked by them. The "
        "kubelet's has to be the same, and pods name their parent as it does: a path or a slice.",
        parse=_word(*DRIVERS),
    )  # fmt: skip
    cgroup_root: str = setting(
        CGROUP_ROOTS[CGROUPFS], "Parent cgroup of pods that name none; with systemd a slice, else a path.",
        parse=_text,
    )  # fmt: skip
    default_runtime: str = setting(
        "auto", "The runtime handler for pods that name none; auto is the first that works here.", parse=_text
    )
    insecure_registries: tuple[str, ...] = setting(
        (), "Registries spoken to over plain http, beside those on loopback.", parse=_hosts
    )
    exec_output_limit: int = setting(16 << 20, "Bytes of each stream that ExecSync returns.", parse=size_value)
    path_timeout: int = setting(
        10, "Seconds that a user's path, e.g. a log directory on a network filesystem, may take.", parse=_seconds
    )
    runtime_timeout: int = setting(
        100, "Seconds that one command of the OCI runtime may take; it is killed then.", parse=_seconds
    )
    on_shim_death: str = setting(
        "adopt", "What becomes of a pod whose shim has died: adopt, it goes on under another; cleanup, it is stopped.",
        parse=_word("adopt", "cleanup"),
    )  # fmt: skip
    reserve_bytes: int = setting(8 << 20, "Space the store keeps for itself on its disk.", parse=size_value)
    min_free_bytes: int = setting(
        16 << 20, "Free space below which nothing new is pulled, imported, created or run.", parse=size_value
    )
    min_free_inodes: int = setting(256, "The same for inodes.", parse=size_value)
    metrics_address: str = setting(
        "", "Where metrics are served over http for Prometheus, e.g. '127.0.0.1:9113'; nowhere by default.",
        parse=_address,
    )  # fmt: skip
    streaming_address: str = setting(
        "127.0.0.1:0", "Where sessions of exec, attach and port-forward are begun; port 0 is any that is free.",
        parse=_listening,
    )  # fmt: skip
    streaming_tls_cert: str = setting(
        "", "The certificate, with its chain, for TLS there; none by default.", parse=_path_or_none
    )
    streaming_tls_key: str = setting("", "Its key.", parse=_path_or_none)
    streaming_idle_timeout: int = setting(
        4 * 3600, "Seconds after which a session ends in which no byte has passed; 0 for never.", parse=_idle
    )
    tracing_endpoint: str = setting(
        "", "Where traces are sent by OTLP over gRPC, without TLS, e.g. '127.0.0.1:4317'; nowhere by default.",
        parse=_address,
    )  # fmt: skip
    tracing_sampling_ratio: float = setting(
        1.0, "How many of the calls are traced of which the client has not decided that, from 0 to 1.", parse=_ratio
    )
    seccomp_root: Path = setting(
        Path("/var/lib/kubelet/seccomp"), "Where seccomp profiles are that pods name as Localhost.", parse=_path
    )
    unset_seccomp_profile: str = setting(
        "unconfined",
        "The seccomp profile of those who name none: runtime/default, unconfined, or localhost/FILE, in seccomp_root.",
        parse=_seccomp,
    )
    apparmor_profile: str = setting(
        "", "The AppArmor profile that RuntimeDefault is, which must be loaded; none by default.", parse=_optional
    )
    cdi_spec_dirs: tuple[str, ...] = setting(
        ("/etc/cdi", "/var/run/cdi"),
        "Where the spec files of CDI devices are; a later directory wins over an earlier one.",
        parse=_directories,
    )
    device_ownership_from_security_context: bool = setting(
        False, "Whether run_as_user and run_as_group own the device nodes that a container asks for.", parse=_flag
    )
    known_escapes: str = setting(
        "warn", "New pods under an OCI runtime with known escapes: warn of it at the start, or refuse them.",
        parse=_word("warn", "refuse"),
    )  # fmt: skip
    fixed_escapes: tuple[str, ...] = setting(
        (), "CVEs that are fixed in the OCI runtimes here although neither version nor package shows it.", parse=_cves
    )
    cni_conf_dir: str = setting(
        "", "Where network configurations are, e.g. '/etc/cni/net.d'; pods have but loopback by default.",
        parse=_path_or_none,
    )  # fmt: skip
    cni_bin_dirs: tuple[str, ...] = setting(
        ("/opt/cni/bin", "/usr/lib/cni"), "Where network plugins are looked for, in this order.", parse=_paths
    )
    cni_max_networks: int = setting(
        1, "How many of the configurations a pod is attached to, the first by file name.", parse=_number
    )
    cni_timeout: int = setting(20, "Seconds that one call of a network plugin may take.", parse=_seconds)
    cni_conf_template: str = setting(
        "", "Made into a configuration when a kubelet tells the pod CIDR: {{.PodCIDR}} and {{.PodCIDRRanges}} in it "
        "are replaced.", parse=_path_or_none,
    )  # fmt: skip
    criu_path: str = setting(
        "", "The CRIU by which pods under runc are checkpointed, 4.2 or later; by default the one in PATH.",
        parse=_path_or_none,
    )  # fmt: skip
    checkpoints: bool = setting(
        False, "Whether containers and pods are made from checkpoints (trusted like who runs this node), and "
        "default_runtime auto prefers runc to crun, which can make none.", parse=_flag,
    )  # fmt: skip
    volume_roots: tuple[str, ...] = setting(
        ("/var/lib/kubelet", "/var/lib/holdfast-agent"),
        "Roots of kubelets and agents, where gVisor pods with annotated volumes have them in pods/UID/volumes.",
        parse=_paths,
    )
    runtimes: dict[str, dict[str, Any]] = setting(
        {},
        "Runtimes by handler name: [runtimes.crun] binary = '/usr/bin/crun'; or a containerd shim, [runtimes.runc-v2] "
        "shim = '/usr/bin/containerd-shim-runc-v2', with its `options` and `sandbox_container` (true by default). With "
        "`privileged_without_host_devices` privileged containers get no devices of the host; with "
        "`privileged_without_host_devices_all_devices_allowed` as well they may use and make them all the same. "
        "gVisor is a `binary` called runsc, with its `platform`, systrap, ptrace or kvm; `isolated`: without network.",
        parse=_runtimes,
    )


FIELDS: Final = {field.name: field for field in dataclasses.fields(Config)}


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then the file, then `overrides`. Raises InvalidArgument that names the key and the file."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as exc:
            raise InvalidArgument(f"cannot read configuration {path}: {exc.strerror}") from exc
        except ValueError as exc:
            raise InvalidArgument(f"cannot read configuration {path}: {exc}") from exc
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    for key in values:
        if key not in FIELDS:
            near = difflib.get_close_matches(key, FIELDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidArgument(f"{key}: there is no such setting{hint}")
    parsed = {key: FIELDS[key].metadata["parse"](key, value) for key, value in values.items()}
    if "socket" not in parsed and "state" in parsed:
        parsed["socket"] = parsed["state"] / "holdfast.sock"
    if bool(parsed.get("streaming_tls_cert")) != bool(parsed.get("streaming_tls_key")):
        raise InvalidArgument("streaming_tls_cert, streaming_tls_key: one of them is of no use without the other")
    driver = parsed.get("cgroup_driver", CGROUPFS)
    parsed["cgroup_root"] = check_parent(parsed.get("cgroup_root", CGROUP_ROOTS[driver]), driver, "cgroup_root")
    return Config(**parsed)


def from_command_line(arguments: Sequence[str]) -> Callable[[], Config]:
    """A function that reads the configuration anew, as the flags of holdfastd say. Exits on --help."""
    parser = argparse.ArgumentParser(prog="holdfastd", description="The Holdfast container runtime's daemon.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    for name, field in FIELDS.items():
        if field.metadata["flag"]:
            text = f"{field.metadata['help']} Default: {field.default}."
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=text)
    given = vars(parser.parse_args(arguments))
    path = given.pop("config")
    return lambda: load(path, given)


def changed_unreloadable(old: Config, new: Config) -> list[str]:
    """Keys that differ and take effect only at the next start."""
    return [
        name
        for name, field in FIELDS.items()
        if getattr(old, name) != getattr(new, name) and not field.metadata["reloadable"]
    ]


def render(config: Config) -> str:
    """The configuration as the TOML file that would give it, with what each setting means."""
    lines = []
    for name, field in FIELDS.items():
        note = " Read again on SIGHUP." if field.metadata["reloadable"] else ""
        lines.append(f"# {field.metadata['help']}{note}")
        value = getattr(config, name)
        if name == "runtimes":
            for key, table in value.items():
                lines += [f"[runtimes.{key}]", *(f"{one} = {toml(table[one])}" for one in sorted(table))]
        else:
            lines.append(f"{name} = {toml(value)}")
        lines.append("")
    return "\n".join(lines)


def toml(value: Any) -> str:
    """A value as TOML has it, tables inline."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {toml(one)}' for key, one in value.items())}}}"
    return json.dumps(str(value) if isinstance(value, Path) else value)
