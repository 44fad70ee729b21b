"""Which entries of imagePullSecrets are for which image."""

import base64
import json
from typing import Any

import pytest

from holdfast.agent.pod.logins import Login, logins, repository


@pytest.mark.parametrize(
    ("image", "host", "path"),
    [
        ("busybox", "docker.io", "/library/busybox"),
        ("busybox:1", "docker.io", "/library/busybox"),
        ("docker.io/busybox", "docker.io", "/library/busybox"),
        ("me/app@sha256:aa", "docker.io", "/me/app"),
        ("localhost/app", "localhost", "/app"),
        ("127.0.0.1:5000/a/b:1@sha256:aa", "127.0.0.1:5000", "/a/b"),
        ("reg.example.org/a/b/c", "reg.example.org", "/a/b/c"),
    ],
)
def test_where_an_image_is(image: str, host: str, path: str) -> None:
    assert repository(image) == (host, path)


def secret(**entries: Any) -> dict[str, bytes]:
    return {".dockerconfigjson": json.dumps({"auths": entries}).encode()}


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("key", "image", "is_for_it"),
    [
        ("https://index.docker.io/v1/", "busybox", True),
        ("docker.io", "me/app", True),
        ("reg.example.org", "reg.example.org/a/b", True),
        ("https://reg.example.org/v2/", "reg.example.org/a", True),
        ("reg.example.org/a", "reg.example.org/a/b", True),
        ("reg.example.org/a/b", "reg.example.org/a/b:1", True),
        ("reg.example.org/a", "reg.example.org/ab", False),
        ("*.example.org", "reg.example.org/a", True),
        ("*.example.org", "reg.eu.example.org/a", False),
        ("reg.example.org", "reg.example.org:5000/a", False),
        ("reg.example.org:5000", "reg.example.org:5000/a", True),
        ("example.org", "reg.example.org/a", False),
    ],
)
def test_which_entries_are_for_an_image(key: str, image: str, is_for_it: bool) -> None:
    assert logins(image, [secret(**{key: auth("u:p:q")})]) == ([Login("u", "p:q")] if is_for_it else [])


def test_longer_ones_come_first_and_each_once() -> None:
    one = secret(**{"r.io": auth("wide:1"), "r.io/a": {"username": "near", "password": "2"}})
    old = {".dockercfg": json.dumps({"r.io/a/b": auth("old:3"), "r.io": auth("wide:1")}).encode()}
    assert logins("r.io/a/b", [one, old]) == [Login("old", "3"), Login("near", "2"), Login("wide", "1")]


@pytest.mark.parametrize("entry", [None, {}, {"auth": "?"}, {"username": "u", "password": 3}, {"auth": ""}, [1]])
def test_what_cannot_be_read_is_nobodys(entry: object) -> None:
    assert logins("r.io/a", [secret(**{"r.io": entry})]) == []


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"auths": 3}', b"3"])
def test_no_secret_is_too_odd(data: bytes) -> None:
    assert logins("r.io/a", [{".dockerconfigjson": data}, {".dockercfg": data}, {}]) == []
