"""What all tests of write-back have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bockd.drivers.writeback import way

from .machine import Machine, Made


@pytest.fixture(autouse=True)
def soon_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one second without a write be quiet enough."""
    monkeypatch.setattr(way, "QUIET_LOOKS", 1)


@pytest.fixture(autouse=True)
def descriptors_closed(tmp_path: Path) -> Iterator[None]:
    """Close what a test has left open: who dies in it, as by SIGKILL, closes nothing."""
    yield
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(tmp_path):
                os.close(descriptor)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return lambda seed: Machine(tmp_path / str(seed), seed, monkeypatch)
