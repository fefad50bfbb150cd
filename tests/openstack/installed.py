"""OpenStack's own clients as `.setup/openstack-clients` installs them, run against some daemon."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parents[2] / ".cache" / "openstack-clients"

ENDS_WITHIN_SECONDS = 120
"""On a busy machine; a client that waits for itself never ends."""


def assert_installed() -> None:
    """Fail if they are not there."""
    assert PLACE.exists(), "the clients are not installed; run: make test-openstack-clients"


@dataclass(frozen=True)
class Clients:
    """Clients with a home of their own, and what `bock credentials --shell` says of a daemon."""

    home: Path
    variables: dict[str, str]

    def run(
        self, program: str, *arguments: str | Path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a client to its end. TimeoutExpired when it does not come to one."""
        quiet = {"PYTHONWARNINGS": "ignore", "HOME": str(self.home)}
        return subprocess.run(
            [PLACE / program, *arguments],
            env={"PATH": os.environ["PATH"], **quiet, **self.variables, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN_SECONDS,
            check=False,
        )

    def openstack(self, *arguments: str, **more: str) -> Any:
        """Return what `openstack` answers, as JSON."""
        done = self.run("today/bin/openstack", *arguments, "-f", "json", **more)
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def cinder(self, *arguments: str) -> str:
        """Return what the `cinder` of version 1 prints; it must succeed."""
        done = self.run("version1/bin/cinder", "--os-volume-api-version", "1", *arguments)
        assert done.returncode == 0, done
        return done.stdout


def variables(shell: str) -> dict[str, str]:
    """Read what `bock credentials --shell` prints."""
    lines = shell.splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)
