"""The daemon's volumes as disks of a real kernel, with file systems on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ..daemon.process import Bockd, serving
from .forward import forward_to
from .scenario import clone_holds_the_state_of_its_snapshot
from .vm import Guest


@dataclass(frozen=True, slots=True)
class Served:
    """A running daemon behind a port that the guest can reach (scenario.VolumeServer)."""

    daemon: Bockd
    port: int

    def create_volume(self, name: str, size_bytes: int) -> None:
        self.daemon.bock("volume", "create", name, "--size", str(size_bytes))

    def create_snapshot(self, volume: str, name: str) -> None:
        self.daemon.bock("snapshot", "create", volume, name)

    def clone_snapshot(self, snapshot: str, name: str) -> None:
        self.daemon.bock("volume", "create", name, "--from-snapshot", snapshot)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        serving(tmp_path_factory.mktemp("guest") / "pool") as daemon,
        forward_to(daemon.nbd_socket) as port,
    ):
        yield Served(daemon, port)


def test_a_clone_holds_the_state_of_its_snapshot(guest: Guest, server: Served) -> None:
    """mkfs, 16 MiB of files, unmounted and clean; a snapshot while the kernel is connected; more
    writes; then the snapshot's clone holds exactly the first state, and the volume the second. The
    pool is in order while the daemon serves and after it has stopped."""
    clone_holds_the_state_of_its_snapshot(guest, server)
    server.daemon.check()
    server.daemon.stop()
    report = server.daemon.check()
    assert (report["volumes"], report["snapshots"]) == (2, 1)
