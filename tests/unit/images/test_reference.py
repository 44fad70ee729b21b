"""References as people type them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.images import reference
from holdfast.model.errors import InvalidArgument

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("someone/thing", "docker.io/someone/thing:latest"),
        ("quay.io/someone/thing:v1", "quay.io/someone/thing:v1"),
        ("localhost/thing", "localhost/thing:latest"),
        ("localhost:5000/thing", "localhost:5000/thing:latest"),
        ("localhost:5000/a/b/c:t", "localhost:5000/a/b/c:t"),
        ("127.0.0.1:5000/thing", "127.0.0.1:5000/thing:latest"),
        ("[::1]:5000/thing:t", "[::1]:5000/thing:t"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"quay.io/a/b:v1@{DIGEST}", f"quay.io/a/b:v1@{DIGEST}"),
        ("a__b/c-d.e_f", "docker.io/a__b/c-d.e_f:latest"),
    ],
)
def test_in_full(text: str, full: str) -> None:
    found = reference.parse(text)
    assert str(found) == full
    assert reference.parse(full) == found


@pytest.mark.parametrize(
    "text",
    ["", ":", "@", "/", "busybox:", "busybox@", ":tag", "Busybox", "a//b", "/a", "a/", "a/../b", "../a", "a:b:c"]
    + ["a b", "busybox\n", "busybox:t\n", f"busybox@{DIGEST}\n", "busybox@sha256:12", "busybox@md5:" + "0" * 32]
    + ["http://quay.io/a", "quay.io:99999999/a", "a:" + "t" * 129, "a/" * 200 + "a", "x" * 10_000, "é", "a\0b"]
    + [f"busybox@{DIGEST.upper()}", f"busybox@{DIGEST}@{DIGEST}", "-a", "a-", "a..b", "[::1/a", "quay.io/"],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a reference"):
        reference.parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_invalid(text: str) -> None:
    try:
        found = reference.parse(text)
    except InvalidArgument:
        return
    assert reference.parse(str(found)) == found


def test_whom_to_ask() -> None:
    assert reference.parse("busybox").registry == "registry-1.docker.io"
    assert reference.parse("quay.io/a").registry == "quay.io"
    assert reference.parse(f"a:b@{DIGEST}").target == DIGEST
    assert reference.parse("a:b").target == "b"


@pytest.mark.parametrize("text", [DIGEST, "sha256:x", "", DIGEST + "\n", DIGEST[:-1], "sha512:" + "0" * 64])
def test_is_digest(text: str) -> None:
    assert reference.is_digest(text) == (text == DIGEST)
