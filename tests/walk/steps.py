"""The commands of README.md's walk, as they stand there, and who can run them where.

They are the indented lines of the walk's sections, a command with its continuation lines each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"

SECTIONS = ("A first walk", "The OpenStack API")

KERNEL_NBD = (
    "bock connect disk1",
    "mkfs.ext4 /dev/nbd0",
    "mount -o _netdev /dev/nbd0 /mnt",
    "umount /mnt",
)
"""Needs the kernel's NBD device: tests/guest/test_connect.py does that in a guest."""

ROOT_ONLY = ("LOOP=", "losetup ")
"""README says so there."""

IN_DIRECTORY_ONLY = ("nbdkit ", "bockd scrub")
"""What only a pool in a directory has (docs/ceph.md)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command."""

    command: str

    @property
    def daemon(self) -> bool:
        """Typed in the terminal of the daemon, which ends what runs there first."""
        return self.command.startswith("make run")

    @property
    def installs(self) -> bool:
        return self.command.startswith("sudo apt-get install ")

    @property
    def endless(self) -> bool:
        """Runs until whoever started it ends it."""
        return self.command.startswith("qemu-system") or self.command == "bock stat"

    @property
    def export(self) -> bool:
        """Changes the shell that it is typed in."""
        return "=" in self.command.removeprefix("export ").split(maxsplit=1)[0]

    def walked(self, *, root: bool, in_directory: bool = True) -> bool:
        """Whether a walk that has no kernel NBD takes it; `in_directory`: where the pool is."""
        if self.command.startswith(KERNEL_NBD):
            return False
        if not in_directory and self.command.startswith(IN_DIRECTORY_ONLY):
            return False
        return root or not self.command.startswith(ROOT_ONLY)


def steps(readme: str) -> Iterator[Step]:
    """All of them, in order."""
    for section in SECTIONS:
        text = readme.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        assert text, section
        lines = [line for line in text.splitlines() if line.startswith("    ")]
        command: list[str] = []
        for line in lines:
            command.append(line[4:])
            if not line.endswith("\\") and not _continues("\n".join(command)):
                yield Step("\n".join(command))
                command = []
        assert not command, command


def _continues(command: str) -> bool:
    """A substitution that is still open."""
    return command.count("(") != command.count(")")
