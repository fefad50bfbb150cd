"""A machine of a release that QEMU boots from a disk of its own.

Its power can be cut at any moment; then it boots again from what its disk has by then. It has the
root of `.setup/debian-root` that booted.py has, with a package installed, and the kernel of the
guest tests.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guest.initramfs import INIT_OF_DISK, TAKE_COMMANDS, build_initramfs
from tests.guest.vm import Guest, started
from tests.packaging.booted import ENVIRONMENT, root_of
from tests.packaging.packages import needed_by
from tests.service.confined import REPOSITORY

BOOT_SECONDS = 600.0
"""The processor is emulated, and other tests may be running."""

COMMAND_SECONDS = 600.0

DISK = "4G"
"""It has holes: most of it takes no space."""

CHANNEL = f"""\
[Unit]
Description=Takes the test's commands
[Service]
Environment={" ".join(ENVIRONMENT)}
ExecStart=/usr/local/sbin/channel
[Install]
WantedBy=multi-user.target
"""

MAKE_DISK = r"""
lower=$1 room=$2 package=$3 disk=$4
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$room/upper,workdir=$room/work" "$room/root"
root=$room/root
# The console shows what went wrong, not what goes on.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nShowStatus=no\n' >"$root/etc/systemd/system.conf.d/quiet.conf"
# Nobody waits for a network: it has the loopback interface only.
ln -sf /dev/null "$root/etc/systemd/system/systemd-networkd-wait-online.service"
cp "$package" "$root/root/package.deb"
"$IN_ROOT" "$root" dpkg --install /root/package.deb
"$IN_ROOT" "$root" systemctl enable channel.service
rm "$root/root/package.deb" "$root/usr/sbin/policy-rc.d"
truncate --size="$SIZE" "$disk"
mke2fs -q -t ext4 -d "$root" "$disk"
"""
"""Runs in mounts of its own, which go with it."""


@dataclass(frozen=True)
class Emulated:
    """A machine that is off, or was."""

    disk: Path
    initramfs: Path

    @contextmanager
    def on(self, console: Path) -> Iterator[Emulation]:
        """Boot it; at the end its power is cut, unless it is off already."""
        drive = ("-drive", f"file={self.disk},format=raw,if=virtio")
        with started(self.initramfs, console, "-m", "1G", *drive) as guest:
            guest.wait_until_up(timeout_seconds=BOOT_SECONDS)
            yield Emulation(guest)


@dataclass(frozen=True)
class Emulation:
    """A machine that is on."""

    guest: Guest

    def run(self, script: str) -> str:
        """Run a script of sh there, each command of which must succeed; return what it printed."""
        return self.guest.run(f"set -e\n{script}", timeout_seconds=COMMAND_SECONDS)

    def wait_until(self, condition: str) -> None:
        """Wait until a command there succeeds. GuestError if it never does."""
        seconds = COMMAND_SECONDS / 2
        self.run(
            f"end=$(($(date +%s) + {seconds:.0f}))\n"
            f"until {condition}; do [ $(date +%s) -lt $end ] || "
            "{ systemctl --no-pager list-jobs; journalctl --no-pager --lines=40; exit 1; }; "
            "sleep 0.5; done"
        )

    def power_off(self) -> None:
        """Shut it down as its user would; return when it is off."""
        self.run("systemctl --no-block poweroff")
        self.guest.wait_until_off(timeout_seconds=BOOT_SECONDS)


def emulated(suite: str, room: Path, package: Path) -> Emulated:
    """Make a machine with a package in a new directory; it was never on."""
    lower = root_of(suite, needed_by(package))
    for name in ("upper/usr/local/sbin", "upper/etc/systemd/system", "work", "root"):
        (room / name).mkdir(parents=True)
    program = room / "upper/usr/local/sbin/channel"
    program.write_text(f"#!/bin/sh\n{TAKE_COMMANDS}")
    program.chmod(0o755)
    (room / "upper/etc/systemd/system/channel.service").write_text(CHANNEL)
    initramfs, disk = room / "initramfs", room / "disk"
    build_initramfs(room / "initramfs.d", initramfs, INIT_OF_DISK)
    own = ["unshare", "--mount", "--propagation=private", "bash", "-euc", MAKE_DISK, "disk"]
    given = {"IN_ROOT": str(REPOSITORY / ".setup" / "in-root"), "SIZE": DISK}
    subprocess.run([*own, lower, room, package, disk], env=os.environ | given, check=True)
    return Emulated(disk, initramfs)
