"""Requests that tests send to a profiled device, in time that passes when they say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from bockd.model import DeviceOperation, DeviceProfile, SpinningDisk
from bockd.profiles.device import Plan, ProfiledDevice

BLOCK = 4096
SIZE = 1 << 30
MS = 1_000_000
READ, WRITE = DeviceOperation.READ, DeviceOperation.WRITE
TRIM, FLUSH = DeviceOperation.TRIM, DeviceOperation.FLUSH

DISK = SpinningDisk(
    rpm=7200,
    track_seek_us=1_000,
    average_seek_us=8_500,
    full_seek_us=15_000,
    outer_bytes_per_second=160_000_000,
    inner_bytes_per_second=80_000_000,
)


def profile(**fields: object) -> DeviceProfile:
    return DeviceProfile(name="tested", **fields)  # type: ignore[arg-type]


class Sent:
    """A device, and requests to it that come one after the other: each when the last one was
    answered."""

    def __init__(self, tested: DeviceProfile, size_bytes: int = SIZE) -> None:
        self.now = 0
        self.size_bytes = size_bytes
        self.device = ProfiledDevice(tested, 0)

    def plan(
        self,
        operation: DeviceOperation = READ,
        offset: int = 0,
        length: int = BLOCK,
        *,
        fua: bool = False,
    ) -> Plan:
        """Send a request, without waiting for its answer."""
        return self.device.plan(
            operation, offset, length, fua=fua, size_bytes=self.size_bytes, now=self.now
        )

    def took(self, operation: DeviceOperation = READ, offset: int = 0, length: int = BLOCK) -> int:
        """Send a request, and wait for its answer. Return how long that took, in nanoseconds."""
        began, self.now = self.now, self.plan(operation, offset, length).due_ns
        return self.now - began

    def places(self, count: int, seed: int = 1) -> Iterator[int]:
        """Yield offsets of blocks at random places."""
        random = Random(seed)
        for _ in range(count):
            yield random.randrange(self.size_bytes // BLOCK) * BLOCK

    def random_reads(self, count: int, seed: int = 1) -> list[int]:
        """Read blocks at random places. Return how long each took, the shortest first."""
        return sorted(self.took(READ, offset) for offset in self.places(count, seed))


def quantile(ordered: Sequence[int], fraction: float) -> int:
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]
