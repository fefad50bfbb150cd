"""What all tests of write-back have in common."""

from __future__ import annotations

import pytest

from bockd.drivers.writeback import way


@pytest.fixture(autouse=True)
def soon_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one second without a write be quiet enough."""
    monkeypatch.setattr(way, "QUIET_LOOKS", 1)
