"""What OCI runtimes say of themselves."""

import asyncio
from pathlib import Path

import pytest

from holdfast.runtime.features import Features, RuntimeFeatures, binds_from_host, parse_features, parse_version
from holdfast.runtime.handlers import Handler


@pytest.mark.parametrize(
    ("said", "able"),
    [
        ('{"ociVersionMin": "1.0.0", "mountOptions": ["ro", "rro"]}', True),
        ('{"mountOptions": ["ro", "rbind"]}', False),
        ('{"mountOptions": null}', None),
        ("{}", None),
        ("[]", None),
        ("unknown command features", None),
        ("", None),
    ],
)
def test_features(said: str, able: bool | None) -> None:
    assert parse_features(said) == (None if able is None else Features(able))


@pytest.mark.parametrize(
    ("said", "able"),
    [
        ("crun version 1.8.1\ncommit: f8a\n", True),
        ("crun version 1.4\n", True),
        ("crun version 1.3\n", False),
        ("crun version 0.20.1\n", False),
        ("crun version 2.0\n", True),
        ("runc version 1.0.3\n", False),
        ("", False),
    ],
)
def test_versions(said: str, able: bool) -> None:
    assert parse_version(said).recursive_read_only_mounts is able


def script(path: Path, text: str) -> Handler:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Handler("x", str(path), "/nowhere")


def test_a_binary_is_asked_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    binary, calls = tmp_path / "runtime", tmp_path / "calls"
    with_it = f"""echo $1 >> {calls}; test "$1" = features && echo '{{"mountOptions": ["rro"]}}'"""
    without = f"""echo $1 >> {calls}; test "$1" = --version && echo crun version 1.3"""

    async def ask() -> list[bool]:
        features, found = RuntimeFeatures(), []
        for text in (with_it, without):
            handler = script(binary, text)
            answers = await asyncio.gather(*(features.of(handler) for _ in range(3)))
            found += [one.recursive_read_only_mounts for one in answers]
        binary.unlink()
        assert await features.of(handler) == Features()
        return found

    assert asyncio.run(ask()) == [True] * 3 + [False] * 3
    assert calls.read_text().split() == ["features", "features", "--version"]


def test_whose_mounts_are_the_hosts() -> None:
    assert binds_from_host(Handler("crun", "crun", "/r"))
    assert binds_from_host(Handler("a", "runc", "/r", shim="/usr/bin/containerd-shim-runc-v2"))
    assert not binds_from_host(Handler("b", "", "/r", shim="/usr/bin/containerd-shim-runsc-v1"))
