"""A machine of a release whose first process is systemd, in a container of systemd-nspawn.

It has the kernel of this machine, a root of `.setup/debian-root` that stays in .cache, and what it
writes above that in a directory of the test. Its network is its own, and has no way out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.service.confined import REPOSITORY

PACKAGES = (
    *("systemd-sysv", "dbus", "procps", "fuse3", "qemu-utils", "libnbd-bin", "openssl"),
    *("udev", "e2fsprogs", "nbd-client"),
)

BOOT_SECONDS = 300.0

COMMAND_SECONDS = 600.0

POLL_SECONDS = 0.2

ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
)

CONTAINER = r"""
lower=$1 room=$2
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$room/upper,workdir=$room/work" "$room/root"
# Services of packages are started, as on any machine; nobody waits for a network.
rm -f "$room/root/usr/sbin/policy-rc.d"
ln -sf /dev/null "$room/root/etc/systemd/system/systemd-networkd-wait-online.service"
# systemd takes version 2 of control groups only, which some machines have beside version 1.
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
group=/sys/fs/cgroup/bockd-test-$$
mkdir "$group"
echo $$ >"$group/cgroup.procs"
systemd-nspawn --quiet --register=no --keep-unit --private-network --bind=/dev/fuse \
    --console=pipe --machine=machine --directory="$room/root" --boot && status=0 || status=$?
echo $$ >/sys/fs/cgroup/cgroup.procs
find "$group" -depth -type d -exec rmdir {} +
exit $status
"""
"""Runs in mounts of its own, which go with it."""


@dataclass(frozen=True)
class Booted:
    """A machine that is up."""

    leader: int
    """Its first process, by this machine's number."""

    def attempt(self, script: str) -> tuple[int, str]:
        """Run a script of bash there, as root; return its status and what it printed."""
        inside = ["nsenter", f"--target={self.leader}", "--all", "env", "-i", *ENVIRONMENT]
        ended = subprocess.run(
            [*inside, "bash", "-euo", "pipefail", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        return ended.returncode, ended.stdout

    def run(self, script: str) -> str:
        """Run a script there, all of which must succeed; return what it printed."""
        status, said = self.attempt(script)
        assert status == 0, f"{script}\nended with {status}:\n{said}"
        return said

    def wait_until(self, condition: str) -> None:
        """Wait until a command there succeeds. AssertionError if it never does."""
        late = (
            f"[ $SECONDS -lt {COMMAND_SECONDS // 2:.0f} ] || {{ journalctl --lines=40; exit 1; }}"
        )
        self.run(f"until {condition}; do {late}; sleep {POLL_SECONDS}; done")


def root_of(suite: str, packages: Sequence[str]) -> str:
    """Return the path of a root with a release, systemd and packages; make what is missing."""
    making = REPOSITORY / ".setup" / "debian-root"
    command: list[str | Path] = [making, suite, *PACKAGES, *packages]
    environment = os.environ | {"BOCKD_ROOT": f"systemd-{suite}"}
    told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return told.stdout.strip()


@contextmanager
def booted(
    suite: str, room: Path, packages: Sequence[str], given: Sequence[Path]
) -> Iterator[Booted]:
    """Boot a machine with packages and files of ours in its /root; shut it down at the end."""
    lower = root_of(suite, packages)
    for name in ("upper/root", "work", "root"):
        (room / name).mkdir(parents=True)
    for path in given:
        shutil.copy(path, room / "upper" / "root" / path.name)
    own = ["unshare", "--mount", "--propagation=private", "bash", "-euc", CONTAINER, "container"]
    console = room / "console"
    with (
        console.open("wb") as messages,
        subprocess.Popen(
            [*own, lower, room],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
        ) as process,
    ):
        leader = _first_process(process, console)
        try:
            machine = Booted(leader)
            machine.attempt("systemctl is-system-running --wait")
            yield machine
        finally:
            subprocess.run(["nsenter", f"--target={leader}", "--all", "systemctl", "poweroff"])
            process.wait(BOOT_SECONDS)


def _first_process(container: subprocess.Popen[bytes], console: Path) -> int:
    """Wait until systemd listens; return its number."""
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and container.poll() is None:
        for nspawn in _children(container.pid):
            for leader in _children(nspawn):
                if Path(f"/proc/{leader}/root/run/systemd/private").exists():
                    return leader
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"it did not boot:\n{console.read_text(errors='replace')}")


def _children(process: int) -> list[int]:
    return [
        int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]
