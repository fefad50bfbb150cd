"""Gateways' views of one index, over objects in memory that fail as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bockd.drivers.rbd.entries import Entry, decode_entry
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.objects import Change, NoAnswerError
from bockd.drivers.rbd.replica import ReplicaTransaction
from bockd.pool.nodes import NAMES

from .memory import MemoryObjects

IDENTITY = "0" * 32
LAST = b"\xff" * 9

Open = Callable[[str], SharedIndex]


class Unruly(MemoryObjects):
    """A cluster that fails as it is told."""

    next_changes: list[Exception | str]
    """For each next change: an error, raised before it is carried out or, with "done", after."""

    def __init__(self) -> None:
        super().__init__()
        self.next_changes = []
        self.changes = 0

    def change(self, change: Change) -> bool:
        self.changes += 1
        order = self.next_changes.pop(0) if self.next_changes else "go"
        if isinstance(order, Exception):
            raise order
        made = super().change(change)
        if order == "done":
            raise NoAnswerError("no answer")
        return made


def unruly() -> Unruly:
    """Return one with an empty index."""
    objects = Unruly()
    Log(objects).create(IDENTITY)
    return objects


def gateways(objects: Unruly, tmp_path: Path) -> Iterator[Open]:
    """Yield what opens a gateway; its argument is a digit for its run. Close them in the end."""
    opened: list[SharedIndex] = []

    def open_one(digit: str) -> SharedIndex:
        opened.append(
            SharedIndex.open(
                Log(objects), tmp_path / digit, run=digit * 16, clock=lambda: 5.0, dump_every=10
            )
        )
        return opened[-1]

    yield open_one
    for index in opened:
        index.close()


def put(key: bytes, value: bytes) -> Callable[[ReplicaTransaction], None]:
    return lambda txn: txn.put(NAMES, key, value)


def names(index: SharedIndex) -> dict[bytes, bytes]:
    with index.reading() as txn:
        return dict(txn.scan(NAMES, b"", LAST))


def keys(objects: MemoryObjects) -> dict[str, bytes]:
    assert objects.keys is not None
    return objects.keys


def entry(objects: MemoryObjects, version: int) -> Entry:
    return decode_entry(version, keys(objects)[f"l/{version:016}"])
