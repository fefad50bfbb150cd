"""A machine with the package loses its power, and boots; it is shut down, and boots.

`make test-systemd` builds the package and runs this. The pool is on the machine's disk. Its
/etc/fstab has a file system on a volume, as docs/hosts.md says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.emulated import Emulation, emulated
from tests.packaging.packages import package_of
from tests.service.dropins import fstab_line

SUITE = "trixie"

FSTAB = fstab_line("hosts.md", "/mnt")

RAW = "nbd+unix:///raw?socket=/var/lib/bockd/nbd.sock"

FSCK_RECOVERED = "journalctl --boot --quiet --unit='systemd-fsck@*' | grep 'recovering journal'"
KERNEL_RECOVERED = "dmesg | grep 'EXT4-fs (nbd.): recovery complete'"
"""Said of a file system that was mounted when the power went, by who comes to it first."""


@pytest.mark.packages
def test_power_cut_and_shutdown(tmp_path: Path) -> None:
    """One long test: each boot is of what the last one left."""
    machine = emulated(SUITE, tmp_path / "machine", package_of(SUITE))
    with machine.on(tmp_path / "console.1") as on:
        make_volumes(on)
        on.run("echo synced >/mnt/synced; sync /mnt/synced")
        on.run(f"qemu-io -f raw -c 'write -P 7 0 1M' -c flush '{RAW}'")

    with machine.on(tmp_path / "console.2") as on:
        check_services(on)
        on.run(FSCK_RECOVERED)
        assert on.run("cat /mnt/synced") == "synced\n"
        check_raw(on, 7)
        on.run("mkdir /byhand; mount -o _netdev /dev/disk/by-label/byhand /byhand")
        on.run("echo unsynced | tee /mnt/unsynced >/byhand/unsynced")
        on.run(f"qemu-io -f raw -c 'write -P 9 0 1M' '{RAW}'")
        on.power_off()

    with machine.on(tmp_path / "console.3") as on:
        check_services(on)
        on.run("udevadm settle; mount /dev/disk/by-label/byhand /byhand")
        assert on.run("cat /mnt/unsynced /byhand/unsynced") == "unsynced\n" * 2
        on.run(f"! {FSCK_RECOVERED}")
        on.run(f"! {KERNEL_RECOVERED}")
        check_raw(on, 9)
        on.run("systemctl stop bockd; runuser -u bockd -- env XDG_DATA_HOME=/var/lib bockd check")


def make_volumes(on: Emulation) -> None:
    """Make a volume that is mounted at boot, one that is mounted by hand, one for NBD clients."""
    on.wait_until("systemctl --quiet is-active bockd")
    on.run("for name in files byhand raw; do bock volume create $name --size 64MiB; done")
    on.run(f"mkfs.ext4 -q -U {FSTAB.split()[0].removeprefix('UUID=')} $(bock connect files)")
    on.run("mkfs.ext4 -q -L byhand $(bock connect byhand)")
    on.run(f"echo '{FSTAB}' >/etc/fstab")
    on.run("systemctl daemon-reload; systemctl enable --now bock-connect@local; mount /mnt")


def check_services(on: Emulation) -> None:
    """All that boots has come up, by itself."""
    on.wait_until("[ $(systemctl is-system-running) != starting ]")
    assert on.run("systemctl --failed --no-legend") == ""
    for unit in ("bockd", "bock-connect@local", "mnt.mount", "remote-fs.target"):
        on.run(f"systemctl --quiet is-active {unit}")
    assert on.run("journalctl --boot --grep='ordering cycle' --quiet --no-pager || true") == ""


def check_raw(on: Emulation, byte: int) -> None:
    """The volume of NBD clients begins with that byte."""
    said = on.run(f"qemu-io -f raw -c 'read -P {byte} 0 1M' '{RAW}'")
    assert "failed" not in said, said
