"""docs/PODS-FIELDS.md against the classes that manifests are read into, Kubernetes' list of fields, and the tests."""

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kit.pages import every_test, looks_from_inside, named_tests
from kit.pod_fields import API, KINDS, reached

from holdfast.agent.pod.decode import Refused, decode, key_of

PAGE = (Path(__file__).parents[2] / "docs" / "PODS-FIELDS.md").read_text()
TABLES = {"warned": "UNSUPPORTED", "refused": "REFUSED", "ignored": "IGNORED"}  # of a class, by verdict


class Row(NamedTuple):
    kind: str
    field: str
    verdict: str
    here: str
    seen_by: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.field}"

    @property
    def reason(self) -> str | None:
        """The code's, of a field that is not honoured."""
        tables = getattr(KINDS[self.kind], TABLES[self.verdict], {}) if self.verdict in TABLES else {}
        return tables.get(self.field)


ROWS = [
    Row(section.partition("\n")[0], *(cell.strip() for cell in line.strip("|").split("|")))
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    if section.partition("\n")[0] in API
    for line in section.partition("| --- |")[2].splitlines()[1:]
    if line.startswith("|")
]


def test_every_field_has_one_row() -> None:
    assert sorted(f"{kind}.{field}" for kind, fields in API.items() for field in fields) == sorted(map(str, ROWS))
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert titles == [*API, "Differences from a kubelet"]


def test_every_class_is_of_the_list() -> None:
    assert KINDS.keys() == API.keys()
    assert set(reached()) == set(KINDS.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_code_knows_these_fields_and_no_others(name: str) -> None:
    kind = KINDS[name]
    tables = [set(getattr(kind, table, {})) for table in TABLES.values()]
    tables.append({key_of(one.name) for one in dataclasses.fields(kind)})
    assert set().union(*tables) == set(API[name])
    assert sum(map(len, tables)) == len(API[name]), "a field has two verdicts"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_says_what_its_verdict_needs(row: Row) -> None:
    assert row.verdict in ("done", *TABLES)
    if row.verdict != "done":
        assert row.here == row.reason
        return
    assert row.field in {key_of(one.name) for one in dataclasses.fields(KINDS[row.kind])}
    tests = named_tests(row.seen_by)
    assert tests, "nobody looks"
    assert not (unknown := set(tests) - every_test()), f"there are no tests {unknown}"
    inside = any(looks_from_inside(name) for name in tests)
    assert inside is ("unit tests only" not in row.here), "it does not say truly whether somebody looks from inside"


@pytest.mark.parametrize("row", [row for row in ROWS if row.verdict != "done"], ids=str)
def test_what_is_not_honoured_is_said_by_its_path(row: Row) -> None:
    warnings: list[str] = []
    said: Any = None
    try:
        decode(KINDS[row.kind], {row.field: "x"}, "at", warnings.append)
    except Refused as exc:  # also: that something else is missing
        said = str(exc)
    told = f"at.{row.field}: not supported here: {row.here}"
    assert warnings == ([told] if row.verdict == "warned" else [])
    assert (said == told) is (row.verdict == "refused")
