"""`make check` fails for a known vulnerability, and says so where nobody can be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOOD = {"name": "trio", "version": "0.35.0", "vulns": []}
SKIPPED = {"name": "lmdb", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "h11",
    "version": "0.14.0",
    "vulns": [{"id": "GHSA-vqfr-h8mv-ghfj", "fix_versions": ["0.16.0"]}],
}


def audit(directory: Path, dependencies: list[object] | None) -> subprocess.CompletedProcess[str]:
    """Run the script where pip-audit finds this; None: where it fails."""
    answer = directory / "answer.json"
    answer.write_text(json.dumps({"dependencies": dependencies}))
    stand_in = directory / "pip-audit"
    stand_in.write_text(
        "#!/bin/sh\necho 'a connection could not be made' >&2\nexit 1\n"
        if dependencies is None
        else f'#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\ncp {answer} "$2"\n'
    )
    stand_in.chmod(0o700)
    path = f"{directory}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / ".setup" / "audit"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_finding_fails(tmp_path: Path) -> None:
    done = audit(tmp_path, [GOOD, SKIPPED, BAD])
    assert done.returncode == 1
    assert "h11 0.14.0: GHSA-vqfr-h8mv-ghfj, fixed in 0.16.0" in done.stdout
    assert "NOT AUDITED, 1 of 3: lmdb" in done.stdout


def test_no_finding_passes(tmp_path: Path) -> None:
    done = audit(tmp_path, [GOOD])
    assert (done.returncode, done.stdout) == (0, "1 dependencies, no known vulnerability\n")


@pytest.mark.parametrize("dependencies", [None, [SKIPPED]])
def test_what_could_not_be_asked_is_said_loudly(
    tmp_path: Path, dependencies: list[object] | None
) -> None:
    done = audit(tmp_path, dependencies)
    assert done.returncode == 0
    assert done.stdout.startswith("NOT AUDITED: ")
    assert "no known vulnerability" not in done.stdout
