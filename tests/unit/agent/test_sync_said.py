"""What manifests have said of ConfigMaps and Secrets, from one agent to the next."""

import stat
from pathlib import Path

import pytest

from holdfast.agent.pod.manifest import Data
from holdfast.agent.sync import said
from holdfast.agent.sync.source import Source
from holdfast.model.errors import Damaged

SAID = {"/m/a.yaml": (Data("ConfigMap", "default", "m", {"k": b"v", "b": b"\xff\0"}), Data("Secret", "n", "s", {}))}
MAP = "{kind: ConfigMap, metadata: {name: m}, data: {k: %s}}"


def test_it_is_as_it_was(tmp_path: Path) -> None:
    assert said.load(tmp_path) == {}
    said.save(tmp_path, SAID)
    assert said.load(tmp_path) == SAID
    assert stat.S_IMODE((tmp_path / said.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": [{}]}}'])
def test_what_is_damaged_is_said_to_be(tmp_path: Path, text: str) -> None:
    (tmp_path / said.FILE).write_text(text)
    with pytest.raises(Damaged, match=r"data\.json"):
        said.load(tmp_path)


def test_a_source_says_on_what_was_said_until_it_knows_better(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    file = directory / "a.yaml"
    key = ("ConfigMap", "default", "m")
    before = {str(file): (Data(*key, {"k": b"old"}),)}
    source = Source((directory,), before)
    found = source.look()
    assert found.data[key].data == {"k": b"old"}, "the directory is not there"
    assert set(found.unread) == {str(directory), str(file)}
    assert source.said == before
    directory.mkdir()
    file.write_text(MAP % "[")
    for _ in range(3):
        assert source.look().data[key].data == {"k": b"old"}, "it cannot be read"
    file.write_text(MAP % "new1")
    assert source.look().data[key].data == {"k": b"old"}, "it is being written"
    assert source.look().data[key].data == {"k": b"new1"}
    assert source.said == {str(file): (Data(*key, {"k": b"new1"}),)}


def test_what_was_said_by_a_file_that_is_gone_is_said_no_more(tmp_path: Path) -> None:
    source = Source((tmp_path,), {str(tmp_path / "a.yaml"): (Data("Secret", "default", "s", {"k": b"v"}),)})
    assert source.look().data, "it has to be missed twice"
    assert not source.look().data
    assert source.said == {}
