"""`.setup/importdepth` names chains of imports that are too long, and cycles."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".setup" / "importdepth"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, which allows three modules in a chain."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec = spec_from_loader("importdepth", SourceFileLoader("importdepth", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LIMIT", 3)
    return module


def test_chain_within_the_limit_is_no_complaint(script: Any) -> None:
    assert script.complaints({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_longest_chain_of_a_module_that_nobody_imports_is_named(script: Any) -> None:
    imports = {"a": ["b", "d"], "b": ["c"], "c": ["d"], "d": [], "e": ["d"]}

    assert script.complaints(imports) == ["a chain of 4 modules, 3 are allowed: a > b > c > d"]


def test_cycle_is_named(script: Any) -> None:
    imports = {"a": ["b"], "b": ["c"], "c": ["b"]}

    assert script.complaints(imports) == ["modules import each other in a cycle: b > c > b"]
