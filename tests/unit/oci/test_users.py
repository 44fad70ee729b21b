"""Who a process is: the CRI's word, then the image's, looked up in the image's own files."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import InvalidArgument
from holdfast.oci.users import FILE_LIMIT, ID_LIMIT, Read, ResolvedUser, resolve_user
from holdfast.proto import runtime_v1_pb2 as pb

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment: not a line
app:x:1000:100:An App,,,:/home/app:/bin/sh
short:x:7:8
big:x:4294967296:1:::
twice:x:1000:101::/elsewhere:
odd:x:12:12::relative/home:
"""
GROUP = b"""root:x:0:
users:x:100:
video:x:44:app,other
audio:x:29:other
wheel:x:10:root,app
bare:x:11
"""


def reader(passwd: bytes | None = PASSWD, group: bytes | None = GROUP) -> Read:
    files = {"/etc/passwd": passwd, "/etc/group": group}
    return lambda path, limit: data[:limit] if (data := files[path]) is not None else None


def config(user: int | None = None, group: int | None = None, **fields: Any) -> pb.ContainerConfig:
    context = pb.LinuxContainerSecurityContext(**fields)
    if user is not None:
        context.run_as_user.value = user
    if group is not None:
        context.run_as_group.value = group
    return pb.ContainerConfig(linux=pb.LinuxContainerConfig(security_context=context))


@pytest.mark.parametrize(
    ("image_user", "expected"),
    [
        ("", ResolvedUser(0, 0, (0, 10), "/root")),
        ("root", ResolvedUser(0, 0, (0, 10), "/root")),
        ("app", ResolvedUser(1000, 100, (10, 44, 100), "/home/app")),
        ("1000", ResolvedUser(1000, 100, (10, 44, 100), "/home/app")),
        ("app:video", ResolvedUser(1000, 44, (10, 44), "/home/app")),
        ("app:5", ResolvedUser(1000, 5, (5, 10, 44), "/home/app")),
        ("app:", ResolvedUser(1000, 100, (10, 44, 100), "/home/app")),
        (":video", ResolvedUser(0, 44, (10, 44), "/root")),
        ("4242", ResolvedUser(4242, 0, (0,))),
        ("4242:4243", ResolvedUser(4242, 4243, (4243,))),
        ("short:bare", ResolvedUser(7, 11, (11,))),
        ("odd", ResolvedUser(12, 12, (12,))),
        (str(ID_LIMIT), ResolvedUser(ID_LIMIT, 0, (0,))),
    ],
)
def test_the_images_user(image_user: str, expected: ResolvedUser) -> None:
    assert resolve_user(config(), image_user, reader()) == expected


@pytest.mark.parametrize(
    ("cri", "expected"),
    [
        (config(user=1000), ResolvedUser(1000, 100, (10, 44, 100), "/home/app")),
        (config(user=0), ResolvedUser(0, 0, (0, 10), "/root")),
        (config(user=55), ResolvedUser(55, 0, (0,))),
        (config(user=1000, group=3), ResolvedUser(1000, 3, (3, 10, 44), "/home/app")),
        (config(run_as_username="app"), ResolvedUser(1000, 100, (10, 44, 100), "/home/app")),
        (config(group=3, run_as_username="app"), ResolvedUser(1000, 3, (3, 10, 44), "/home/app")),
        (config(user=1000, supplemental_groups=[9]), ResolvedUser(1000, 100, (9, 10, 44, 100), "/home/app")),
        (
            config(user=1000, supplemental_groups=[9], supplemental_groups_policy=pb.Strict),
            ResolvedUser(1000, 100, (9, 100), "/home/app"),
        ),
    ],
)
def test_what_the_cri_says_wins(cri: pb.ContainerConfig, expected: ResolvedUser) -> None:
    assert resolve_user(cri, "root:video", reader()) == expected


@pytest.mark.parametrize("files", [reader(None, None), reader(b"", b"")])
def test_an_image_without_files(files: Read) -> None:
    assert resolve_user(config(), "", files) == ResolvedUser(0, 0, (0,))
    assert resolve_user(config(user=5), "", files) == ResolvedUser(5, 0, (0,))
    with pytest.raises(InvalidArgument, match="user 'app' is not in"):
        resolve_user(config(), "app", files)


@pytest.mark.parametrize(
    ("image_user", "message"),
    [
        ("nobody", "user 'nobody' is not in the image's /etc/passwd"),
        ("app:nogroup", "group 'nogroup' is not in its own /etc/group"),
        ("app:video:x", "group 'video:x' is not in"),
        ("2147483648", "user 2147483648 is out of range"),
        ("4294967296", "user 4294967296 is out of range"),
        ("0:4294967296", "group 4294967296 is out of range"),
        ("1" * 5000, "out of range"),
        ("-1", "user '-1' is not in"),
        ("²", "user '²' is not in"),
        ("٣", "user '٣' is not in"),
        ("root\nx", r"user 'root\\nx' is not in"),
        ("big", "user 'big' is not in"),
        ("# a comment", "is not in"),
    ],
)
def test_a_bad_image_user_is_refused(image_user: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        resolve_user(config(), image_user, reader())


@pytest.mark.parametrize("name", ["nobody", "-0", "0x0", "app\n", "app:x", " "])
def test_a_username_must_be_in_the_image(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^config\.linux\.security_context\.run_as_username: .* is not in"):
        resolve_user(config(run_as_username=name), "", reader())


def test_a_username_that_is_a_number_is_never_looked_up_as_a_name() -> None:
    hostile = reader(b"1000:x:0:0::/root:\napp:x:1000:100::/home/app:\n")
    for found in (resolve_user(config(run_as_username="1000"), "", hostile), resolve_user(config(), "1000", hostile)):
        assert (found.uid, found.gid, found.home) == (1000, 100, "/home/app")
    assert resolve_user(config(run_as_username="4242"), "", hostile) == ResolvedUser(4242, 0, (0,))
    for name in ("2147483648", "4294967296", "9" * 5000):  # CVE-2024-40635
        with pytest.raises(InvalidArgument, match="run_as_username: user [29 4].* is out of range"):
            resolve_user(config(run_as_username=name), "", hostile)


@pytest.mark.parametrize(("passwd", "group"), [(b"#" * (FILE_LIMIT + 1), b""), (b"", b"\n" * (FILE_LIMIT + 1))])
def test_a_huge_file_is_refused(passwd: bytes, group: bytes) -> None:
    name = "passwd" if passwd else "group"
    with pytest.raises(InvalidArgument, match=f"/etc/{name} has more than {FILE_LIMIT} bytes"):
        resolve_user(config(), "0:video", reader(passwd, group))


def test_no_more_is_read_than_the_limit() -> None:
    asked = []

    def read(path: str, limit: int) -> bytes | None:
        asked.append((path, limit))
        return None

    resolve_user(config(user=3), "", read)
    assert asked == [("/etc/passwd", FILE_LIMIT + 1)]


def test_the_largest_file_is_searched_quickly() -> None:
    passwd = (b"a:x:1:1:::\n" * (FILE_LIMIT // 11))[: FILE_LIMIT - 40] + b"\nlast:x:9:9::/last:\n"
    began = time.process_time()
    assert resolve_user(config(), "last", reader(passwd)).home == "/last"
    assert time.process_time() - began < 2


def test_a_line_ends_at_a_newline_only() -> None:
    passwd = "app:x:1000:100:An\x85app:x:0:0::/:\u2028app:x:0:0:::\rapp:x:0:0::/:\n".encode()
    assert resolve_user(config(), "app", reader(passwd)).uid == 1000


def test_names_that_cannot_be_decoded_stay_apart() -> None:
    passwd = b"\xff:x:1:1:::\n\xfe:x:2:2:::\n"
    assert resolve_user(config(user=2), "", reader(passwd, b"g:x:5:\xff\nh:x:6:\xfe\n")).additional_gids == (2, 6)


@pytest.mark.parametrize("home", ["/home/a\x1bb", "/a\tb", "relative", "", "/\udcff"])
def test_a_home_unfit_for_the_environment_is_dropped(home: str) -> None:
    passwd = b"a:x:1:1::" + home.encode(errors="surrogateescape") + b":\n"
    assert resolve_user(config(), "a", reader(passwd)) == ResolvedUser(1, 1, (1,))


@given(image_user=st.text(max_size=20), passwd=st.binary(max_size=200), group=st.binary(max_size=200))
def test_whatever_an_image_says_gives_ids_in_range_or_is_refused(image_user: str, passwd: bytes, group: bytes) -> None:
    try:
        found = resolve_user(config(), image_user, reader(passwd, group))
    except InvalidArgument:
        return
    assert all(0 <= number <= ID_LIMIT for number in (found.uid, found.gid, *found.additional_gids))
    assert found.gid in found.additional_gids
