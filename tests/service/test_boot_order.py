"""The order of units at boot, with what /etc/fstab has: judged by systemd, which starts nothing.

systemd's own generator makes the mount units. That one unit comes before another is shown by asking
for the opposite, too: the two together must be a cycle.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.process import program
from tests.service.dropins import fstab_line
from tests.service.unitfile import service_of

GENERATOR = "/usr/lib/systemd/system-generators/systemd-fstab-generator"

ON_A_VOLUME = fstab_line("hosts.md", "/mnt")
POOL_ON_A_LOCAL_DISK = "UUID=1a3407de-014b-458b-b5c1-848e92a327a3 /srv/bockd xfs defaults 0 2"
POOL_WITH_NETDEV = POOL_ON_A_LOCAL_DISK.replace("defaults", "_netdev")
POOL_ON_A_VOLUME_ELSEWHERE = POOL_ON_A_LOCAL_DISK.replace(
    "defaults", "nofail,x-systemd.requires=bock-connect@elsewhere.service"
)

INITIATOR = """\
[Unit]
Wants=network-online.target remote-fs-pre.target
After=network-online.target
Before=remote-fs-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""
"""Brings disks over the network, in the order of Debian's open-iscsi.service."""


@dataclass(frozen=True)
class Boot:
    """Units of a machine that boots, in a directory of their own."""

    units: Path

    def add(self, unit: str, section: str) -> Path:
        """Add a drop-in to a unit; return its path."""
        directory = self.units / f"{unit}.d"
        directory.mkdir(exist_ok=True)
        path = directory / f"{len(list(directory.iterdir()))}.conf"
        path.write_text(section)
        return path

    def cycles(self) -> list[str]:
        """Return the ordering cycles that systemd finds when it is to start all of them."""
        asked = ["multi-user.target", "remote-fs.target", "bockd.service"]
        asked += ["bock-connect@local.service", *(path.name for path in self.units.glob("*.mount"))]
        judged = subprocess.run(
            [program("systemd-analyze"), "--no-pager", "verify", "--man=no", *asked],
            env=os.environ | {"SYSTEMD_UNIT_PATH": f"{self.units}:"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        ).stderr
        return re.findall(r".*Found ordering cycle.*", judged)

    def comes_before(self, first: str, then: str) -> bool:
        """Whether it is a cycle to ask for the opposite order."""
        assert self.cycles() == []
        opposite = self.add(first, f"[Unit]\nAfter={then}\n")
        found = self.cycles()
        opposite.unlink()
        return found != []


def boot_of(directory: Path, unit: Path, *fstab: str) -> Boot:
    """Make the units of a machine with the service, its block devices, and these file systems."""
    units = directory / "units"
    units.mkdir()
    table = directory / "fstab"
    table.write_text("".join(f"{line}\n" for line in fstab))
    others = directory / "others"
    others.mkdir()
    subprocess.run(
        [GENERATOR, units, others, others],
        env=os.environ | {"SYSTEMD_FSTAB": str(table)},
        check=True,
    )
    assert len(list(units.glob("*.mount"))) == len(fstab)
    (units / "bockd.service").write_bytes(unit.read_bytes())
    connect = subprocess.run(
        [program("bock"), "connect", "--print-unit"], capture_output=True, check=True
    )
    (units / "bock-connect@.service").write_bytes(connect.stdout)
    (units / "open-iscsi.service").write_text(INITIATOR)
    return Boot(units)


def test_file_system_on_a_volume_comes_after_the_daemon(tmp_path: Path, unit: Path) -> None:
    """With the pool on a disk of this machine that is mounted, and the docs' drop-in."""
    boot = boot_of(tmp_path, unit, ON_A_VOLUME, POOL_ON_A_LOCAL_DISK)
    boot.add("bockd.service", "[Unit]\nRequiresMountsFor=/srv/bockd\n")
    assert boot.comes_before("srv-bockd.mount", "bockd.service")
    assert boot.comes_before("bockd.service", "bock-connect@local.service")
    assert boot.comes_before("bock-connect@local.service", "mnt.mount")
    assert boot.comes_before("bockd.service", "mnt.mount")
    assert not boot.comes_before("open-iscsi.service", "bockd.service")


def test_pool_on_a_network_disk_as_documented_is_no_cycle(tmp_path: Path, unit: Path) -> None:
    boot = boot_of(tmp_path, unit, ON_A_VOLUME, fstab_line("service.md", "/srv/bockd"))
    boot.add("bockd.service", "[Unit]\nRequiresMountsFor=/srv/bockd\n")
    assert boot.comes_before("open-iscsi.service", "srv-bockd.mount")
    assert boot.comes_before("srv-bockd.mount", "bockd.service")
    assert boot.comes_before("bockd.service", "mnt.mount")


@pytest.mark.parametrize(
    "fstab", [[POOL_WITH_NETDEV], [POOL_WITH_NETDEV, ON_A_VOLUME], [POOL_ON_A_VOLUME_ELSEWHERE]]
)
def test_pool_that_is_mounted_too_late_is_a_cycle(
    tmp_path: Path, unit: Path, fstab: list[str]
) -> None:
    """docs/service.md warns of these. If they are cycles no more, its warning can go."""
    boot = boot_of(tmp_path, unit, *fstab)
    assert boot.cycles() == []
    boot.add("bockd.service", "[Unit]\nRequiresMountsFor=/srv/bockd\n")
    assert boot.cycles() != []


def test_device_is_awaited_as_long_as_the_services_may_start(tmp_path: Path, unit: Path) -> None:
    """systemd's own limit, 90 s, is less than a daemon may need to recover."""
    boot = boot_of(tmp_path, unit, ON_A_VOLUME)
    (dropin,) = boot.units.glob("*.device.d/50-device-timeout.conf")
    (limit,) = re.findall(r"^JobRunningTimeoutSec=(\d+)min$", dropin.read_text(), re.MULTILINE)
    services = (boot.units / "bockd.service", boot.units / "bock-connect@.service")
    starts = [service_of([path.read_text()])["TimeoutStartSec"] for path in services]
    assert int(limit) * 60 >= sum(int(seconds) for (seconds,) in starts)


def test_logins_wait_for_a_file_system_without_nofail(tmp_path: Path, unit: Path) -> None:
    for options, waits in (("_netdev", True), ("nofail,_netdev", False)):
        (tmp_path / options).mkdir()
        boot = boot_of(tmp_path / options, unit, ON_A_VOLUME.replace("_netdev", options))
        assert boot.comes_before("mnt.mount", "systemd-user-sessions.service") is waits
