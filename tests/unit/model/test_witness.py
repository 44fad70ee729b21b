import json

import pytest

from holdfast.model.errors import Damaged
from holdfast.model.witness import ExitRecord, InitRecord, decode_exit, decode_init, encode

EXIT = ExitRecord(10, 20, 137, 9, True, 1, 30, "shim")
INIT = InitRecord(10, 20, "boot", "/pods/x", 0, True)


def test_records_survive_a_round_trip() -> None:
    assert decode_exit(encode(EXIT)) == EXIT
    assert decode_init(encode(INIT)) == INIT


@pytest.mark.parametrize("length", range(len(encode(EXIT))))
def test_a_torn_record_is_damage(length: int) -> None:
    with pytest.raises(Damaged):
        decode_exit(encode(EXIT)[:length])


@pytest.mark.parametrize("change", [{"pid": "10"}, {"extra": 1}, {"oom_killed": 1}, {"code": None}])
def test_a_record_of_another_shape_is_damage(change: dict[str, object]) -> None:
    with pytest.raises(Damaged):
        decode_exit(json.dumps({**json.loads(encode(EXIT)), **change}).encode())
