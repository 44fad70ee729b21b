"""A pod in sections, as `kubectl describe pod` has it; what is kept of a volume and why is said where it is listed.

Pure; source: describePod of Kubernetes 1.32 (kubectl/pkg/describe).
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import groupby
from typing import Final

from holdfast.cli.output import lines as table
from holdfast.cli.pod_table import NONE, Object, duration, inits, mains
from holdfast.proto import agent_pb2 as pb

NS: Final = 1_000_000_000
FROM: Final = (("ConfigMap", "configMapRef"), ("Secret", "secretRef"))
UNITS: Final = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))
Line = tuple[int, str, str | None]  # indentation, a key and its value; or indentation, a text, and None

VOLUMES: Final[Mapping[str, tuple[str, tuple[tuple[str, str, str], ...]]]] = {
    "emptyDir": (
        "EmptyDir (a temporary directory that shares a pod's lifetime)",
        (("Medium", "medium", ""), ("SizeLimit", "sizeLimit", "<unset>")),
    ),
    "hostPath": ("HostPath (bare host directory volume)", (("Path", "path", ""), ("HostPathType", "type", ""))),
    "configMap": (
        "ConfigMap (a volume populated by a ConfigMap)",
        (("Name", "name", ""), ("Optional", "optional", "false")),
    ),
    "secret": (
        "Secret (a volume populated by a Secret)",
        (("SecretName", "secretName", ""), ("Optional", "optional", "false")),
    ),
    "downwardAPI": ("DownwardAPI (a volume populated by information about the pod)", ()),
    "projected": ("Projected (a volume that contains injected data from multiple sources)", ()),
    "image": (
        "Image (a container image or OCI artifact)",
        (("Reference", "reference", ""), ("PullPolicy", "pullPolicy", "")),
    ),
}


def described(one: pb.AgentPod, pod: Object, now: int | None = None) -> Iterator[str]:
    """Line by line; `now` is in ns since the epoch."""
    yield from aligned(_head(one, pod))
    for title, key, states in (
        ("Init Containers", "initContainers", inits(pod)),
        ("Containers", "containers", mains(pod)),
    ):
        specs = {spec["name"]: spec for spec in pod["spec"].get(key, [])}
        if states:
            yield f"{title}:"
        for found in states:
            yield from aligned(_container(specs.get(found["name"], {}), found))
    yield "Conditions:"
    rows = [(found["type"], found["status"]) for found in pod["status"].get("conditions", [])]
    yield from (f"  {line}" for line in table([("Type", "Status"), *rows]))
    yield from aligned([*_volumes(pod, one.volumes), (0, "QoS Class", str(pod["status"].get("qosClass", NONE)))])
    yield from _events(one.events, time.time_ns() if now is None else now)


def aligned(found: Iterable[Line]) -> Iterator[str]:
    """Values that follow each other below each other."""
    for has_value, group in groupby(found, lambda line: line[2] is not None):
        block = [(f"{' ' * indent}{key}{':' if key and has_value else ''}", value) for indent, key, value in group]
        width = max(len(key) for key, _ in block) + 2
        for key, value in block:
            yield f"{key:{width}}{value}".rstrip() if has_value else key


def _head(one: pb.AgentPod, pod: Object) -> Iterator[Line]:
    meta, status = pod["metadata"], pod["status"]
    yield 0, "Name", meta["name"]
    yield 0, "Namespace", one.namespace
    yield 0, "Node", "/".join(filter(None, (pod["spec"].get("nodeName", NONE), status.get("hostIP"))))
    yield 0, "Start Time", _time(status.get("startTime"))
    yield from _pairs("Labels", meta.get("labels", {}), "=")
    yield from _pairs("Annotations", meta.get("annotations", {}), ": ")
    yield 0, "UID", one.uid
    yield 0, "Source", one.source
    if one.deleted_at:
        yield 0, "Status", f"Terminating (lasts {duration((time.time_ns() - one.deleted_at) // NS)})"
        yield 0, "Termination Grace Period", f"{meta.get('deletionGracePeriodSeconds', 0)}s"
    else:
        yield 0, "Status", str(status["phase"])
    for key in ("reason", "message"):
        if status.get(key):
            yield 0, key.capitalize(), str(status[key])
    yield 0, "IP", status.get("podIP", "")
    if not status.get("podIPs"):
        yield 0, "IPs", NONE
        return
    yield 0, "IPs:", None
    yield from ((2, "IP", found["ip"]) for found in status["podIPs"])


def _pairs(title: str, found: Mapping[str, str], between: str) -> Iterator[Line]:
    texts = [f"{key}{between}{value}" for key, value in sorted(found.items())] or [NONE]
    yield from ((0, title if not number else "", text) for number, text in enumerate(texts))


# -- containers


def _container(spec: Object, found: Object) -> Iterator[Line]:
    yield 2, f"{found['name']}:", None
    yield 4, "Container ID", found.get("containerID", "")
    yield 4, "Image", spec.get("image", found["image"])
    yield 4, "Image ID", found.get("imageID", "")
    ports = spec.get("ports", [])
    many = "s" if len(ports) > 1 else ""
    for title, key in ((f"Port{many}", "containerPort"), (f"Host Port{many}", "hostPort")):
        texts = [f"{one.get(key) or 0}/{one.get('protocol', 'TCP')}" for one in ports]
        yield 4, title, ", ".join(texts) or NONE
    for title, key in (("Command", "command"), ("Args", "args")):
        if spec.get(key):
            yield 4, f"{title}:", None
            yield from ((6, line, None) for text in spec[key] for line in text.splitlines())
    yield from _state("State", found["state"])
    if found.get("lastState"):
        yield from _state("Last State", found["lastState"])
    yield 4, "Ready", str(bool(found["ready"]))
    yield 4, "Restart Count", str(found["restartCount"])
    for key in ("limits", "requests"):
        if amounts := spec.get("resources", {}).get(key):
            yield 4, f"{key.capitalize()}:", None
            yield from ((6, name, amount(str(value))) for name, value in sorted(amounts.items()))
    for key in ("liveness", "readiness", "startup"):
        if probe := spec.get(f"{key}Probe"):
            yield 4, key.capitalize(), _probe(probe)
    yield from _environment(spec)
    yield from _mounts(spec)


def _state(title: str, state: Object) -> Iterator[Line]:
    ((kind, found),) = state.items()
    yield 4, title, kind.capitalize()
    for key, name in (("reason", "Reason"), ("message", "Message")):
        if found.get(key):
            yield 6, name, " ".join(str(found[key]).split())
    if kind == "terminated":
        yield 6, "Exit Code", str(found["exitCode"])
    for key, name in (("startedAt", "Started"), ("finishedAt", "Finished")):
        if found.get(key):
            yield 6, name, _time(found[key])


def _probe(probe: Object) -> str:
    times = f"delay={probe.get('initialDelaySeconds', 0)}s timeout={probe.get('timeoutSeconds', 1)}s"
    times += f" period={probe.get('periodSeconds', 10)}s"
    times += f" #success={probe.get('successThreshold', 1)} #failure={probe.get('failureThreshold', 3)}"
    if action := probe.get("exec"):
        return f"exec [{' '.join(action.get('command', []))}] {times}"
    if action := probe.get("httpGet"):
        scheme, path = action.get("scheme", "HTTP").lower(), action.get("path", "/").lstrip("/")
        return f"http-get {scheme}://{action.get('host', '')}:{action['port']}/{path} {times}"
    action = probe.get("tcpSocket", {})
    return f"tcp-socket {action.get('host', '')}:{action.get('port', '')} {times}"


def _environment(spec: Object) -> Iterator[Line]:
    sources = [(kind, one[key]) for one in spec.get("envFrom", []) for kind, key in FROM if key in one]
    if sources:
        yield 4, "Environment Variables from:", None
        yield from (
            (6, one["name"], f"{kind}  Optional: {str(one.get('optional', False)).lower()}") for kind, one in sources
        )
    if not spec.get("env"):
        yield 4, "Environment", NONE
        return
    yield 4, "Environment:", None
    for one in spec["env"]:
        yield 6, one["name"], _value(one)


def _value(one: Object) -> str:
    source = one.get("valueFrom", {})
    if found := source.get("fieldRef"):
        return f" (v1:{found['fieldPath']})"
    if found := source.get("resourceFieldRef"):
        return f"{found['resource']} ({found.get('containerName') or 'its own'})"
    for key, kind in (("secretKeyRef", "secret"), ("configMapKeyRef", "config map")):
        if found := source.get(key):
            return f"<set to the key '{found['key']}' of {kind} '{found['name']}'>"
    return str(one.get("value", ""))


def _mounts(spec: Object) -> Iterator[Line]:
    if not spec.get("volumeMounts"):
        yield 4, "Mounts", NONE
        return
    yield 4, "Mounts:", None
    for one in sorted(spec["volumeMounts"], key=lambda one: str(one["mountPath"])):
        flags = ["ro" if one.get("readOnly") else "rw"]
        if part := one.get("subPath") or one.get("subPathExpr"):
            flags.append(f'path="{part}"')
        yield 6, f"{one['mountPath']} from {one['name']} ({','.join(flags)})", None


def amount(text: str) -> str:
    """ "64Mi" of "67108864"; what is no such number stays as it is."""
    size = int(text) if text.isdecimal() else 0
    return next((f"{size // unit}{name}" for name, unit in UNITS if size and size % unit == 0), text)


# -- volumes and events


def _volumes(pod: Object, words: Iterable[str]) -> Iterator[Line]:
    """With what is to be said of each; of those of a pod that is going its specification may not be all there is."""
    said = list(words)
    volumes = pod["spec"].get("volumes", [])
    if not volumes and not said:
        yield 0, "Volumes", NONE
        return
    yield 0, "Volumes:", None
    for one in volumes:
        yield 2, f"{one['name']}:", None
        kind = next(kind for kind in VOLUMES if kind in one)
        title, fields = VOLUMES[kind]
        found = one[kind] or {}
        yield 4, "Type", title
        for name, key, default in fields:
            value = str(found.get(key, default))
            yield 4, name, amount(value) if key == "sizeLimit" else value
        about = f"volume {one['name']}: "
        yield from ((4, "Status", word.removeprefix(about)) for word in said if word.startswith(about))
        said = [word for word in said if not word.startswith(about)]
    yield from ((2, word, None) for word in said)


def _events(events: Iterable[pb.PodEvent], now: int) -> Iterator[str]:
    rows = []
    for one in events:
        since = duration((now - one.at) // NS)
        often = f"{since} (x{one.count} over {duration((now - one.first_at) // NS)})" if one.count > 1 else since
        kind = "Warning" if one.warning else "Normal"
        rows.append((kind, one.reason, often, "holdfast-agent", " ".join(one.message.split())))
    if not rows:
        yield "Events:  <none>"
        return
    titles = ("Type", "Reason", "Age", "From", "Message")
    yield "Events:"
    yield from (f"  {line}" for line in table([titles, tuple("-" * len(title) for title in titles), *rows], gap=2))


def _time(text: str | None) -> str:
    """As kubectl has times: "Sat, 21 Nov 2026 15:00:00 +0000", here."""
    return datetime.fromisoformat(text).astimezone().strftime("%a, %d %b %Y %H:%M:%S %z") if text else ""
