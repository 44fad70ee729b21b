"""What the pages of docs/ say of tests, held against the tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]


@cache
def every_test() -> set[str]:
    """Every test function as "file::name"."""
    return {
        f"{path.name}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def named_tests(text: str) -> list[str]:
    return re.findall(r"`(\w+\.py::\w+)`", text)


def looks_from_inside(test: str) -> bool:
    """Whether it is one of those that run containers, or mount."""
    (path,) = TESTS.rglob(test.partition("::")[0])
    return path.parent.name in ("e2e", "root")
