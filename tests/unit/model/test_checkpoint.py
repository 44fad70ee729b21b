"""What daemon, shim and archives say of a checkpoint is read as a stranger's."""

import json

import pytest

from holdfast.model.checkpoint import CriuSettings, decode_stdio
from holdfast.model.errors import Damaged


def test_settings_come_as_they_were_sent() -> None:
    settings = CriuSettings("/usr/sbin/criu", "/work", tcp_established=True)
    assert CriuSettings.decode(settings.encode()) == settings


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"program": 1, "work": "/"}', b'{"work": "/"}', b'{"program": "/", "x": 1}']
)
def test_settings_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(Damaged):
        CriuSettings.decode(data)


def test_streams_as_criu_names_them() -> None:
    found = {"stdout": "file[1b:22215d]", "stderr": "file[1b:22219c]"}
    assert decode_stdio(json.dumps(found).encode()) == found
    assert decode_stdio(b"{}") == {}


@pytest.mark.parametrize(
    "found",
    [
        [],
        {"stdout": 1},
        {"log": "file[1b:1]"},
        {"stdout": "file[1b:1]\nexternal net[1]"},
        {"stdout": "tty[1b:1]"},
        {"stdout": "file[zz:1]"},
        {"stdout": "file[1b:1]", "stderr": "file[1b:1]"},
    ],
)
def test_streams_that_would_say_more_to_criu(found: object) -> None:
    with pytest.raises(Damaged):
        decode_stdio(json.dumps(found).encode())


def test_what_is_no_json() -> None:
    with pytest.raises(Damaged):
        decode_stdio(b"{")
