"""The profiles that bockd brings. docs/profiles.md says where their figures are from."""

from __future__ import annotations

from typing import Final

from bockd.errors import NotFoundError
from bockd.model import (
    DeviceOperation,
    DeviceProfile,
    ErrorRule,
    IoLimits,
    IoRate,
    SpinningDisk,
    Stall,
)

_COMMAND_US = 200
"""What a disk's controller and the bus take of a command, and a flush with nothing to do."""

_NETWORK_US = {"0": 500, "50": 900, "90": 1500, "99": 4000, "99.9": 15000, "100": 40000}

_PROFILES = (
    DeviceProfile(
        name="hdd-7200",
        read_us=_COMMAND_US,
        write_us=_COMMAND_US,
        trim_us=_COMMAND_US,
        flush_us=_COMMAND_US,
        disk=SpinningDisk(
            rpm=7200,
            track_seek_us=1_000,
            average_seek_us=8_500,
            full_seek_us=15_000,
            outer_bytes_per_second=160_000_000,
            inner_bytes_per_second=80_000_000,
        ),
    ),
    DeviceProfile(
        name="hdd-5400",
        read_us=_COMMAND_US,
        write_us=_COMMAND_US,
        trim_us=_COMMAND_US,
        flush_us=_COMMAND_US,
        disk=SpinningDisk(
            rpm=5400,
            track_seek_us=1_000,
            average_seek_us=12_000,
            full_seek_us=20_000,
            outer_bytes_per_second=100_000_000,
            inner_bytes_per_second=50_000_000,
        ),
    ),
    DeviceProfile(
        name="ssd-sata",
        read_us={"0": 200, "50": 250, "99": 500, "99.9": 1000, "100": 5000},
        write_us={"0": 200, "50": 220, "99": 500, "99.9": 2000, "100": 20000},
        trim_us=500,
        flush_us={"50": 1000, "99": 5000, "100": 20000},
        parallel=32,
        limits=IoLimits(bps=IoRate(550_000_000)),
    ),
    DeviceProfile(
        name="cloud-network",
        read_us=_NETWORK_US,
        write_us=_NETWORK_US,
        trim_us=1000,
        flush_us=1000,
        limits=IoLimits(iops=IoRate(3000), bps=IoRate(125 << 20), iops_size=256 << 10),
    ),
    DeviceProfile(
        name="cloud-burst",
        read_us=_NETWORK_US,
        write_us=_NETWORK_US,
        trim_us=1000,
        flush_us=1000,
        limits=IoLimits(
            iops=IoRate(100, burst=3000, burst_seconds=1800),
            bps=IoRate(128 << 20),
            iops_size=256 << 10,
        ),
    ),
    DeviceProfile(
        name="dying",
        read_us={"50": 8000, "90": 15000, "99": 200_000, "99.9": 2_000_000, "100": 8_000_000},
        write_us={"50": 8000, "90": 15000, "99": 100_000, "99.9": 1_000_000, "100": 4_000_000},
        trim_us=8000,
        flush_us={"50": 8000, "99": 1_000_000},
        errors=(
            ErrorRule(
                operations=(DeviceOperation.READ,),
                bad_blocks_percent=0.1,
                latency_us={"50": 2_000_000, "100": 7_000_000},
            ),
            ErrorRule(
                operations=(DeviceOperation.READ, DeviceOperation.WRITE),
                percent=1,
                after_requests=10_000,
                latency_us=2_000_000,
            ),
        ),
        stalls=(Stall(seconds=30, after_requests=5_000, every_requests=5_000),),
    ),
)

BUILT_IN: Final = {profile.name: profile for profile in _PROFILES}


def built_in(name: str) -> DeviceProfile:
    """Return one of the profiles that bockd brings. Raises NotFoundError."""
    found = BUILT_IN.get(name)
    if found is None:
        raise NotFoundError(
            f"there is no device profile {name[:80]!r}; there are {', '.join(BUILT_IN)}, and "
            "@FILE is one of yours"
        )
    return found
