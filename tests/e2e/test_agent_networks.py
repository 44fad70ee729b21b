"""The agent's pods in networks of CNI plugins: their addresses and names, ports of the host, and probes from it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import tls
from kit.agent import IMAGE, Agent, running_agent
from kit.cni import Network, network
from kit.node import until

SLEEP = 'command: [sh, -c, "trap exit TERM; while sleep 0.1; do :; done"]'


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as one:
        yield one


@pytest.fixture
def there(net: Network) -> Iterator[Agent]:
    with running_agent(net.node, wrapper=["nsenter", f"--net={net.netns}"]) as one:
        yield one


def condition(there: Agent, pod: str, kind: str) -> str:
    return next((one["status"] for one in there.status(pod).get("conditions", []) if one["type"] == kind), "")


def inside(there: Agent, name: str, command: str) -> str:
    return str(there.node.exec(there.running(name), ["/bin/sh", "-c", command]).stdout.decode())


def delete(there: Agent, net: Network, *names: str) -> None:
    for name in names:
        (there.manifests / f"{name}.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")
    until(lambda: not net.left(), f"nothing of networks to be left, but there is {net.left()}")


SERVER = f"""
apiVersion: v1
kind: Pod
metadata: {{name: server, uid: server}}
spec:
  hostname: within
  hostUsers: false
  terminationGracePeriodSeconds: 1
  hostAliases: [{{ip: 10.1.2.3, hostnames: [one.test, two.test]}}]
  dnsPolicy: None
  dnsConfig: {{nameservers: [10.9.9.9], searches: [a.test], options: [{{name: ndots, value: "5"}}, {{name: rotate}}]}}
  containers:
  - name: web
    image: {IMAGE}
    command: [sh, -c, "echo $IP > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    env: [{{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}]
    ports: [{{name: http, containerPort: 8080, hostPort: 18080}}]
    readinessProbe: {{httpGet: {{path: /index.html, port: http}}, periodSeconds: 1, failureThreshold: 1}}
    livenessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 5}}
"""


def test_a_pod_has_an_address_of_its_own(there: Agent, net: Network) -> None:
    there.write("server.yaml", SERVER)
    there.until(lambda: condition(there, "server", "Ready") == "True", "the pod to be ready")
    found = there.status("server")
    v4, v6 = [one["ip"] for one in found["podIPs"]]
    assert (found["podIP"], v4[:8], v6[:6]) == (v4, "10.88.0.", "fd00:8")
    assert f" {v4} " in there.cli("get", "pods", "-o", "wide").stdout
    assert inside(there, "web", "hostname").strip() == "within"
    hosts = [line.split() for line in inside(there, "web", "cat /etc/hosts").splitlines() if line and line[0] != "#"]
    assert [v4, "within"] in hosts
    assert [v6, "within"] in hosts
    assert ["10.1.2.3", "one.test", "two.test"] in hosts
    resolv = inside(there, "web", "cat /etc/resolv.conf")
    assert sorted(resolv.splitlines()) == ["nameserver 10.9.9.9", "options ndots:5 rotate", "search a.test"]
    asked = ["busybox", "wget", "-q", "-O", "-"]
    assert net.run(*asked, f"http://{v4}:8080/") == f"{v4}\n"
    assert net.run(*asked, "http://10.88.0.1:18080/") == f"{v4}\n", "by the port of the host"
    first = there.running("web")
    inside(there, "web", "rm /tmp/index.html")
    there.until(lambda: condition(there, "server", "Ready") == "False", "it not to be ready")
    assert there.running("web") == first, "only that it is not ready"
    inside(there, "web", "echo again > /tmp/index.html")
    there.until(lambda: condition(there, "server", "Ready") == "True", "it to be ready again")
    delete(there, net, "server")


def test_names_come_from_the_host_unless_a_pod_says_otherwise(there: Agent, net: Network) -> None:
    own = Path("/etc/resolv.conf").read_text()
    for name, more in (("plain", ""), ("host", "hostNetwork: true, ")):
        spec = f"{more}containers: [{{name: {name}, image: '{IMAGE}', {SLEEP}}}]"
        there.write(f"{name}.yaml", f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{{spec}}}}}")
        there.until(lambda name=name: there.running(name), f"{name} to run")
        servers = [line for line in own.splitlines() if line.startswith("nameserver")]
        found = inside(there, name, "cat /etc/resolv.conf").splitlines()
        assert [line for line in found if line.startswith("nameserver")] == servers
    assert inside(there, "plain", "hostname").strip() == "plain"
    assert inside(there, "host", "hostname") == inside(there, "host", "cat /proc/sys/kernel/hostname")
    assert "# The host's" in inside(there, "host", "cat /etc/hosts")
    assert inside(there, "host", "readlink /proc/self/ns/net") != inside(there, "plain", "readlink /proc/self/ns/net")
    delete(there, net, "plain", "host")


def secured(tmp_path: Path) -> str:
    """A pod with a server of HTTPS, whose certificate nobody vouches for: openssl of this host."""
    certificate = json.dumps(tls.self_signed(tmp_path).read_text())
    loader = Path("/lib64/ld-linux-x86-64.so.2").resolve()
    libraries = loader.parent if loader.is_relative_to("/usr") else Path(f"/usr{loader.parent}")
    serve = [libraries / loader.name, "--library-path", libraries, "/usr/bin/openssl", "s_server", "-www"]
    command = json.dumps([*map(str, serve), "-accept", "8443", "-cert", "/tls/both.pem"])
    return f"""
apiVersion: v1
kind: Secret
metadata: {{name: both}}
stringData: {{both.pem: {certificate}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: secured, uid: secured}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: tls
    image: {IMAGE}
    command: {command}
    ports: [{{name: https, containerPort: 8443}}]
    readinessProbe: {{httpGet: {{port: https, scheme: HTTPS}}, periodSeconds: 1}}
    volumeMounts: [{{name: usr, mountPath: /usr, readOnly: true}}, {{name: both, mountPath: /tls}}]
  - name: plain
    image: {IMAGE}
    {SLEEP}
    readinessProbe: {{httpGet: {{port: 8443}}, periodSeconds: 1}}
  - name: deaf
    image: {IMAGE}
    {SLEEP}
    livenessProbe: {{tcpSocket: {{port: 9}}, periodSeconds: 1, failureThreshold: 1}}
  volumes: [{{name: usr, hostPath: {{path: /usr}}}}, {{name: both, secret: {{secretName: both}}}}]
"""


def test_a_probe_by_https_takes_any_certificate(there: Agent, net: Network, tmp_path: Path) -> None:
    there.write("secured.yaml", secured(tmp_path))
    there.until(lambda: there.container("secured", "tls").get("ready"), "the server to be ready")
    there.until(lambda: "readiness probe of plain failed" in there.cli("describe", "pod", "secured").stdout)
    assert not there.container("secured", "plain")["ready"], "what is secured is no plain HTTP"
    there.until(lambda: len(there.runs("deaf")) > 1, "whom nobody reaches to be restarted")
    assert len(there.runs("tls")) == 1
    delete(there, net, "secured")
