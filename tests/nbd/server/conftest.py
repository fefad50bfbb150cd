"""Fixtures of the server's tests: a socket's path, a device, and exports of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local import registry
from bockd.drivers.memory.device import MemoryDevice
from tests.nbd.server.serving import FixedExports

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(200 * MIB)


@pytest.fixture
def exports(device: MemoryDevice) -> FixedExports:
    """The device as "disk", a second one as "other", and a read-only one as "snapshot/monday"."""
    return FixedExports(
        {
            "disk": device,
            "other": MemoryDevice(MIB),
            "snapshot/monday": MemoryDevice(MIB, read_only=True),
        }
    )


@pytest.fixture(scope="module", params=["raw", "packed"])
def heads(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the heads are that snapshots make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "packs_heads", lambda: request.param == "packed")
        yield request.param
