"""Each test that SECURITY.md and docs/durability.md name exists; each line of the first has one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.service.confined import REPOSITORY

PAGES = ("SECURITY.md", "docs/durability.md")

PLACE = re.compile(r"\btests/[\w/.-]*\w")
"""A file or directory of tests. Behind it may stand ::NAME."""

TEST = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
LONE_TEST = re.compile(r"`(test_\w+)`")
ROW = re.compile(r"^\|(.*)\|(.*)\|(.*)\|$", re.MULTILINE)


@cache
def functions_in(path: Path) -> frozenset[str]:
    """The names of a module's functions, by its source."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    module = ast.parse(path.read_text())
    return frozenset(node.name for node in module.body if isinstance(node, functions))


def missing(text: str) -> list[str]:
    """What a page names that does not exist."""
    lacking = [place for place in PLACE.findall(text) if not (REPOSITORY / place).exists()]
    for path, name in TEST.findall(text):
        if path not in lacking and name not in functions_in(REPOSITORY / path):
            lacking.append(f"{path}::{name}")
    lone = set(LONE_TEST.findall(text))
    if lone:
        modules = (REPOSITORY / "tests").rglob("test_*.py")
        lacking += sorted(lone.difference(*(functions_in(module) for module in modules)))
    return lacking


@pytest.mark.parametrize("page", PAGES)
def test_what_it_names_exists(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    assert PLACE.search(text)
    assert missing(text) == []


def test_each_line_of_what_is_protected_has_a_test() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text()
    _, protected = text.split("## What is protected")
    protected, _ = protected.split("## What is not")
    heading, line, *rows = ROW.findall(protected)
    assert (heading[2].strip(), set(line[2])) == ("test", {"-"})
    assert len(rows) > 20
    for _, what, tests in rows:
        assert what.strip()
        assert TEST.search(tests), what
        assert re.sub(r"`tests/[\w/.]+(::\w+)?`", "", tests).strip(" ,") == "", what


def test_what_does_not_exist_is_noticed() -> None:
    here = "tests/service/test_documented.py"
    assert missing(f"`{here}::test_what_it_names_exists`, `test_what_it_names_exists`") == []
    for name in ("tests/nowhere", f"{here}::test_nothing", "`test_nothing_like_it`"):
        assert missing(f"by {name}, ...") == [name.strip("`")]
