"""The packages that `make deb` has built, and later versions of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.service.confined import REPOSITORY

SUITES = {"bookworm": "debian12", "trixie": "debian13", "noble": "ubuntu24.04"}
"""Each with how its package's version ends."""


def package_of(suite: str) -> Path:
    """Return the package of a release. AssertionError unless there is one."""
    found = [*(REPOSITORY / "dist").glob(f"bockd_*~{SUITES[suite]}_*.deb")]
    assert len(found) == 1, f"{found}: run 'make deb' first"
    return found[0]


def needed_by(package: Path) -> list[str]:
    """Return the names of what a package depends on, the first one of alternatives."""
    command: list[str | Path] = ["dpkg-deb", "--field", package, "Depends"]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return sorted({re.split(r"[ |(]", each.strip())[0] for each in told.split(",")})


def repacked(package: Path, directory: Path) -> Path:
    """Make a later version of a package in a directory. It has one file more, `next`."""
    tree = directory / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    text, changed = re.subn(r"^(Version: .*)$", r"\1+1", control.read_text(), flags=re.MULTILINE)
    assert changed == 1
    control.write_text(text)
    (tree / "usr/lib/bockd/next").touch()
    newer = directory / "newer.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Znone", tree, newer], check=True)
    return newer
