"""Words that come from elsewhere."""

import os

import pytest

from holdfast.model.words import readable


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"plain", "plain"), ("grüße".encode(), "grüße"), (b"a\xff/b", "a\\udcff/b"), (b"\\udcff", "\\udcff")],
)
def test_what_is_no_text_can_be_sent(name: bytes, shown: str) -> None:
    assert readable(os.fsdecode(name)) == shown
    assert shown.encode()
