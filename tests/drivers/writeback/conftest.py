"""What all tests of write-back have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.drivers.writeback import way

from .machine import Machine, Made


@pytest.fixture(autouse=True)
def soon_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one second without a write be quiet enough."""
    monkeypatch.setattr(way, "QUIET_LOOKS", 1)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return lambda seed: Machine(tmp_path / str(seed), seed, monkeypatch)
