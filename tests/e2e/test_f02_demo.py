"""F02, next to Debian's containerd: `make demo-volumes`, and the table of docs/DATA.md that it makes.

What containerd does is recorded, not demanded.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from shares import FILES, KINDS

TOP = Path(__file__).parents[2]
SECONDS = 300.0


def rows(text: str) -> dict[str, list[str]]:
    """The rows about shares of a table in Markdown: by what is mounted, what is left under Holdfast and containerd."""
    found = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return {cells[0]: cells[1:] for cells in found if cells[0] in KINDS.values()}


@pytest.mark.alone
def test_f02_the_canary_story_next_to_containerd() -> None:
    command = [sys.executable, TOP / "demo/demo_volumes.py", "--docs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    measured, written = rows(done.stdout), rows((TOP / "docs/DATA.md").read_text())
    assert measured.keys() == written.keys() == set(KINDS.values())
    for kind, (ours, theirs) in measured.items():
        assert ours == written[kind][0] == f"{FILES} of {FILES} files left"
        print(f"{kind}: containerd: {theirs}; as written: {written[kind][1]}")
