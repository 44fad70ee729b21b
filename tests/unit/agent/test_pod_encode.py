"""A pod as plain data, and back."""

import json

from hypothesis import given
from hypothesis import strategies as st
from kit.pods import APPLICATION, pods

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.decode import decode
from holdfast.agent.pod.encode import digest, encode
from holdfast.agent.pod.manifest import parse
from holdfast.agent.pod.scalars import Name
from holdfast.agent.pod.spec import Pod


def nothing(text: str) -> None:
    raise AssertionError(text)


@given(pods())
def test_there_and_back(one: Pod) -> None:
    plain = json.loads(json.dumps(encode(one)))
    assert decode(Pod, plain, "", nothing) == one


def test_an_application_says_what_its_manifest_says() -> None:
    (one,) = parse(APPLICATION.encode(), "web.yaml").pods
    plain = encode(one)
    (httpd,) = plain["spec"]["containers"]
    assert httpd["resources"] == {"limits": {"memory": str(64 << 20)}, "requests": {"cpu": "50m", "memory": "16777216"}}
    assert httpd["readinessProbe"] == {"httpGet": {"port": "http"}, "periodSeconds": 1}
    assert httpd["livenessProbe"] == {"tcpSocket": {"port": 8080}}
    assert decode(Pod, plain, "", nothing) == one


@given(st.text(max_size=5), st.text(max_size=5))
def test_another_digest_for_another_container_only(first: str, second: str) -> None:
    one, other = (Container(Name("a"), image or "i", args=(image,)) for image in (first, second))
    assert (digest(one) == digest(other)) is (one == other)
