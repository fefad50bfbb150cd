"""The table of clients and their releases: what `make test-clients` runs.

A new release is a line here. Each program comes from the packages of a distribution's release, in a
root that `.setup/debian-root` makes and `.setup/in-root` runs it in.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = ("qemu-utils", "qemu-block-extra", "libnbd-bin", "nbdkit", "nbd-client")
"""All of a release at once: apt is asked once for each root."""


@dataclass(frozen=True)
class Release:
    """A client in one release, and what it must say about itself."""

    client: str
    version: str
    suite: str
    """The distribution's release that has it."""

    def __str__(self) -> str:
        return f"{self.client}-{self.version}"


RELEASES = (
    Release("qemu", "7.2", "bookworm"),
    Release("qemu", "8.2", "noble"),
    Release("qemu", "10.0", "trixie"),
    Release("libnbd", "1.14", "bookworm"),
    Release("libnbd", "1.20", "noble"),
    Release("libnbd", "1.22", "trixie"),
    Release("nbdkit", "1.32", "bookworm"),
    Release("nbdkit", "1.36", "noble"),
    Release("nbdkit", "1.42", "trixie"),
    Release("nbd-client", "3.24", "bookworm"),
    Release("nbd-client", "3.26", "trixie"),
)
"""bookworm is Debian 12, trixie Debian 13, noble Ubuntu 24.04 (whose nbd-client is Debian 13's)."""

PACKAGE_OF = {
    "qemu": "qemu-utils",
    "libnbd": "libnbd-bin",
    "nbdkit": "nbdkit",
    "nbd-client": "nbd-client",
}


class Programs:
    """The programs of one release."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, suite: str) -> Programs:
        """Those of a distribution's release, whose root is made now if it is not there."""
        made = subprocess.run(
            [ROOT / ".setup" / "debian-root", suite, *PACKAGES],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return cls(Path(made.stdout.strip()))

    def run(self, *arguments: str | Path) -> str:
        """Run one that must succeed; what it prints."""
        ended = subprocess.run(
            self.command(arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
        assert ended.returncode == 0, f"{arguments}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """What runs one from here."""
        return [str(ROOT / ".setup" / "in-root"), str(self.root), *map(str, arguments)]

    def version_of(self, client: str) -> str:
        """The upstream version of a client's package."""
        shown = self.run("dpkg-query", "-W", "-f", "${Version}", PACKAGE_OF[client])
        return shown.rpartition(":")[2]
