"""What a pod's manifest asks for, looked at from inside its containers."""

import os
from typing import Any

from kit.agent import FOREVER, IMAGE, Agent, box

FORCED = "cat /proc/sys/kernel/shm_rmid_forced"


VARIABLES = [
    {"name": "OWN", "value": "$(HELD) and $$(HELD)"},
    *(
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in [("POD", "metadata.name"), ("UID", "metadata.uid"), ("NODE", "spec.nodeName")]
    ),
    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
    {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "held"}}},
    {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "word"}}},
    {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "word", "optional": True}}},
]


def test_what_a_container_is_told_and_may_do(there: Agent) -> None:
    """Variables, users, capabilities, a root that is read-only, sysctls: looked at from inside."""
    there.write("data.yaml", "kind: ConfigMap\nmetadata: {name: config}\ndata: {held: fast}\n---\n"
                             "kind: Secret\nmetadata: {name: secret}\nstringData: {word: sesame}\n")  # fmt: skip
    limits = {"limits": {"cpu": "250m", "memory": "64Mi"}}
    taken = [{"prefix": "C_", "configMapRef": {"name": "config"}}, {"configMapRef": {"name": "none", "optional": True}}]
    held = [{"name": "HELD", "value": "held"}, *VARIABLES]
    ids = "id -u; id -g; id -G; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; "
    strict = {
        "runAsUser": 1234,
        "runAsGroup": 2345,
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    there.write_pods(
        told={
            "dnsPolicy": "None",
            "dnsConfig": {
                "nameservers": ["192.0.2.53"],
                "searches": ["example.org"],
                "options": [{"name": "ndots", "value": "5"}],
            },
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["db", "db.lan"]}],
            "containers": [
                box("c", f"env; {FOREVER}", env=held, envFrom=taken, resources=limits),
                box(
                    "d",
                    f"pwd; echo $0; cat /etc/resolv.conf; grep db /etc/hosts; {FOREVER}",
                    workingDir="/tmp",
                    env=[{"name": "WORD", "value": "word"}],
                    args=["$(WORD)"],
                ),
            ],
        },
        wanting={
            "containers": [box("c", env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k"}}}])]
        },
        strict={
            "securityContext": {
                "fsGroup": 3456,
                "supplementalGroups": [4567],
                "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}],
            },
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [
                box(
                    "c",
                    f"{ids} stat -c %g:%a /v; touch /v/a; touch /a 2>&1; {FORCED}; {FOREVER}",
                    securityContext=strict,
                    volumeMounts=[{"name": "v", "mountPath": "/v"}],
                ),
                box(
                    "added",
                    f"{ids} {FOREVER}",
                    securityContext={"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_TIME"]}},
                ),
                box("free", f"{ids} {FOREVER}", securityContext={"privileged": True}),
                box("loose", f"{ids} {FOREVER}", securityContext={"seccompProfile": {"type": "Unconfined"}}),
            ],
        },
        root={"securityContext": {"runAsNonRoot": True}, "containers": [box("c")]},
    )

    def whole(pod: str, name: str) -> list[str]:
        there.until(lambda: there.container(pod, name).get("ready"), f"{name} of {pod}")
        there.until(lambda: there.node.works(there.container(pod, name)["containerID"]), "it to work")
        return there.lines(pod, name)

    seen = dict(line.split("=", 1) for line in there.until(lambda: whole("told", "c"), "its variables"))
    assert seen["OWN"] == "held and $(HELD)"
    assert (seen["POD"], seen["UID"], seen["NODE"]) == ("told", "told-0", os.uname().nodename)
    assert (seen["CPU"], seen["MEMORY"], seen["KEY"], seen["PASS"]) == ("250", "64", "fast", "sesame")
    assert (seen["C_held"], "NONE" in seen) == ("fast", False)
    names = ["search example.org", "nameserver 192.0.2.53", "options ndots:5"]
    there.until(lambda: len(there.lines("told", "d")) == 6, "where it works, and whom it knows")
    assert there.lines("told", "d")[:2] == ["/tmp", "word"]
    assert sorted(there.lines("told", "d")[2:5]) == sorted(names)
    assert there.lines("told", "d")[5].split() == ["192.0.2.9", "db", "db.lan"]

    for name, words in (("wanting", "there is no Secret 'no'"), ("root", "runAsNonRoot: the image would run as root")):
        there.until(lambda name=name: there.waits(name) == "CreateContainerConfigError", name)
        assert words in there.container(name, "c")["state"]["waiting"]["message"]
        assert there.phase(name) == "Pending"

    there.until(lambda: len(whole("strict", "c")) >= 9, "what it may do")
    lines = there.lines("strict", "c")
    assert lines[:3] == ["1234", "2345", "2345 3456 4567"]
    assert lines[3:6] == ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    assert lines[6].startswith("3456:2")
    assert "Read-only file system" in lines[7]
    assert lines[8] == "1"
    there.until(lambda: all(len(whole("strict", name)) >= 6 for name in ("added", "free", "loose")), "the others")
    caps = {name: int(there.lines("strict", name)[3].split("\t")[1], 16) for name in ("added", "free", "loose")}
    assert caps["added"] == 1 << 12 | 1 << 25
    assert caps["free"] & 1 << 21, "CAP_SYS_ADMIN"
    assert not caps["loose"] & 1 << 21
    assert there.lines("strict", "free")[5] == there.lines("strict", "loose")[5] == "Seccomp:\t0"
    there.ended("told", "wanting", "strict", "root")


def test_what_a_pod_shares_with_the_host(there: Agent) -> None:
    """Namespaces: the host's, the pod's, or each container's own."""
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid", "ipc", "uts")}
    look = f"for n in net pid ipc uts; do readlink /proc/self/ns/$n; done; hostname; {FOREVER}"
    there.write_pods(
        apart={"hostname": "apart-1", "containers": [box("c", look), box("d", look)]},
        shared={
            "shareProcessNamespace": True,
            "runtimeClassName": "runc",
            "containers": [box("c", look), box("d", look)],
        },
        host={"hostNetwork": True, "hostPID": True, "hostIPC": True, "containers": [box("c", look)]},
    )

    def seen(pod: str, name: str) -> dict[str, str]:
        there.until(lambda: len(there.lines(pod, name)) == 5, f"{name} of {pod}")
        return dict(zip(("net", "pid", "ipc", "uts", "name"), there.lines(pod, name), strict=True))

    c, d = seen("apart", "c"), seen("apart", "d")
    assert not set(c.values()) & set(own.values())
    assert c["name"] == d["name"] == "apart-1"
    assert (c["net"], c["ipc"], c["uts"]) == (d["net"], d["ipc"], d["uts"])
    assert c["pid"] != d["pid"]
    c, d = seen("shared", "c"), seen("shared", "d")
    assert {one.metadata.name: one.runtime_handler for one in there.node.pods()}["shared"] == "runc"
    assert c["pid"] == d["pid"] != own["pid"]
    c = seen("host", "c")
    assert {kind: c[kind] for kind in ("net", "pid", "ipc")} == {kind: own[kind] for kind in ("net", "pid", "ipc")}
    assert there.status("host")["podIP"] == there.status("host")["hostIP"]
    there.ended("apart", "shared", "host")


def test_what_is_mounted(there: Agent) -> None:
    """Every kind of volume, from inside."""
    there.write("data.yaml", "kind: ConfigMap\nmetadata: {name: config}\ndata: {a: one, b: two}\n---\n"
                             "kind: Secret\nmetadata: {name: secret}\nstringData: {word: sesame}\n")  # fmt: skip
    host = there.base / "host"
    name = {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}
    memory = {"path": "memory", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory"}}
    volumes: dict[str, dict[str, Any]] = {
        "config": {"configMap": {"name": "config", "items": [{"key": "b", "path": "in/b", "mode": 0o600}]}},
        "none": {"configMap": {"name": "none", "optional": True}},
        "secret": {"secret": {"secretName": "secret", "defaultMode": 0o400}},
        "down": {"downwardAPI": {"items": [name, memory]}},
        "all": {
            "projected": {
                "defaultMode": 0o440,
                "sources": [
                    {"configMap": {"name": "config", "items": [{"key": "a", "path": "a"}]}},
                    {"secret": {"name": "secret", "items": [{"key": "word", "path": "word"}]}},
                    {"downwardAPI": {"items": [name]}},
                ],
            }
        },
        "memory": {"emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}},
        "host": {"hostPath": {"path": str(host), "type": "DirectoryOrCreate"}},
        "image": {"image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}},
    }
    mounts: list[dict[str, Any]] = [{"name": name, "mountPath": f"/{name}"} for name in volumes]
    mounts += [
        {"name": "host", "mountPath": "/still", "readOnly": True, "recursiveReadOnly": "IfPossible"},
        {"name": "host", "mountPath": "/part", "subPath": "part"},
        {"name": "host", "mountPath": "/expanded", "subPathExpr": "$(POD)"},
    ]
    script = """
    cat /config/in/b; echo; stat -L -c %a /config/in/b; ls /none | wc -l
    cat /secret/word; echo; stat -L -c %a /secret/word; stat -f -c %T /secret
    cat /down/name; echo; cat /down/memory; echo
    cat /all/a /all/word /all/name; echo; stat -L -c %a /all/a
    stat -f -c %T /memory; df -m /memory | awk 'END {print $2}'
    test -x /image/bin/busybox && echo image; touch /host/a /part/b /expanded/c; touch /still/d 2>&1
    """
    inside = box(
        "c", script + FOREVER, volumeMounts=mounts, env=[VARIABLES[1]], resources={"limits": {"memory": "64Mi"}}
    )
    there.write_pods(full={"volumes": [{"name": name, **one} for name, one in volumes.items()], "containers": [inside]})
    there.until(lambda: len(there.lines("full", "c")) == 14, "it to have looked at all")
    *found, refused = there.lines("full", "c")
    expected = ["two", "600", "0", "sesame", "400", "tmpfs", "full", str(64 << 20), "onesesamefull", "440"]
    assert found == [*expected, "tmpfs", "2", "image"]
    assert "Read-only file system" in refused
    assert sorted(path.name for path in host.iterdir()) == ["a", "full", "part"]
    assert ((host / "part/b").exists(), (host / "full/c").exists()) == (True, True)
    there.ended("full")
    assert (host / "a").exists()
