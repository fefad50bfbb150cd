"""What a user does with a volume in a guest, whatever serves the volumes.

Written against `VolumeServer`, so that a plain NBD server with copied files can prove the scenario
itself, and a failure with the daemon is the daemon's.
"""

from __future__ import annotations

from typing import Protocol

from .disk import MIB, attached
from .vm import Guest

VOLUME_BYTES = 256 * MIB

FIRST_FILES = {"large": 12, "small": 3, "doomed": 1}
"""In MiB by name: the guest takes its time for random numbers and for checksums."""


class VolumeServer(Protocol):
    """Makes volumes, and serves each under its name on a port that the guest can reach."""

    @property
    def port(self) -> int: ...

    def create_volume(self, name: str, size_bytes: int) -> None: ...

    def create_snapshot(self, volume: str, name: str) -> None: ...

    def clone_snapshot(self, snapshot: str, name: str) -> None: ...


def clone_holds_the_state_of_its_snapshot(guest: Guest, server: VolumeServer) -> None:
    """Fill a file system, snapshot the connected volume, write on, read the snapshot's clone."""
    server.create_volume("origin", VOLUME_BYTES)
    with attached(guest, server.port, "origin") as origin:
        origin.make_file_system()
        with origin.mounted():
            for name, size_mib in FIRST_FILES.items():
                origin.write_file(name, size_mib)
            first = origin.checksums()
        assert len(first) == len(FIRST_FILES)
        origin.check_file_system()

        server.create_snapshot("origin", "first")

        with origin.mounted():
            assert origin.checksums() == first
            origin.write_file("small", FIRST_FILES["small"])
            origin.remove_file("doomed")
            origin.write_file("later", 4)
            second = origin.checksums()
        origin.check_file_system()

    server.clone_snapshot("first", "clone")
    with attached(guest, server.port, "clone", number=1) as clone:
        clone.check_file_system()
        with clone.mounted(read_only=True):
            assert clone.checksums() == first

    # Attached anew, so that nothing comes from the guest's cache.
    with attached(guest, server.port, "origin") as origin:
        origin.check_file_system()
        with origin.mounted(read_only=True):
            assert origin.checksums() == second
