"""What is wanted of pods' volumes: their files, their sizes, and what of it may not change."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.agent.pod.env import Facts, Missing
from holdfast.agent.pod.manifest import Data, parse
from holdfast.agent.pod.spec import Pod
from holdfast.agent.volumes import journal, world
from holdfast.agent.volumes.emptydir import EmptyDir
from holdfast.agent.volumes.journal import Entry
from holdfast.agent.volumes.ownership import Group
from holdfast.agent.volumes.paths import TRASH, Key, Paths
from holdfast.agent.volumes.payload import File, digest, render
from holdfast.agent.volumes.world import Actual, Desired, Files

MIB = 1 << 20
CONF = Data("ConfigMap", "default", "conf", {"a": b"1", "b": b"\xff"})
SECRET = Data("Secret", "default", "key", {"k": b"hidden"})
FACTS = Facts(cpu=4000, memory=1000 * MIB, data={(one.kind, one.namespace, one.name): one for one in (CONF, SECRET)})


def pod(volume: str, more: str = "", container: str = "") -> Pod:
    text = f"""
apiVersion: v1
kind: Pod
metadata: {{name: p, uid: u, labels: {{app: web}}, annotations: {{note: "a\\"b"}}}}
spec:
  {more}
  containers: [{{name: main, image: i, {container}}}]
  volumes: [{{name: v, {volume}}}]
"""
    return parse(text.encode(), "test").pods[0]


def files(volume: str, facts: Facts = FACTS, **more: str) -> list[tuple[str, bytes, str]]:
    one = pod(volume, **more)
    found = render(one, one.spec.volumes[0], facts)
    return [(file.path, file.content, f"{file.mode:o}") for file in found]


def test_files_of_a_source_are_its_keys_or_items() -> None:
    assert files("configMap: {name: conf}") == [("a", b"1", "644"), ("b", b"\xff", "644")]
    assert files("secret: {secretName: key, defaultMode: 256}") == [("k", b"hidden", "400")]
    items = "items: [{key: b, path: x/y, mode: 320}, {key: a, path: c}]"
    assert files(f"configMap: {{name: conf, {items}}}") == [("c", b"1", "644"), ("x/y", b"\xff", "500")]


def test_what_is_missing_is_an_error_unless_it_is_optional() -> None:
    with pytest.raises(Missing, match="no ConfigMap 'other'"):
        files("configMap: {name: other}")
    with pytest.raises(Missing, match="no key 'z' in Secret 'key'"):
        files("secret: {secretName: key, items: [{key: z, path: z}]}")
    assert files("configMap: {name: other, optional: true}") == []
    items = "items: [{key: z, path: z}, {key: k, path: y}]"
    assert files(f"secret: {{secretName: key, optional: true, {items}}}") == [("y", b"hidden", "644")]


def test_what_a_pod_knows_of_itself() -> None:
    items = """items: [
      {path: name, fieldRef: {fieldPath: metadata.name}},
      {path: labels, fieldRef: {fieldPath: metadata.labels}, mode: 256},
      {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}},
      {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}},
      {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}]"""
    assert files(f"downwardAPI: {{{items}}}", container="resources: {limits: {cpu: 250m}}") == [
        ("cpu", b"250", "644"),
        ("labels", b'app="web"', "400"),
        ("memory", str(1000 * MIB).encode(), "644"),
        ("name", b"p", "644"),
        ("note", b'a"b', "644"),
    ]
    for wrong in ("fieldRef: {fieldPath: status.podIP}", "resourceFieldRef: {resource: limits.cpu}"):
        with pytest.raises(Missing):
            files(f"downwardAPI: {{items: [{{path: x, {wrong}}}]}}")


def test_sources_that_are_projected_into_one() -> None:
    sources = """sources: [
      {configMap: {name: conf, items: [{key: a, path: both}, {key: a, path: dir/a}]}},
      {secret: {name: key, items: [{key: k, path: both, mode: 256}]}},
      {downwardAPI: {items: [{path: dir/name, fieldRef: {fieldPath: metadata.name}}]}},
      {secret: {name: none, optional: true}}]"""
    assert files(f"projected: {{{sources}, defaultMode: 292}}") == [
        ("both", b"hidden", "400"),
        ("dir/a", b"1", "444"),
        ("dir/name", b"p", "444"),
    ]


@pytest.mark.parametrize("key", ["..", "..data", "a/../b", "/a", "a//b", "", "a\0", ".", "x" * 256, "y/" * 600 + "y"])
def test_no_key_leads_out_of_the_volume(key: str) -> None:
    facts = Facts(data={("ConfigMap", "default", "conf"): replace(CONF, data={key: b""})})
    with pytest.raises(ValueError, match=r"name of a file|too long|leads out"):
        files("configMap: {name: conf}", facts)


def test_a_file_is_no_directory_and_a_mode_no_more_than_one() -> None:
    facts = Facts(data={("ConfigMap", "default", "conf"): replace(CONF, data={"a": b"", "a/b": b""})})
    with pytest.raises(ValueError, match="'a' is a file, and 'a/b' is to be in it"):
        files("configMap: {name: conf}", facts)
    with pytest.raises(ValueError, match="at most 0777"):
        files("configMap: {name: conf, defaultMode: 2541}")


def test_a_digest_is_of_all_there_is_to_a_file() -> None:
    one = File("a", b"b", 0o644)
    others = [File("ab", b"", 0o644), File("a", b"c", 0o644), File("a", b"b", 0o600), File("", b"ab", 0o644)]
    assert len({digest(()), digest((one,)), digest((one, one)), *(digest((other,)) for other in others)}) == 7


def wanted(volume: str, facts: Facts = FACTS, **more: str) -> Desired:
    (found,) = world.desired(pod(volume, **more), facts)
    return found


def test_an_empty_dir_is_as_large_as_it_may_be() -> None:
    group = "securityContext: {fsGroup: 7, fsGroupChangePolicy: OnRootMismatch}"
    assert wanted("emptyDir: {}") == Desired(Key("u", "empty-dir", "v"), "empty-dir:::0", "None", EmptyDir())
    assert wanted("emptyDir: {sizeLimit: 5Mi}", more=group).content == EmptyDir("", 5 * MIB, 0, Group(7, True))
    memory = "emptyDir: {medium: Memory}"
    limits = "resources: {limits: {memory: 10Mi}}"
    assert wanted(memory).content == EmptyDir("Memory", 1000 * MIB)
    assert wanted(memory, container=limits).content == EmptyDir("Memory", 10 * MIB)
    assert wanted("emptyDir: {medium: Memory, sizeLimit: 3Mi}", container=limits).content == EmptyDir("Memory", 3 * MIB)
    assert wanted("emptyDir: {medium: Memory, sizeLimit: 0}").content == EmptyDir("Memory", 1000 * MIB)


def test_what_the_machine_has_is_not_the_shape_of_a_volume() -> None:
    """Or it would be torn down when a machine comes back with a little less memory."""
    memory = "emptyDir: {medium: Memory}"
    assert wanted(memory).shape == wanted(memory, Facts(memory=5)).shape
    assert wanted(memory).shape != wanted("emptyDir: {medium: Memory, sizeLimit: 1Mi}").shape


def test_huge_pages_are_of_one_size() -> None:
    asks = 'resources: {limits: {"hugepages-2Mi": 4Mi, memory: 1Mi}}'
    assert wanted("emptyDir: {medium: HugePages}", container=asks).content == EmptyDir("HugePages", None, 2 * MIB)
    found = wanted("emptyDir: {medium: HugePages-1Gi, sizeLimit: 1Gi}").content
    assert found == EmptyDir("HugePages-1Gi", 1 << 30, 1 << 30)
    problem = wanted("emptyDir: {medium: HugePages}")
    assert (problem.shape, problem.content) == ("", None)
    assert "0 sizes of huge pages" in problem.problem


def test_files_are_in_memory_but_for_those_of_config_maps() -> None:
    conf = wanted("configMap: {name: conf}", more="securityContext: {fsGroup: 7}")
    assert isinstance(conf.content, Files)
    assert (conf.content.in_memory, conf.content.group, conf.shape) == (False, 7, "configmap")
    for volume in ("secret: {secretName: key}", "downwardAPI: {items: []}", "projected: {sources: []}"):
        found = wanted(volume).content
        assert isinstance(found, Files)
        assert found.in_memory, volume
    assert wanted("configMap: {name: other}").problem == "there is no ConfigMap 'other'"


def test_new_content_is_a_new_version_of_the_same_shape() -> None:
    before = wanted("configMap: {name: conf}")
    facts = Facts(data={("ConfigMap", "default", "conf"): replace(CONF, data={"a": b"2"})})
    after = wanted("configMap: {name: conf}", facts)
    assert (before.shape, before.key) == (after.shape, after.key)
    assert before.version != after.version


def test_images_are_the_runtimes() -> None:
    assert world.desired(pod("image: {reference: data}"), FACTS) == []


# -- what is found


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path)


KEY = Key("u", "empty-dir", "v")


def test_a_journal_says_what_was_made(paths: Paths) -> None:
    assert journal.load(paths, KEY) is None
    entry = Entry("shape", "quota", 5, 7, True)
    journal.write(paths, KEY, entry)
    assert journal.load(paths, KEY) == entry
    before = paths.journal(KEY).stat()
    journal.write(paths, KEY, entry)
    assert paths.journal(KEY).stat().st_ino == before.st_ino, "nothing is written that is there"
    journal.remove(paths, KEY)
    journal.remove(paths, KEY)
    assert list(paths.pods.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"version": 2}',
        b'{"version": 1, "shape": 5}',
        b"[" * 60_000,
        b"x" * 70_000,
    ],
)
def test_a_journal_that_cannot_be_understood_is_one_nevertheless(paths: Paths, text: bytes) -> None:
    journal.write(paths, KEY, Entry("shape"))
    paths.journal(KEY).write_bytes(text)
    assert journal.load(paths, KEY) == Entry()
    assert world.find(paths) == {KEY: Actual()}


def leave(make: Callable[[Path], object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def test_all_that_may_be_left_is_found(paths: Paths) -> None:
    journal.write(paths, Key("a", "secret", "journal"), Entry("shape"))
    leave(Path.touch, paths.journals("a") / ".secret~x.json.0123456789abcdef01234567")
    leave(Path.mkdir, paths.volume("b", "configmap", "directory"))
    leave(Path.mkdir, paths.sized("c", "sized"))
    leave(Path.touch, paths.image("d", "image"))
    leave(Path.touch, paths.image("e", "part").with_name("part.ext4.part"))
    leave(Path.mkdir, paths.subpath("f", "bound", "main", 0))
    leave(Path.mkdir, paths.discarded("g", "trash"))
    leave(Path.mkdir, paths.discarded("b", "directory"))  # whoever tears that down clears this
    leave(Path.mkdir, paths.pod("h") / "volumes" / "kubernetes.io~secret")
    leave(Path.touch, paths.pod("i") / "record.json")  # somebody else's
    leave(Path.mkdir, paths.pods / "no uid" / "volumes" / "kubernetes.io~secret" / "x")
    leave(Path.touch, paths.trash / "no-volume")
    unknown = Actual()
    assert world.find(paths) == {
        Key("a", "secret", "journal"): Actual(shape="shape"),
        Key("b", "configmap", "directory"): unknown,
        Key("c", "empty-dir", "sized"): unknown,
        Key("d", "empty-dir", "image"): unknown,
        Key("e", "empty-dir", "part"): unknown,
        Key("f", TRASH, "bound"): unknown,
        Key("g", TRASH, "trash"): unknown,
    }
    assert [path.name for path in paths.journals("a").iterdir()] == ["secret~journal.json"]
    assert not paths.pod("h").exists(), "it was empty"
    assert paths.pod("i").exists()


def test_names_lead_nowhere_else(paths: Paths) -> None:
    for name in ("..", "a/b", "", "A", "a" * 64):
        with pytest.raises(ValueError, match="is no"):
            paths.volume("u", "secret", name)
        with pytest.raises(ValueError, match="is no"):
            paths.image("u", name)
    assert paths.key_of("/elsewhere/pods/u/volumes/kubernetes.io~secret/x") is None
    assert paths.key_of(paths.volume("u", "secret", "x") / "deep") == Key("u", "secret", "x")
