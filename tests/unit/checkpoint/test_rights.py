"""What images of CRIU's ask for is held against what the request gives; images that are none are said to be so."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.checkpoint.rights import Allowed, decode, entries, excess

CAPABILITIES = frozenset({0, 1, 31, 38})
ALLOWED = Allowed(CAPABILITIES, no_new_privileges=True, filtered=True, mounts=frozenset({"/proc", "/dev", "/tmp"}))
WORDS = (1 << 0 | 1 << 1 | 1 << 31, 1 << 6)  # the same by word


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def image(*messages: bytes) -> bytes:
    return b"\0" * 8 + b"".join(struct.pack("<I", len(one)) + one for one in messages)


def creds(**more: int) -> bytes:
    """Of a thread that has all that it may have; `more` adds a word to a set, by the number of the field."""
    sets = {number: list(WORDS) for number in (9, 10, 11, 12, 19)}
    for name, word in more.items():
        sets[int(name.removeprefix("f"))][0] |= word
    fields = [(number, word) for number, words in sets.items() for word in words]
    return message((1, 0), *fields, (18, 1))


def core(credentials: bytes, seccomp: int = 2) -> bytes:
    thread = message((1, 528987808), (10, credentials), (11, seccomp))
    return message((1, 1), (3, message((6, b"sh"))), (5, thread))


def mounted(place: str, fstype: int = 5, **more: str) -> bytes:
    external = [(18, more["key"].encode())] if "key" in more else []
    return message((1, fstype), (2, 1), (6, b"/"), (7, place.encode()), (8, b"x"), *external)


def written(directory: Path, cores: bytes | None = None, mounts: bytes | None = None) -> Path:
    (directory / "core-1.img").write_bytes(cores if cores is not None else image(core(creds())))
    (directory / "mountpoints-13.img").write_bytes(mounts if mounts is not None else image(mounted("/")))
    return directory


def test_what_the_request_gives_is_not_too_much(tmp_path: Path) -> None:
    places = image(
        mounted("/", 17), mounted("/proc", 1), mounted("/dev/pts", 6), mounted("/data", 0, key="/data"), mounted("/tmp")
    )
    assert excess(written(tmp_path, mounts=places), ALLOWED) == ""
    assert excess(written(tmp_path), replace(ALLOWED, capabilities=CAPABILITIES | {21})) == ""


@pytest.mark.parametrize("field", [9, 10, 11, 12, 19])
def test_one_capability_too_many_in_any_set(tmp_path: Path, field: int) -> None:
    images = written(tmp_path, image(core(creds(**{f"f{field}": 1 << 21}))))
    assert "core-1.img: capability 21 is" in excess(images, ALLOWED)
    assert excess(images, replace(ALLOWED, capabilities=CAPABILITIES | {21})) == ""


def test_packed_sets_are_read_as_well(tmp_path: Path) -> None:
    packed = message((12, varint(1 << 21) + varint(0)), (18, 1))
    assert "capability 21 is bounding" in excess(written(tmp_path, image(core(packed))), ALLOWED)


@pytest.mark.parametrize(
    ("cores", "why"),
    [
        (image(core(message((1, 0)))), "no_new_privs is not set"),
        (image(core(creds(), seccomp=0)), "no seccomp filter"),
        (image(core(creds()), core(creds(f10=1 << 21))), "capability 21"),
        (image(message((5, message((1, 1))))), "does not say once"),
        (image(message((5, message((10, creds()), (10, creds(f10=1 << 21)), (11, 2))))), "does not say once"),
        (
            image(message((5, message((10, creds()), (11, 2))), (5, message((10, creds(f10=4)), (11, 2))))),
            "capability 2",
        ),
    ],
)
def test_each_thread_is_looked_at_and_nothing_is_said_twice(tmp_path: Path, cores: bytes, why: str) -> None:
    assert why in excess(written(tmp_path, cores), ALLOWED)


def test_what_is_not_asked_for_is_not_missed(tmp_path: Path) -> None:
    plain = replace(ALLOWED, no_new_privileges=False, filtered=False)
    assert excess(written(tmp_path, image(core(message((1, 0)), seccomp=0))), plain) == ""


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        (mounted("/host", 17), "of type 17 is mounted at /host"),
        (mounted("/host", 0), "of type 0"),
        (mounted("/etc", 5), "tmpfs is mounted at /etc"),
        (mounted("/devil", 5), "tmpfs is mounted at /devil"),
        (message((1, 5), (7, b"/dev"), (7, b"/etc")), "does not say once"),
        (message((7, b"/dev")), "does not say once"),
    ],
)
def test_mounts_that_the_request_has_not(tmp_path: Path, mount: bytes, why: str) -> None:
    assert why in excess(written(tmp_path, mounts=image(mounted("/"), mount)), ALLOWED)


def test_a_profile_of_its_own(tmp_path: Path) -> None:
    (written(tmp_path) / "apparmor.img").touch()
    assert "apparmor.img" in excess(tmp_path, ALLOWED)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 9,
        b"\0" * 8 + struct.pack("<I", 100) + b"short",
        image(b"\x0a\xff\x01x"),
        image(b"\x0b"),
        image(b"\xff" * 11),
        image(b"\x80"),
        image(message((5, 7))),
        image(b"\x09abc"),
    ],
)
def test_images_that_are_none(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|unknown kind|64 bits|is a number"):
        excess(written(tmp_path, data), ALLOWED)


def test_every_kind_of_field_is_read() -> None:
    data = message((1, 300), (2, b"ab")) + varint(3 << 3 | 1) + b"8 bytes." + varint(4 << 3 | 5) + b"four"
    assert decode(data) == {1: [300], 2: [b"ab"], 3: [b"8 bytes."], 4: [b"four"]}
    assert list(entries(image(data, b""))) == [decode(data), {}]
