"""docs/METRICS.md, held against what a scrape says."""

import re
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import Metric

TABLE = Path(__file__).parents[2] / "docs" / "METRICS.md"
ID = re.compile(r"[0-9a-f]{12,}")


def check(found: Mapping[str, Metric], kinds: re.Pattern[str]) -> None:
    """The page has each of these and no other whose name begins as `kinds`, with its kind, its labels where they can be
    seen, and its words; and no label is anybody's id."""
    told = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("| `") and kinds.match(line.removeprefix("| `")):
            name, kind, labels, words = (cell.strip() for cell in line.strip("|").split("|"))
            told[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", labels)), words)
    shown = {f"{name}_total" if one.type == "counter" else name: one for name, one in found.items()}
    assert sorted(told) == sorted(shown)
    for name, one in shown.items():
        kind, labels, words = told[name]
        assert (one.type, one.documentation) == (kind, words), name
        for sample in one.samples:
            assert sample.labels.keys() - {"le"} == labels, name
            assert not any(map(ID.search, sample.labels.values())), sample
