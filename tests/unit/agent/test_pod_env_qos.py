"""Environments and classes of service, by Kubernetes' rules."""

import pytest

from holdfast.agent.pod import qos
from holdfast.agent.pod.env import Facts, Missing, environment, expand
from holdfast.agent.pod.manifest import Manifest, parse
from holdfast.agent.pod.quantity import Quantity


def manifest(container: str, more: str = "", documents: str = "") -> Manifest:
    text = f"""
apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: n, uid: u-1, labels: {{app: "a\\"b", tier: x}}, annotations: {{note: "1"}}}}
spec:
  containers:
  - {{name: c, image: i, {container}}}
  {more}
{documents}
"""
    return parse(text.encode(), "test")


DATA = """
---
{kind: ConfigMap, metadata: {name: m, namespace: n}, data: {color: blue, "a b": none, "0": none}}
---
{kind: Secret, metadata: {name: s, namespace: n}, stringData: {key: secret}, data: {raw: //79}}
"""


def env(container: str, facts: Facts | None = None) -> dict[str, str]:
    found = manifest(container, documents=DATA)
    facts = facts or Facts("node", ("192.0.2.1",), ("10.0.0.7", "fd00::7"), 2000, 1 << 30)
    data = {(one.kind, one.namespace, one.name): one for one in found.data}
    known = Facts(facts.node, facts.host_addresses, facts.addresses, facts.cpu, facts.memory, data)
    return environment(found.pods[0], found.pods[0].spec.containers[0], known)


def test_variables_refer_to_those_before() -> None:
    found = env('env: [{name: A, value: "1"}, {name: B, value: "$(A)-$$(A)-$(C)-$(B)"}, {name: C, value: $(B)}]')
    assert found == {"A": "1", "B": "1-$(A)-$(C)-$(B)", "C": "1-$(A)-$(C)-$(B)"}


@pytest.mark.parametrize(
    ("text", "made"),
    [("$", "$"), ("$$", "$"), ("$$$$", "$$"), ("$(A)", "1"), ("$A", "$A"), ("$(", "$("), ("$(A", "$(A"),
     ("$($(A))", "$(1)")],
)  # fmt: skip
def test_expansion(text: str, made: str) -> None:
    assert expand(text, {"A": "1"}.get) == made


def test_from_maps_and_secrets() -> None:
    found = env("envFrom: [{configMapRef: {name: m}, prefix: P_}, {configMapRef: {name: none, optional: true}}]")
    assert found == {"P_color": "blue", "P_0": "none"}
    assert env("envFrom: [{configMapRef: {name: m}}]") == {"color": "blue"}
    refs = "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: key}}}, "
    refs += "{name: B, valueFrom: {configMapKeyRef: {name: m, key: none, optional: true}}}]"
    assert env(refs) == {"A": "secret"}


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ("envFrom: [{secretRef: {name: none}}]", "envFrom[0]: there is no Secret 'none'"),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: k}}}]", "there is no Secret 'none'"),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]", "there is no key 'k' in Secret 's'"),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: raw}}}]", "is not text"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]", "fieldPath 'spec.x' is none of"),
        ("env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.x}}}]", "resource 'limits.x' is none of"),
    ],
)
def test_what_is_missing_is_named(container: str, said: str) -> None:
    with pytest.raises(Missing) as missing:
        env(container)
    assert said in str(missing.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"), ("metadata.namespace", "n"), ("metadata.uid", "u-1"), ("metadata.labels['tier']", "x"),
        ("metadata.annotations['none']", ""), ("metadata.labels", 'app="a\\"b"\ntier="x"'), ("spec.nodeName", "node"),
        ("status.hostIP", "192.0.2.1"), ("status.podIP", "10.0.0.7"), ("status.podIPs", "10.0.0.7,fd00::7"),
    ],
)  # fmt: skip
def test_what_a_pod_knows_of_itself(path: str, value: str) -> None:
    assert env(f'env: [{{name: A, valueFrom: {{fieldRef: {{fieldPath: "{path}"}}}}}}]') == {"A": value}


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", "1", "1"), ("limits.cpu", "1m", "300"), ("requests.cpu", "1m", "100"),
        ("requests.memory", "1", "1024"),
        ("limits.memory", "1Ki", "1048576"), ("limits.memory", "0", "1073741824"),
        ("requests.ephemeral-storage", "1", "0"),
    ],
)  # fmt: skip
def test_what_a_container_may_use(resource: str, divisor: str, value: str) -> None:
    resources = "resources: {limits: {cpu: 300m}, requests: {cpu: 100m, memory: 1Ki}}"
    ref = f'{{resourceFieldRef: {{resource: {resource}, divisor: "{divisor}"}}}}'
    assert env(f"{resources}, env: [{{name: A, valueFrom: {ref}}}]") == {"A": value}


@pytest.mark.parametrize(
    ("resources", "kind"),
    [
        ("{}", "BestEffort"),
        ("{limits: {cpu: 1, memory: 1Gi}}", "Guaranteed"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1000m}}", "Guaranteed"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1m}}", "Burstable"),
        ("{limits: {cpu: 1}}", "Burstable"),
        ("{requests: {memory: 1}}", "Burstable"),
        ("{requests: {memory: 0}}", "BestEffort"),
    ],
)
def test_classes(resources: str, kind: str) -> None:
    (pod,) = manifest(f"resources: {resources}").pods
    assert qos.class_of(pod) == kind
    middle = {"Guaranteed": "", "Burstable": "/burstable", "BestEffort": "/besteffort"}[kind]
    assert qos.cgroup_path(pod, "/agent") == f"/agent{middle}/podu-1"


def test_numbers_for_cgroups() -> None:
    assert [qos.shares(Quantity(milli)) for milli in (0, 1, 100, 1000, 10**9)] == [2, 2, 102, 1024, 262144]
    assert [qos.quota(Quantity(milli)) for milli in (0, 1, 100, 1500)] == [0, 1000, 10_000, 150_000]


def test_who_is_killed_first_for_want_of_memory() -> None:
    def score(resources: str) -> int:
        (pod,) = manifest(f"resources: {resources}").pods
        return qos.oom_score_adj(pod, pod.spec.containers[0], 8 << 30)

    assert score("{}") == 1000
    assert score("{limits: {cpu: 1, memory: 1Gi}}") == -997
    assert score("{requests: {memory: 2Gi}}") == 750
    assert score("{requests: {memory: 1}}") == 999
    assert score("{requests: {memory: 9Gi}}") == 3


def test_a_sidecar_is_not_killed_before_those_whom_it_serves() -> None:
    sidecar = "initContainers: [{name: s, image: i, restartPolicy: Always, resources: {requests: {memory: %s}}}]"
    for own, score in (("1Mi", 750), ("4Gi", 500)):
        (pod,) = manifest("resources: {requests: {memory: 2Gi}}", sidecar % own).pods
        assert qos.oom_score_adj(pod, pod.spec.init_containers[0], 8 << 30) == score


def test_what_a_pod_requests_as_a_whole() -> None:
    more = """initContainers:
  - {name: s, image: i, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
  - {name: x, image: i, resources: {requests: {cpu: 500m}}}
"""
    (pod,) = manifest("resources: {requests: {cpu: 200m}}", more).pods
    assert qos.total(pod, "cpu").milli == 600
    (pod,) = manifest("resources: {requests: {cpu: 900m}}", more).pods
    assert qos.total(pod, "cpu").milli == 1000
