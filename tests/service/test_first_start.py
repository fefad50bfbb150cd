"""The first start of a user's daemon, or a service's, that was told nothing of its directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tests.daemon.process import serving
from tests.service.confined import NOBODY


def test_a_first_start_without_any_setting(tmp_path: Path) -> None:
    """As in the README's first walk, where there is no directory yet; and as in a service, whose
    manager has made it."""
    # Not below pytest's directory, which is its user's alone.
    with tempfile.TemporaryDirectory(prefix="bockd-first-") as home:
        os.chown(home, NOBODY, NOBODY)
        data = Path(home) / "bockd"
        user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        default = ("env", "-u", "BOCKD_DATA", f"XDG_DATA_HOME={home}")
        for made in (False, True):
            if made:
                shutil.rmtree(data)
                data.mkdir(mode=0o700)
                shutil.chown(data, NOBODY, NOBODY)
            with serving(data, launcher=(*user, *default), log=tmp_path / "log") as daemon:
                assert daemon.announced[0] == f"bockd is ready. Data: {data}"
                assert daemon.bock("volume", "list") == []
