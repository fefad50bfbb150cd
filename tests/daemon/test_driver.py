"""What the tests of a kind of pool leave out is what docs/ceph.md lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bockd.drivers.local.pool import FEATURES
from tests.daemon.driver import NEEDS

ROOT = Path(__file__).parents[2]


def marked() -> Iterator[tuple[str, str]]:
    """What each marked test needs, and where it is: `test_x.py::test_y`, below `tests/`."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for decorator in node.decorator_list:
                    found = re.fullmatch(r"pytest\.mark\.needs\('(.+)'\)", ast.unparse(decorator))
                    if found is not None:
                        yield found[1], f"{path.relative_to(ROOT / 'tests')}::{node.name}"


def listed() -> Iterator[tuple[str, str]]:
    """The rows of the table in docs/ceph.md that has them."""
    text = (ROOT / "docs" / "ceph.md").read_text()
    table = text.partition("| a test needs | ")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        need, _why, tests = (cell.strip() for cell in row.strip("|").split("|"))
        for name in tests.split(", "):
            yield need, name.strip("`")


def test_what_is_left_out_is_listed() -> None:
    all_marked = list(marked())
    assert {need for need, _ in all_marked} <= NEEDS.keys()
    expected = [(need, name) for need, name in all_marked if NEEDS[need](FEATURES)]
    assert sorted(listed()) == sorted(expected)


def test_every_mark_is_on_a_test_by_itself() -> None:
    """So that the list shows what is left out: no mark is on a module."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        marks = re.findall(r"^.*\bmark\.needs\b.*$", path.read_text(), re.MULTILINE)
        own = [one for one in marks if re.match(r"@pytest\.mark\.needs\(\"[a-z ]+\"\)", one)]
        assert path == Path(__file__) or marks == own, path
