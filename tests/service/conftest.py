"""The unit as it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import program
from tests.service.confined import NOBODY


@pytest.fixture(scope="session")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `bockd serve --print-unit` prints, in a file."""
    path = tmp_path_factory.mktemp("unit") / "bockd.service"
    command = [program("bockd"), "serve", "--print-unit"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path


@pytest.fixture
def state() -> Iterator[Path]:
    """A service's state directory. Not below pytest's directory, which is its user's alone."""
    assert os.geteuid() == 0, "to confine a daemon as systemd does needs root"
    with tempfile.TemporaryDirectory(prefix="bockd-state-") as parent:
        os.chmod(parent, 0o755)
        path = Path(parent) / "bockd"
        path.mkdir(mode=0o700)
        shutil.chown(path, NOBODY, NOBODY)
        # The service's is the default directory, where a pool is made by itself; a test names it.
        subprocess.run(
            [program("bockd"), "init", path], user=NOBODY, group=NOBODY, check=True, umask=0o077
        )
        yield path
