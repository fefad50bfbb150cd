"""A daemon serves NBD before it has imported the code of its HTTP frontends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .process import serving

HELD = '''
import sys

class Held:
    """Holds up whoever imports FastAPI until the FIFO has a writer."""

    def find_spec(self, name, path=None, target=None):
        if name == "fastapi":
            open({fifo!r}).close()
        return None

sys.meta_path.insert(0, Held())
'''
HEAVY = ("fastapi", "pydantic", "hypercorn")


def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the daemons that are started now wait with the import until a FIFO has a writer."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(HELD.format(fifo=str(fifo)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    return fifo


def test_nbd_is_served_before_fastapi_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connects to the API's socket in the meantime waits, and is answered."""
    with serving(tmp_path / "pool") as daemon:
        daemon.bock("volume", "create", "v", "--size", "1M")
    fifo = hold(tmp_path, monkeypatch)

    with (
        ThreadPoolExecutor() as threads,
        serving(tmp_path / "pool", is_forked=False) as daemon,
        daemon.connected("v") as client,
    ):
        client.pwrite(b"x" * 4096, 0)
        listing = threads.submit(daemon.bock, "volume", "list")
        client.flush()
        assert not listing.done()
        with fifo.open("w"):
            pass
        assert [volume["name"] for volume in listing.result()] == ["v"]


def test_a_daemon_that_imports_still_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that has the files may hang."""
    hold(tmp_path, monkeypatch)
    with serving(tmp_path / "pool", is_forked=False) as daemon:
        daemon.stop()
        daemon.start()
        assert daemon.status_of_stop_by(signal.SIGINT) == 0


def test_the_start_imports_no_http_frontend() -> None:
    """What a daemon has imported by the time that it is ready."""
    code = (
        "import sys, bockd.cli.bockd, bockd.daemon.lifecycle, bockd.daemon.localbackend\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
