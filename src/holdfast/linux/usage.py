"""What cgroups and network namespaces have used, from the kernel's files.

Sources: cgroups(7), and the kernel's cgroup-v1/memory.rst, cgroup-v2.rst and accounting/psi.rst.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, namespace

READ_LIMIT: Final = 64 * 1024
_OF_V1: Final = ("total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault")
_CACHE_V1: Final = ("total_cache", "total_mapped_file")
_CACHE_V2: Final = ("file", "file_mapped", "kernel")
_OF_V2: Final = ("inactive_file", "anon", "pgfault", "pgmajfault")
_NO_LIMIT: Final = 1 << 62  # v1 has no word for it: its largest number is rounded down to pages


@dataclass(frozen=True, slots=True)
class Pressure:
    """Stalls of some of the tasks, or of all: `total` in microseconds, averages in percent over 10, 60 and 300 s."""

    total: int
    averages: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one cgroup with all below it. None is what this host does not account, or has no limit for; sizes in bytes."""

    cpu: int | None = None  # ns since it was made
    memory: int | None = None
    working_set: int | None = None
    rss: int | None = None
    faults: int | None = None
    major_faults: int | None = None
    memory_limit: int | None = None
    swap: int | None = None
    swap_limit: int | None = None
    processes: int | None = None
    pressure: Mapping[str, tuple[Pressure, Pressure]] | None = None  # of "cpu", "memory", "io": (some, full)


@dataclass(frozen=True, slots=True)
class Interface:
    """Counters of one network interface since it was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def of_cgroup(path: str) -> Usage | None:
    """None when there is no such cgroup. Blocks; a few files are read."""
    found = cgroup.hierarchies()
    relative = path.strip("/")
    if "memory" in found or "cpuacct" in found:
        return _v1({name: f"{found[name]}/{relative}" for name in ("memory", "cpuacct", "pids") if name in found})
    return _v2(f"{found.get('', cgroup.ROOT)}/{relative}")


def counters_of(path: str) -> dict[str, int]:
    """More of what the kernel counts, for metrics: times in ns, sizes in bytes; without what this host does not count.

    cpu_user, cpu_system, periods, throttled, throttled_time, cache, mapped, kernel, peak, failures, cpu_quota,
    cpu_period, cpu_shares. Blocks.
    """
    found = cgroup.hierarchies()
    relative = path.strip("/")
    if "memory" not in found:
        return _counters_v2(f"{found.get('', cgroup.ROOT)}/{relative}")
    where = {name: f"{found[name]}/{relative}" for name in ("memory", "cpuacct", "cpu") if name in found}
    return _counters_v1(where["memory"], where.get("cpuacct", ""), where.get("cpu", ""))


def _counters_v1(memory: str, cpuacct: str, cpu: str) -> dict[str, int]:
    stat, bandwidth = _picked(f"{memory}/memory.stat", _CACHE_V1) or {}, table(f"{cpu}/cpu.stat") or {}
    quota = (read(f"{cpu}/cpu.cfs_quota_us") or "").strip()
    return _known(
        {
            "cpu_user": _number(f"{cpuacct}/cpuacct.usage_user"),
            "cpu_system": _number(f"{cpuacct}/cpuacct.usage_sys"),
            "periods": bandwidth.get("nr_periods"),
            "throttled": bandwidth.get("nr_throttled"),
            "throttled_time": bandwidth.get("throttled_time"),
            "cache": stat.get("total_cache"),
            "mapped": stat.get("total_mapped_file"),
            "kernel": _number(f"{memory}/memory.kmem.usage_in_bytes"),
            "peak": _number(f"{memory}/memory.max_usage_in_bytes"),
            "failures": _number(f"{memory}/memory.failcnt"),
            "cpu_quota": int(quota) if quota.isdigit() else None,
            "cpu_period": _number(f"{cpu}/cpu.cfs_period_us"),
            "cpu_shares": _number(f"{cpu}/cpu.shares"),
        }
    )


def _counters_v2(where: str) -> dict[str, int]:
    stat, cpu = _picked(f"{where}/memory.stat", _CACHE_V2) or {}, table(f"{where}/cpu.stat") or {}
    events = table(f"{where}/memory.events") or {}
    quota, _, period = (read(f"{where}/cpu.max") or "").strip().partition(" ")
    micro = {name: cpu[key] * 1000 for name, key in _MICROSECONDS.items() if key in cpu}
    return micro | _known(
        {
            "periods": cpu.get("nr_periods"),
            "throttled": cpu.get("nr_throttled"),
            "cache": stat.get("file"),
            "mapped": stat.get("file_mapped"),
            "kernel": stat.get("kernel"),
            "peak": _number(f"{where}/memory.peak"),
            "failures": events.get("max"),
            "cpu_quota": int(quota) if quota.isdigit() else None,
            "cpu_period": int(period) if period.isdigit() else None,
            "cpu_shares": _number(f"{where}/cpu.weight"),
        }
    )


_MICROSECONDS: Final = {"cpu_user": "user_usec", "cpu_system": "system_usec", "throttled_time": "throttled_usec"}


def _known(values: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def of_networks(netns: Iterable[Path]) -> dict[Path, list[Interface]]:
    """Interfaces by network namespace, but for loopback; one that is gone is left out.

    By a thread that enters them one after the other and is seen no more.
    """
    found: dict[Path, list[Interface]] = {}

    def visit() -> None:
        for path in netns:
            try:
                namespace.enter(path)
                text = read("/proc/thread-self/net/dev")
            except OSError:
                continue
            found[path] = interfaces(text or "")

    thread = threading.Thread(target=visit, name="networks", daemon=True)
    thread.start()
    thread.join()
    return found


def interfaces(text: str) -> list[Interface]:
    """From the words of /proc/net/dev, proc(5): two lines of heads, then 16 counters an interface."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        if (name := name.strip()) != "lo" and len(numbers := rest.split()) >= 16:
            found.append(Interface(name, *map(int, (*numbers[:4], *numbers[8:12]))))
    return found


def _v1(where: Mapping[str, str]) -> Usage | None:
    memory, cpu, pids = where.get("memory"), where.get("cpuacct"), where.get("pids")
    counts = _picked(f"{memory}/memory.stat", _OF_V1) if memory else None
    spent = _number(f"{cpu}/cpuacct.usage") if cpu else None
    if counts is None and spent is None:
        return None
    counts = counts or {}
    used, both = _number(f"{memory}/memory.usage_in_bytes"), _number(f"{memory}/memory.memsw.usage_in_bytes")
    limit, with_swap = _number(f"{memory}/memory.limit_in_bytes"), _number(f"{memory}/memory.memsw.limit_in_bytes")
    limit = limit if limit is not None and limit < _NO_LIMIT else None
    with_swap = with_swap if with_swap is not None and with_swap < _NO_LIMIT else None
    return Usage(
        cpu=spent,
        memory=used,
        working_set=_without(used, counts.get("total_inactive_file")),
        rss=counts.get("total_rss"),
        faults=counts.get("total_pgfault"),
        major_faults=counts.get("total_pgmajfault"),
        memory_limit=limit,
        swap=_without(both, used) if both is not None else None,
        swap_limit=_without(with_swap, limit) if with_swap is not None and limit is not None else None,
        processes=_number(f"{pids}/pids.current") if pids else None,
    )


def _v2(where: str) -> Usage | None:
    if not os.path.isdir(where):
        return None
    counts, cpu = _picked(f"{where}/memory.stat", _OF_V2) or {}, _picked(f"{where}/cpu.stat", ("usage_usec",)) or {}
    used = _number(f"{where}/memory.current")
    spent = cpu.get("usage_usec")
    return Usage(
        cpu=spent * 1000 if spent is not None else None,
        memory=used,
        working_set=_without(used, counts.get("inactive_file")),
        rss=counts.get("anon"),
        faults=counts.get("pgfault"),
        major_faults=counts.get("pgmajfault"),
        memory_limit=_number(f"{where}/memory.max"),
        swap=_number(f"{where}/memory.swap.current"),
        swap_limit=_number(f"{where}/memory.swap.max"),
        processes=_number(f"{where}/pids.current"),
        pressure=_pressures(where),
    )


def _without(whole: int | None, part: int | None) -> int | None:
    """The rest, which counters that are read one after the other may make negative."""
    return None if whole is None else max(0, whole - (part or 0))


def _pressures(where: str) -> Mapping[str, tuple[Pressure, Pressure]] | None:
    found = {}
    for kind in ("cpu", "memory", "io"):
        if (text := read(f"{where}/{kind}.pressure")) is not None:
            found[kind] = pressures(text)
    return found or None


def pressures(text: str) -> tuple[Pressure, Pressure]:
    """(some, full) from the words of a .pressure file; zeros for a line that is not there."""
    found = {"some": Pressure(0, (0.0, 0.0, 0.0)), "full": Pressure(0, (0.0, 0.0, 0.0))}
    for line in text.splitlines():
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        averages = (float(values["avg10"]), float(values["avg60"]), float(values["avg300"]))
        found[kind] = Pressure(int(values["total"]), averages)
    return found["some"], found["full"]


def read(path: str) -> str | None:
    """What one of the kernel's files says; None when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, READ_LIMIT).decode(errors="replace")
    except OSError:
        return None  # it went in between
    finally:
        os.close(fd)


def _number(path: str) -> int | None:
    text = (read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _picked(path: str, names: Iterable[str]) -> dict[str, int] | None:
    """As `table`, of these names only: memory.stat has fifty, and it is read of each container again and again."""
    if (text := read(path)) is None:
        return None
    return picked(text, names)


def picked(text: str, names: Iterable[str]) -> dict[str, int]:
    """Numbers by name from "name value" lines, of the names that are there."""
    found, text = {}, f"\n{text}"
    for name in names:
        if (at := text.find(f"\n{name} ")) >= 0:
            begin = at + len(name) + 2
            end = text.find("\n", begin)
            if (value := text[begin : end if end >= 0 else None]).isdigit():
                found[name] = int(value)
    return found


def table(path: str) -> dict[str, int] | None:
    """A file of "name value" lines, as far as the values are numbers; None when it cannot be read."""
    if (text := read(path)) is None:
        return None
    return {
        name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines()) if value.isdigit()
    }
