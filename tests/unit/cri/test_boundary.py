"""Which gRPC code an error becomes on its way out, and which error a shim's code becomes on its way in."""

import errno
from urllib.parse import quote

import grpc
import pytest

from holdfast.cri.boundary import sayable, status_of
from holdfast.model import errors
from holdfast.runtime.task import _translated
from holdfast.ttrpc.client import ConnectionLost, TtrpcError

CODES = {
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}


@pytest.mark.parametrize(("error", "code"), CODES.items(), ids=str)
def test_each_class_has_its_code_both_ways(error: type[errors.HoldfastError], code: grpc.StatusCode) -> None:
    assert status_of(error("why")) == (code, "why")
    with pytest.raises(error, match="why"), _translated("Start", "id"):
        raise TtrpcError(code.value[0], "why")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.HoldfastError("why"), grpc.StatusCode.UNKNOWN),
        (ValueError("why"), grpc.StatusCode.UNKNOWN),
        (NotImplementedError("why"), grpc.StatusCode.UNIMPLEMENTED),
        (errors.Damaged("why"), grpc.StatusCode.DATA_LOSS),
        (OSError(errno.ENOSPC, "why"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (OSError(errno.EDQUOT, "why"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (OSError(errno.EIO, "why"), grpc.StatusCode.UNAVAILABLE),
        (OSError(errno.EPERM, "why"), grpc.StatusCode.UNKNOWN),
    ],
    ids=repr,
)
def test_others(error: Exception, code: grpc.StatusCode) -> None:
    found, text = status_of(error)
    assert found is code
    assert "why" in text


@pytest.mark.parametrize("code", [2, 7, 10, 11, 13, 15, 16, 99])
def test_a_shims_other_codes_are_its_own_words(code: int) -> None:
    with pytest.raises(errors.HoldfastError, match="why") as told, _translated("Start", "id"):
        raise TtrpcError(code, "why")
    assert type(told.value) is errors.HoldfastError


def test_a_shim_that_says_nothing() -> None:
    with pytest.raises(errors.Unavailable), _translated("Start", "id"):
        raise ConnectionLost("gone")
    with pytest.raises(errors.DeadlineExceeded), _translated("Start", "id"):
        raise TimeoutError


@pytest.mark.parametrize("text", ["", "config.hostname: 'x' is not a host name", "é" * 1000, "%" * 2000, "x" * 6000])
def test_an_error_is_told_as_it_is(text: str) -> None:
    assert sayable(text) == text


@pytest.mark.parametrize("long", ["x" * 70000, "%" * 3000, "é" * 1001, "\U0001f600" * 501, "\n" * 3000])
def test_one_that_is_too_long_keeps_its_ends(long: str) -> None:
    said = sayable(f"config.command[1]: {long} is no good")
    assert said.startswith("config.command[1]: ")
    assert said.endswith(" is no good")
    assert " ... " in said
    assert len(quote(said)) < 8192


def test_what_is_no_text_can_be_said_as_well() -> None:
    assert sayable("a\udcffb") == "a\\udcffb"
