"""What a container uses, from its cgroup's files, as the messages that containerd's clients expect."""

from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from holdfast.linux import cgroup, usage
from holdfast.proto import cgroups_v1_pb2, cgroups_v2_pb2

UNLIMITED: Final = (1 << 64) - 1


def read(path: str) -> Message:
    """io.containerd.cgroups.v2.Metrics, or v1.Metrics where memory is a v1 controller. What has no file is 0."""
    return _read_v1(path.strip("/")) if "memory" in cgroup.hierarchies() else _read_v2(path.strip("/"))


def _read_v1(path: str) -> cgroups_v1_pb2.Metrics:
    where = {name: top / path for name, top in cgroup.hierarchies().items()}
    nowhere = Path("/nowhere")
    reply = cgroups_v1_pb2.Metrics()
    pids, cpu = where.get("pids", nowhere), where.get("cpuacct", nowhere)
    reply.pids.current, reply.pids.limit = _number(pids / "pids.current"), _number(pids / "pids.max")
    reply.cpu.usage.total = _number(cpu / "cpuacct.usage")
    reply.cpu.usage.user = _number(cpu / "cpuacct.usage_user")
    reply.cpu.usage.kernel = _number(cpu / "cpuacct.usage_sys")
    reply.cpu.usage.per_cpu.extend(_numbers(cpu / "cpuacct.usage_percpu"))
    throttled = _table(where.get("cpu", nowhere) / "cpu.stat")
    reply.cpu.throttling.periods = throttled.get("nr_periods", 0)
    reply.cpu.throttling.throttled_periods = throttled.get("nr_throttled", 0)
    reply.cpu.throttling.throttled_time = throttled.get("throttled_time", 0)
    memory = where.get("memory", nowhere)
    names = {field.name: field.name for field in reply.memory.DESCRIPTOR.fields if field.message_type is None}
    _fill(reply.memory, _table(memory / "memory.stat"), {**names, "pg_fault": "pgfault", "pg_maj_fault": "pgmajfault"})
    for entry, prefix in ((reply.memory.usage, "memory"), (reply.memory.swap, "memory.memsw")):
        entry.limit = _number(memory / f"{prefix}.limit_in_bytes")
        entry.usage = _number(memory / f"{prefix}.usage_in_bytes")
        entry.max = _number(memory / f"{prefix}.max_usage_in_bytes")
        entry.failcnt = _number(memory / f"{prefix}.failcnt")
    return reply


def _read_v2(path: str) -> cgroups_v2_pb2.Metrics:
    where = cgroup.hierarchies()[""] / path
    reply = cgroups_v2_pb2.Metrics()
    reply.pids.current, reply.pids.limit = _number(where / "pids.current"), _number(where / "pids.max")
    for message, file in ((reply.cpu, "cpu.stat"), (reply.memory, "memory.stat")):
        _fill(message, _table(where / file), {field.name: field.name for field in message.DESCRIPTOR.fields})
    reply.memory.usage, reply.memory.usage_limit = _number(where / "memory.current"), _number(where / "memory.max")
    return reply


def _fill(message: Message, table: dict[str, int], names: dict[str, str]) -> None:
    """Set fields from a table; `names` maps a field to its key."""
    for field, key in names.items():
        if key in table:
            setattr(message, field, table[key])


def _number(path: Path) -> int:
    text = (usage.read(str(path)) or "0").strip()
    return UNLIMITED if text == "max" else int(text)


def _numbers(path: Path) -> list[int]:
    return [int(word) for word in (usage.read(str(path)) or "").split()]


def _table(path: Path) -> dict[str, int]:
    return usage.table(str(path)) or {}
