"""A gateway in a process of its own, which dies at the failpoint that its environment names.

    python -m tests.drivers.rbd.dying WHERE REPLICA

WHERE is a file, or settings of [rbd] as JSON. The gateway makes updates and dumps, and prints the
number of each update that was answered.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.objects import Change, NoAnswerError, Objects, Seen
from bockd.errors import UnavailableError
from bockd.failpoints import arm
from bockd.index.keys import id_key
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES

from .memory import MemoryObjects

DUMP_EVERY = 3
UPDATES = 12
LOST = (2, 7)
"""Of the changes: whose answers are lost; they are never carried out."""

LAST = b"\xff" * 9


class FileObjects:
    """Objects in a file, which outlives who uses it. Implements bockd.drivers.rbd.objects."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _opened(self) -> Iterator[MemoryObjects]:
        with open(self._path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            objects = MemoryObjects(*pickle.loads(content)) if content else MemoryObjects()
            yield objects
            file.truncate(0)
            file.write(pickle.dumps((objects.keys, objects.objects)))

    def create(self, values: Mapping[str, bytes]) -> bool:
        with self._opened() as objects:
            return objects.create(values)

    def look(self, keys: tuple[str, ...], prefix: str, after: str, limit: int) -> Seen:
        with self._opened() as objects:
            return objects.look(keys, prefix, after, limit)

    def change(self, change: Change) -> bool:
        with self._opened() as objects:
            return objects.change(change)

    def write(self, name: str, data: bytes) -> None:
        with self._opened() as objects:
            objects.write(name, data)

    def read(self, name: str, limit: int) -> bytes | None:
        with self._opened() as objects:
            return objects.read(name, limit)

    def exists(self, name: str) -> bool:
        with self._opened() as objects:
            return objects.exists(name)

    def remove(self, name: str) -> None:
        with self._opened() as objects:
            objects.remove(name)

    def names(self) -> list[str]:
        with self._opened() as objects:
            return sorted(objects.objects)


class LossyLog(Log):
    """Some appends get lost."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self.appended = 0

    def append(self, after: int, entry: bytes) -> bool:
        self.appended += 1
        if self.appended in LOST:
            raise NoAnswerError("no answer")
        return super().append(after, entry)


def add(txn: Transaction) -> int:
    """One update: the next number is there."""
    number = txn.count(VOLUMES) + 1
    txn.put(VOLUMES, id_key(number), b"volume %d" % number)
    return number


def as_text(settings: RbdSettings) -> str:
    """Settings as JSON."""
    given = {name: getattr(settings, name) for name in ("user", "pool", "namespace", "gateway")}
    files = {name: str(getattr(settings, name)) for name in ("conf_file", "keyring_file")}
    return json.dumps({**given, **files})


def settings_of(text: str) -> RbdSettings:
    """Settings from their JSON."""
    given = json.loads(text)
    for name in ("conf_file", "keyring_file"):
        given[name] = Path(given[name])
    return RbdSettings(**given)


def objects_at(where: str) -> Objects:
    """The objects in a file, or in the cluster that settings as JSON name."""
    if not where.startswith("{"):
        return FileObjects(Path(where))
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.radosobjects import RadosObjects
    from bockd.drivers.rbd.settings import index_options

    settings = settings_of(where)
    return RadosObjects(open_pool(connect(settings, index_options(settings)), settings))


def main(where: str, replica: str) -> None:
    arm(os.environ)
    objects = objects_at(where)
    index = SharedIndex.open(
        LossyLog(objects),
        Path(replica),
        run=os.urandom(8).hex(),
        clock=lambda: 0.0,
        dump_every=DUMP_EVERY,
    )
    for _ in range(UPDATES):
        try:
            print(index.update(add), flush=True)
        except UnavailableError:
            continue
        if index.dump_due:
            index.dump()
    index.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
