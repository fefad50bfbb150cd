"""The requests of a trace, sent to a server that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bockd.cli.copying import connected
from bockd.cli.issuing import Issuing, WriteData, pieces
from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import DeviceError
from bockd.model import KIB, MIB
from bockd.trace.records import Kind
from tests.nbd.server.serving import FixedExports, served
from tests.trace.samples import record


class Broken(MemoryDevice):
    """A device that cannot read its first block."""

    def try_read(self, offset: int, into: memoryview) -> bool:
        if not offset:
            raise DeviceError("this block is gone")
        return super().try_read(offset, into)


@pytest.mark.parametrize("speed", [1.0, None])
def test_a_request_that_fails_ends_the_replay(tmp_path: Path, speed: float | None) -> None:
    """With its reason, though more than the sockets hold is on its way."""
    records = [
        *(record(n, Kind.READ, MIB, 256 * KIB) for n in range(20)),
        record(20, Kind.READ, 0, 512),
        *(record(n, Kind.WRITE, MIB, MIB) for n in range(21, 200)),
    ]
    table = FixedExports({"disk": Broken(4 * MIB)})
    with (
        served(table, tmp_path / "nbd.sock") as socket,
        connected(f"nbd+unix:///disk?socket={socket}") as export,
    ):
        issuing = Issuing(export, 128, WriteData(7, MIB), speed)
        with pytest.raises(DeviceError, match="reading at byte 0 failed: this block is gone"):
            issuing.run(records)


def test_an_interrupted_replay_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a connection that has gone."""
    table = FixedExports({"disk": MemoryDevice(4 * MIB)})
    with (
        served(table, tmp_path / "nbd.sock") as socket,
        connected(f"nbd+unix:///disk?socket={socket}") as export,
    ):

        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupt)
        issuing = Issuing(export, 4, WriteData(None, 0), 1.0)
        with pytest.raises(KeyboardInterrupt):
            issuing.run([record(0), record(10**12)])


def test_what_is_too_long_is_sent_in_pieces() -> None:
    assert list(pieces(record(0, Kind.FLUSH, 0, 0))) == [(0, 0)]
    assert list(pieces(record(0, Kind.READ, 512, 32 * MIB))) == [(512, 32 * MIB)]
    assert list(pieces(record(0, Kind.WRITE, 512, 65 * MIB))) == [
        (512, 32 * MIB),
        (512 + 32 * MIB, 32 * MIB),
        (512 + 64 * MIB, MIB),
    ]
    trims = list(pieces(record(0, Kind.TRIM, 4096, 1 << 33)))
    assert sum(length for _, length in trims) == 1 << 33
    assert all(length < 1 << 32 for _, length in trims)
