"""Manifests: what is understood, warned of and refused, by its path."""

import textwrap
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.pods import APPLICATION

from holdfast.agent.pod import spec
from holdfast.agent.pod.decode import Refused, key_of
from holdfast.agent.pod.manifest import Manifest, parse
from holdfast.agent.pod.quantity import Quantity


def pod(text: str, **more: str) -> Manifest:
    """A pod with one container to whose spec, at the given indentation, the text is added."""
    head = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"
    container = "  containers:\n  - name: c\n    image: i\n"
    inside = textwrap.indent(textwrap.dedent(more.get("container", "")), "    ")
    return parse(f"{head}{textwrap.indent(textwrap.dedent(text), '  ')}\n{container}{inside}\n".encode(), "test")


def test_an_application() -> None:
    found = parse(APPLICATION.encode(), "web.yaml")
    (one,) = found.pods
    assert found.warnings == ()
    assert (found.data[0].name, found.data[0].data) == ("web", {"httpd.conf": b"H:/www\n"})
    fill, refresh = one.spec.init_containers
    (httpd,) = one.spec.containers
    assert [fill.sidecar, refresh.sidecar] == [False, True]
    assert (fill.pull_policy, httpd.pull_policy) == ("IfNotPresent", "IfNotPresent")
    assert httpd.ports[0].container_port == 8080
    assert one.spec.host_network
    assert httpd.readiness_probe is not None
    assert httpd.readiness_probe.http_get is not None
    assert (httpd.readiness_probe.http_get.port, httpd.readiness_probe.period_seconds) == ("http", 1)
    assert httpd.resources.requests["cpu"].milli == 50
    assert httpd.resources.limits["memory"].whole == 64 << 20
    assert one.spec.volumes[0].empty_dir is not None
    assert one.metadata.namespace == "default"
    assert one.metadata.uid == parse(APPLICATION.encode(), "web.yaml").pods[0].metadata.uid
    assert one.metadata.uid != parse(APPLICATION.encode(), "other.yaml").pods[0].metadata.uid


def test_what_is_known_and_not_honoured_is_warned_of() -> None:
    found = pod("nodeSelector: {disk: ssd}\ntolerations: [{key: a}]\npriority: 0\n", container="resizePolicy: [{a: b}]")
    assert found.warnings == (
        "document 1: spec.nodeSelector: not supported here: there is but this node",
        "document 1: spec.tolerations: not supported here: there is but this node",
        "document 1: spec.containers[0].resizePolicy: not supported here: a pod whose resources change is made anew",
    )


@pytest.mark.parametrize(
    ("text", "container", "said"),
    [
        ("restartpolicy: Never", "", 'unknown field "spec.restartpolicy": do you mean "restartPolicy"?'),
        ("restartPolicy: Sometimes", "", "spec.restartPolicy: 'Sometimes' is none of Always, OnFailure, Never"),
        ("hostNetwork: 'true'", "", "spec.hostNetwork: 'true' is not true or false"),
        ("terminationGracePeriodSeconds: -1", "", "spec.terminationGracePeriodSeconds: -1 is no number of seconds"),
        ("volumes: [{name: a}]", "", "spec.volumes[0]: one of emptyDir, hostPath, configMap, secret, downwardAPI"),
        ("volumes: [{name: a, nfs: {server: s, path: /}}]", "", "volumes[0].nfs: not supported here: there is no"),
        ("volumes: [{name: A, emptyDir: {}}]", "", "spec.volumes[0].name: 'A' is no name"),
        ("volumes: [{name: a, emptyDir: {sizeLimit: 1X}}]", "", "spec.volumes[0].emptyDir.sizeLimit: '1X' is no"),
        ("volumes: [{name: a, hostPath: {path: ../x}}]", "", "spec.volumes[0].hostPath.path: '../x' is no absolute"),
        ("volumes: {name: a}", "", "spec.volumes: {'name': 'a'} is not a list"),
        ("", "volumeMounts: [{name: a, mountPath: /a}]", "spec.containers[c].volumeMounts[0].name: there is no"),
        ("", "volumeMounts: [{name: a, mountPath: a}]", "spec.containers[0].volumeMounts[0].mountPath: 'a' is"),
        ("", "volumeMounts: [{name: a, mountPath: /a, subPath: ../b}]", "volumeMounts[0].subPath: '../b' leads out"),
        ("", "livenessProbe: {periodSeconds: 1}", "spec.containers[0].livenessProbe: one of exec, httpGet, tcpSocket"),
        ("", "livenessProbe: {tcpSocket: {port: 0}}", "spec.containers[0].livenessProbe.tcpSocket.port: 0 is neither"),
        ("", "ports: [{containerPort: 70000}]", "spec.containers[0].ports[0].containerPort: 70000 is no port"),
        ("", "env: [{name: '1a'}]", "spec.containers[0].env[0].name: '1a' is no name of a variable"),
        ("", "command: sh", "spec.containers[0].command: 'sh' is not a list"),
        ("", "args: [1]", "spec.containers[0].args[0]: 1 is not a text"),
        ("", "comand: [sh]", 'unknown field "spec.containers[0].comand": do you mean "command"?'),
        ("", "qqqq: 1", 'unknown field "spec.containers[0].qqqq"'),
        ("", "restartPolicyRules: [{action: Restart, exitCodes: {operator: In}}]", "[0].restartPolicyRules: needs a"),
        ("", "lifecycle: {stopSignal: TERM}", "spec.containers[0].lifecycle.stopSignal: 'TERM' is no name of a signal"),
        ("", "env: [{name: A, valueFrom: {fileKeyRef: {key: a}}}]", "valueFrom.fileKeyRef: not supported here: a"),
        ("", "name: d", "line 9: the key 'name' comes twice"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_its_path(text: str, container: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        pod(text, container=container)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Deployment", "document 1: kind: 'Deployment' is none of Pod, ConfigMap, Secret, List"),
        ("[1]", "document 1: document: [1] is not a mapping"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a}", "document 1: spec: is missing"),
        ("kind: Pod\napiVersion: v1\nmetadata: {}\nspec: {containers: []}", "metadata.name: is missing"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a, uid: ../../x}", "metadata.uid: '../../x' is no uid"),
        ("a: [", "it is not YAML"),
        ("kind: Secret\nmetadata: {name: a}\ndata: {a: '*'}", "data.a: is not base64"),
        ("kind: ConfigMap\nmetadata: {name: a}\ndata: {a: 1}", "data.a: 1 is not a text; put it into quotes"),
        ("kind: ConfigMap\ndata: {a: b}", "metadata.name: is missing"),
        ("1: 2\nkind: Pod", "the key 1 is not a text"),
    ],
)
def test_other_documents_are_refused(text: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(text.encode(), "test")
    assert said in str(refused.value)


def test_all_or_nothing() -> None:
    with pytest.raises(Refused, match=r"document 3: kind: 'Service'"):
        parse(f"{APPLICATION}\n---\nkind: Service\n".encode(), "test")
    with pytest.raises(Refused, match="a pod comes twice"):
        parse(f"{APPLICATION}\n---\n{APPLICATION}".encode(), "test")


def test_a_list_is_its_items_and_dates_are_texts() -> None:
    text = "kind: List\nitems:\n- {kind: Pod, apiVersion: v1, spec: {containers: [{name: c, image: i}]},\n"
    text += "   metadata: {name: a, creationTimestamp: 2026-01-01T00:00:00Z}}\n"
    (one,) = parse(text.encode(), "test").pods
    assert one.metadata.name == "a"


@pytest.mark.parametrize(
    ("text", "milli"),
    [
        ("1", 1000), ("250m", 250), ("1.5", 1500), (".5", 500), ("1e3", 1000_000), ("2E2", 200_000), ("1Ki", 1024_000),
        ("1.5Gi", (3 << 29) * 1000), ("1k", 1000_000), ("1E", 10**21), ("1n", 1), ("-1n", 0),
        ("-250m", -250),
    ],
)  # fmt: skip
def test_quantities(text: str, milli: int) -> None:
    if milli > (2**63 - 1) * 1000:
        with pytest.raises(ValueError, match="too large"):
            Quantity.parse(text)
    else:
        assert Quantity.parse(text).milli == milli


@pytest.mark.parametrize("text", ["", "1 Gi", "1GiB", "0x1", "1e", "1e999", "m", "--1", "1" * 50, "9e30", "nan", "inf"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no quantity|is too large"):
        Quantity.parse(text)


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-9, 70000) | st.text(max_size=4) | st.sampled_from(["Always", "v1", "Pod"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "apiVersion", "metadata", "spec", "containers", "name", "image", "env"]), inner
    ),
    max_leaves=12,
))  # fmt: skip
def test_whatever_a_document_holds_it_is_a_pod_or_refused_in_words(document: object) -> None:
    import yaml

    try:
        parse(yaml.safe_dump(document).encode(), "test")
    except Refused as exc:
        assert str(exc)


def test_no_key_is_both_honoured_and_not() -> None:
    for kind in vars(spec).values():
        if is_dataclass(kind) and isinstance(kind, type):
            honoured = {key_of(one.name) for one in fields(kind)}
            assert not honoured & set(getattr(kind, "UNSUPPORTED", {})), kind
