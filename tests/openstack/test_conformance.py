"""docs/api-conformance.md names a test in every row, each exists, and no operation is missing."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from api.openstack.app import create_public_app

from ..api.memory_blockstorage import MemoryBlockStorage
from ..api.memory_identity import MemoryIdentity

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "api-conformance.md"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
HEADS = ("| section |", "|---|")


@cache
def functions_in(path: str) -> frozenset[str]:
    """The test functions of a file."""
    module = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in module.body if isinstance(node, ast.FunctionDef))


def rows() -> list[str]:
    """The rows of all tables."""
    lines = TABLE.read_text().splitlines()
    found = [line for line in lines if line.startswith("|") and not line.startswith(HEADS)]
    assert found
    return found


def test_every_row_names_tests_that_exist() -> None:
    for row in rows():
        _, section, what, held_by, _ = row.split("|")
        assert section.strip(), row
        assert what.strip(), row
        named = TEST.findall(held_by)
        assert named, row
        assert TEST.sub("", held_by).strip(" ,") == "", row
        for path, name in named:
            assert name in functions_in(path), f"{path} has no {name}"


def test_every_operation_has_a_row() -> None:
    document = create_public_app(MemoryBlockStorage(), MemoryIdentity()).openapi()
    table = "\n".join(rows())
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in table, (method, path)
