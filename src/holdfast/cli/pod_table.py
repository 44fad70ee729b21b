"""A pod in a row, as `kubectl get pods` has it. Pure; sources: printPod and HumanDuration of Kubernetes 1.32."""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

Object = Mapping[str, Any]  # a v1 Pod as plain data, or a part of one

COLUMNS: Final = ("NAME", "READY", "STATUS", "RESTARTS", "AGE")
WIDE: Final = (*COLUMNS, "IP", "NODE")
NONE: Final = "<none>"
UNKNOWN_AGE: Final = "<unknown>"
INITIAL: Final = ("", "PodInitializing", "ContainerCreating")  # why one waits that simply has not begun
OVER: Final = ("Succeeded", "Failed")


def row(pod: Object, *, wide: bool = False, now: float | None = None) -> tuple[str, ...]:
    """`now` is in seconds since the epoch."""
    now = time.time() if now is None else now
    status, counted = pod["status"], [*mains(pod), *sidecars(pod)]
    ready = sum(bool(one.get("ready")) and "running" in one["state"] for one in counted)
    created = pod["metadata"].get("creationTimestamp", "")
    found = (pod["metadata"]["name"], f"{ready}/{len(counted)}", word(pod), restarts(pod, now), age(created, now))
    return (*found, status.get("podIP") or NONE, pod["spec"].get("nodeName") or NONE) if wide else found


def mains(pod: Object) -> list[Object]:
    """The status of each of its containers."""
    return list(pod["status"].get("containerStatuses", []))


def inits(pod: Object) -> list[Object]:
    return list(pod["status"].get("initContainerStatuses", []))


def sidecars(pod: Object) -> list[Object]:
    names = {one["name"] for one in pod["spec"].get("initContainers", []) if one.get("restartPolicy") == "Always"}
    return [one for one in inits(pod) if one["name"] in names]


def word(pod: Object) -> str:
    """What a pod does, in a word: STATUS."""
    phase = str(pod["status"]["phase"])
    if "deletionTimestamp" in pod["metadata"] and phase not in OVER:
        return "Terminating"
    if (found := _initializing(pod)) and not _holds(pod, "Initialized"):
        return found
    reasons = [_reason(one["state"]) for one in mains(pod)]
    found = next(filter(None, reasons), str(pod["status"].get("reason") or phase))
    if found == "Completed" and any(one.get("ready") and "running" in one["state"] for one in mains(pod)):
        return "Running" if _holds(pod, "Ready") else "NotReady"
    return found


def _initializing(pod: Object) -> str:
    """By the first init container that is not through; "" when all are."""
    started = {one["name"] for one in sidecars(pod) if one.get("started")}
    for number, one in enumerate(inits(pod)):
        if one["name"] in started or one["state"].get("terminated", {}).get("exitCode") == 0:
            continue
        reason = _reason(one["state"])
        return f"Init:{number}/{len(inits(pod))}" if reason in INITIAL else f"Init:{reason}"
    return ""


def _reason(state: Object) -> str:
    if ended := state.get("terminated"):
        return str(ended.get("reason") or f"ExitCode:{ended['exitCode']}")
    return str(state.get("waiting", {}).get("reason", ""))


def _holds(pod: Object, condition: str) -> bool:
    return any(one["type"] == condition and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def restarts(pod: Object, now: float) -> str:
    """ "3 (5m ago)": of what is to run on, or of the init containers while those are not through."""
    counted = inits(pod) if _initializing(pod) and not _holds(pod, "Initialized") else [*sidecars(pod), *mains(pod)]
    number = sum(one["restartCount"] for one in counted)
    ends = [one["lastState"]["terminated"].get("finishedAt", "") for one in counted if one.get("lastState")]
    last = max(ends, default="")
    return f"{number} ({age(last, now)} ago)" if number and last else str(number)


def age(since: str, now: float) -> str:
    """ "5m", from RFC 3339."""
    return duration(int(now - datetime.fromisoformat(since).timestamp())) if since else UNKNOWN_AGE


def duration(seconds: int) -> str:
    """With two units where the second still says something."""
    seconds = max(seconds, 0)
    minutes, hours = seconds // 60, seconds // 3600
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _two(days // 365, "y", days % 365 if days < 8 * 365 else 0, "d")


def _two(large: int, unit: str, small: int, other: str) -> str:
    return f"{large}{unit}{small}{other}" if small else f"{large}{unit}"


def changed(before: Mapping[str, Object], now: Iterable[Object]) -> Iterator[Object]:
    """Of pods by uid, then and now: those that are new or otherwise; of those that are gone what was last known."""
    there = {one["metadata"]["uid"]: one for one in now}
    yield from (one for uid, one in there.items() if before.get(uid) != one)
    yield from (one for uid, one in before.items() if uid not in there)
