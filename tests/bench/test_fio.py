"""What fio is trusted with: to notice data that is not what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.processes import BenchError, place, serving
from bench.servers import unix_uri
from bench.throughput import verify
from bench.turns import BenchContext, Scale
from bockd.model import MIB

SCALE = Scale(rounds=1, seconds=0.1, size_bytes=1 * MIB, repeats=0)


def verify_plugin(plugin: str, directory: Path) -> None:
    """Verify a volume of 1 MiB that an nbdkit plugin serves."""
    address = directory / "nbd.sock"
    command = ["nbdkit", "--foreground", f"--unix={address}", plugin, str(SCALE.size_bytes)]
    with serving(command, address=address, core=None, log=directory / "log"):
        verify(unix_uri("", address), SCALE, BenchContext(directory, place(), lambda _: None))


def test_data_that_a_server_keeps_is_verified(tmp_path: Path) -> None:
    verify_plugin("memory", tmp_path)


def test_data_that_a_server_forgets_fails_verification(tmp_path: Path) -> None:
    """Writes are acknowledged, and reads are zeros."""
    with pytest.raises(BenchError, match="verify"):
        verify_plugin("null", tmp_path)
