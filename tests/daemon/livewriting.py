"""A client that goes on writing to a volume while it moves, and knows what it holds.

It does one request at a time, so what was answered is exactly `content`. If the daemon dies in the
middle of one, each block of that may hold the old or the new.
"""

from __future__ import annotations

import os
import select
import signal
from random import Random
from typing import Any

import nbd
import pytest

from bockd.errors import BockdError
from tests.daemon.migrating import SIZE, Two, show, volumes
from tests.daemon.process import Bockd

BLOCK = 4096
MOST_BLOCKS = 40


class Writer:
    """Writes and zeroes some blocks at random, whenever it is told to."""

    def __init__(self, daemon: Bockd, export: str, content: bytes, uri: str | None = None) -> None:
        self.content = bytearray(content)
        """What was answered."""
        self.requests = 0
        self._daemon = daemon
        self._export = export
        self._uri = uri
        self._chosen = Random(export)
        self._handle: Any = self._connected()

    def write(self) -> None:
        """Do one request. An error ends the connection."""
        length = self._chosen.randint(1, MOST_BLOCKS) * BLOCK
        offset = self._chosen.randrange((len(self.content) - length) // BLOCK + 1) * BLOCK
        data = self._chosen.randbytes(length) if self._chosen.random() < 0.8 else bytes(length)
        handle = self._handle
        try:
            if any(data):
                handle.pwrite(data, offset)
            else:
                handle.zero(length, offset)
        except nbd.Error:
            self._handle = None
            self._unsure = (offset, data)
            return
        self.content[offset : offset + length] = data
        self.requests += 1

    @property
    def connected(self) -> bool:
        return self._handle is not None

    def end(self) -> None:
        """Say goodbye."""
        if self._handle is not None:
            self._handle.shutdown()
            self._handle = None

    def connect_again(self) -> None:
        """Connect, and see what has become of a request that was not answered."""
        self._handle = self._connected()
        if self._unsure is None:
            return
        (begin, data), self._unsure = self._unsure, None
        found = bytes(self._handle.pread(len(data), begin))
        for at in range(0, len(data), BLOCK):
            old = self.content[begin + at : begin + at + BLOCK]
            assert found[at : at + BLOCK] in (old, data[at : at + BLOCK])
        self.content[begin : begin + len(data)] = found

    _unsure: tuple[int, bytes] | None = None
    """Offset and data of a request that was not answered."""

    def _connected(self) -> Any:
        if self._uri is None:
            return self._daemon.connect(self._export)
        handle = nbd.NBD()
        handle.connect_uri(self._uri)
        return handle


def run_live(two: Two, name: str, writer: Writer, wanted: Any, number: int, act: Any) -> int:
    """Move a volume in another process, while the writer writes until it is told to end. `act` is
    done before the `number`th call of the method that `wanted` names, a class and a name. Return
    the status of the process: 0 if the volume has moved, 1 for an error, -9 if it was killed."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _move(two, name, tell, wanted, number, act)
    try:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if select.select([told], [], [], 0 if writer.connected else 0.01)[0]:
                os.read(told, 1)
                writer.end()
            if writer.connected:
                writer.write()
    finally:
        os.close(told)
        os.close(tell)


def _move(two: Two, name: str, tell: int, wanted: Any, number: int, act: Any) -> None:
    """Never returns."""
    owner, method = wanted
    call, calls = getattr(owner, method), 0

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return call(*arguments, **more)

    status = 1
    try:
        setattr(owner, method, counted)
        two.migrate(name, live=True, tell=lambda _text: os.write(tell, b"."))
        status = 0
    except BockdError as error:
        print(repr(error), flush=True)
    finally:
        os._exit(status)


def die() -> None:
    """End this process as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def press_ctrl_c(_text: str) -> None:
    """What a user does who does not want to wait."""
    raise KeyboardInterrupt


def interrupt(two: Two, name: str) -> None:
    """Stop a live move where it waits for a client: there is a target, and the source is used."""
    with two.here.connected(name), pytest.raises(KeyboardInterrupt):
        two.migrate(name, live=True, tell=press_ctrl_c)
    two.here.wait_until_unused(name)


def assert_usable_or_held(two: Two, name: str) -> bool:
    """What an interrupted move leaves: its source as it was, or held for the last changes. Return
    whether it has moved."""
    source = show(two.here, name)
    hold = source.hold or ""
    if not hold.startswith("migrat"):
        assert source.status in ("available", "in-use")
    return hold.startswith("migrated")


def assert_nothing_left(two: Two, name: str) -> None:
    """After a cancel: the source, and nothing more."""
    assert volumes(two.there) == []
    assert show(two.here, name).status == "available"
    assert show(two.here, name).size_bytes >= SIZE
    with two.here.storage() as storage:
        assert storage.list_snapshots() == []
        assert storage.limits()["totalSnapshotsUsed"] == 0
