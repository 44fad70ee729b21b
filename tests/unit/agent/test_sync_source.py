"""What directories of manifests say, and what they do not take back."""

from pathlib import Path

import pytest

from holdfast.agent.sync.source import Found, Source

ONE = "{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {containers: [{name: c, image: %s}]}}\n"


class Directory:
    def __init__(self, path: Path) -> None:
        self.path = path / "manifests"
        self.path.mkdir()
        self.source = Source((self.path,))

    def write(self, file: str, text: str) -> None:
        (self.path / file).write_text(text)

    def looked(self) -> Found:
        """After as many looks as a change needs."""
        self.source.look()
        return self.source.look()

    def names(self) -> list[str]:
        return sorted(pod.metadata.name for _, pod in self.looked().pods.values())


@pytest.fixture
def there(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_files_come_and_go(there: Directory) -> None:
    there.write("a.yaml", ONE % ("a", "i"))
    there.write("b.json", ONE % ("b", "i") + "---\n{kind: ConfigMap, metadata: {name: m}, data: {k: v}}\n")
    for ignored in (".c.yaml", "d.yaml~", "e.txt"):
        there.write(ignored, ONE % ("x", "i"))
    assert not there.source.look().pods, "a file is not taken before it is the same for two looks"
    found = there.looked()
    assert there.names() == ["a", "b"]
    assert found.data["ConfigMap", "default", "m"].data == {"k": b"v"}
    (uid,) = [uid for uid, (_, pod) in found.pods.items() if pod.metadata.name == "a"]
    (there.path / "a.yaml").unlink()
    assert not there.source.look().has_no(uid, str(there.path / "a.yaml")), "it has to be missed twice"
    assert there.looked().has_no(uid, str(there.path / "a.yaml"))
    assert there.names() == ["b"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "a: [", "kind: Service\n", "\0", "{kind: Pod}"])
def test_what_is_not_understood_takes_nothing_back(there: Directory, text: str) -> None:
    there.write("a.yaml", ONE % ("a", "i"))
    (uid,) = there.looked().pods
    there.write("a.yaml", text)
    found = there.looked()
    assert list(found.pods) == [uid]
    assert found.unread[str(there.path / "a.yaml")]
    again = Source((there.path,))
    for _ in range(3):
        assert not again.look().has_no(uid, str(there.path / "a.yaml")), "nor does it for an agent that has just begun"
    there.write("a.yaml", ONE % ("other", "i"))
    assert there.names() == ["other"]
    assert there.looked().has_no(uid, str(there.path / "a.yaml"))


def test_a_directory_that_is_away_takes_nothing_back(there: Directory) -> None:
    there.write("a.yaml", ONE % ("a", "i"))
    (uid,) = there.looked().pods
    there.path.rename(there.path.with_name("away"))
    found = there.looked()
    assert list(found.pods) == [uid]
    assert "No such file" in found.unread[str(there.path)]
    empty = Source((there.path,)).look()
    assert not empty.has_no(uid, str(there.path / "a.yaml"))
    assert not Source(()).look().has_no(uid, str(there.path / "a.yaml")), "a directory nobody has asked for"


def test_a_file_that_is_moved_away_and_back_is_there(there: Directory) -> None:
    there.write("a.yaml", ONE % ("a", "i"))
    (uid,) = there.looked().pods
    (there.path / "a.yaml").rename(there.path / "a.yaml~")
    assert not there.source.look().has_no(uid, str(there.path / "a.yaml"))
    there.write("a.yaml", ONE % ("a", "other"))
    ((_, pod),) = there.looked().pods.values()
    assert pod.spec.containers[0].image == "other"


def test_of_two_pods_of_one_name_the_first_counts(there: Directory) -> None:
    there.write("a.yaml", ONE % ("a", "first"))
    there.write("b.yaml", ONE % ("a", "second"))
    found = there.looked()
    ((_, pod),) = found.pods.values()
    assert pod.spec.containers[0].image == "first"
    assert "is in" in found.warnings[str(there.path / "b.yaml")][0]
