"""Stats: a container's cgroup files as containerd's metrics message, packed as the Task API wants it."""

from pathlib import Path

from google.protobuf.any_pb2 import Any

from holdfast.linux import cgroup
from holdfast.proto import cgroups_v1_pb2, cgroups_v2_pb2

UNLIMITED = 2**63 - 4096  # what v1 shows where no limit is set, on pages of 4 KiB


def collect(path: str) -> Any:
    """The metrics of one cgroup; a controller that the host has not is left out."""
    message = _v2(path) if cgroup.mode() == "v2" else _v1(path)
    packed = Any()
    packed.Pack(message)
    return packed


def _v1(path: str) -> cgroups_v1_pb2.Metrics:
    metrics = cgroups_v1_pb2.Metrics()
    places = {name: top / path.strip("/") for name, top in cgroup.hierarchies().items()}
    if (pids := places.get("pids")) is not None:
        metrics.pids.current = _number(pids / "pids.current")
        metrics.pids.limit = _number(pids / "pids.max")
    if (cpu := places.get("cpuacct")) is not None:
        metrics.cpu.usage.total = _number(cpu / "cpuacct.usage")
        metrics.cpu.usage.user = _number(cpu / "cpuacct.usage_user")
        metrics.cpu.usage.kernel = _number(cpu / "cpuacct.usage_sys")
    if (cpu := places.get("cpu")) is not None:
        found = _table(cpu / "cpu.stat")
        metrics.cpu.throttling.periods = found.get("nr_periods", 0)
        metrics.cpu.throttling.throttled_periods = found.get("nr_throttled", 0)
        metrics.cpu.throttling.throttled_time = found.get("throttled_time", 0)
    if (memory := places.get("memory")) is not None:
        found = _table(memory / "memory.stat")
        for field, key in (("pg_fault", "pgfault"), ("pg_maj_fault", "pgmajfault")):
            setattr(metrics.memory, field, found.get(key, 0))
        for field in ("cache", "rss", "mapped_file", "inactive_file", "active_file", "total_inactive_file"):
            setattr(metrics.memory, field, found.get(field, 0))
        metrics.memory.usage.usage = _number(memory / "memory.usage_in_bytes")
        metrics.memory.usage.max = _number(memory / "memory.max_usage_in_bytes")
        metrics.memory.usage.limit = _number(memory / "memory.limit_in_bytes")
        metrics.memory.usage.failcnt = _number(memory / "memory.failcnt")
    return metrics


def _v2(path: str) -> cgroups_v2_pb2.Metrics:
    metrics = cgroups_v2_pb2.Metrics()
    place = cgroup.hierarchies()[""] / path.strip("/")
    metrics.pids.current = _number(place / "pids.current")
    metrics.pids.limit = _number(place / "pids.max")
    found = _table(place / "cpu.stat")
    for field in ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"):
        setattr(metrics.cpu, field, found.get(field, 0))
    found = _table(place / "memory.stat")
    for field in ("anon", "file", "inactive_file", "active_file", "pgfault", "pgmajfault"):
        setattr(metrics.memory, field, found.get(field, 0))
    metrics.memory.usage = _number(place / "memory.current")
    metrics.memory.usage_limit = _number(place / "memory.max")
    return metrics


def _number(path: Path) -> int:
    """A counter or limit; "max" and missing files are 0, which is how the message says "none"."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return 0
    value = int(text) if text.isdigit() else 0
    return 0 if value >= UNLIMITED else value


def _table(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
