"""What the log needs of RADOS, in memory; with switches that leave out what the rules rest on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from bockd.drivers.rbd.objects import Change, NoAnswerError, NoIndexError, Seen


@dataclass
class MemoryObjects:
    """Implements bockd.drivers.rbd.objects. Every call is one step, whoever makes it."""

    keys: dict[str, bytes] | None = None
    """Of the index object; None: there is none."""
    objects: dict[str, bytes] = field(default_factory=dict)
    compares: bool = True
    """Switch: False makes changes without comparing."""
    most_listed: int = 1024
    """Switch: how many keys one look lists at most."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def create(self, values: Mapping[str, bytes]) -> bool:
        with self.lock:
            if self.keys is not None:
                return False
            self.keys = dict(values)
            return True

    def look(self, keys: tuple[str, ...], prefix: str, after: str, limit: int) -> Seen:
        with self.lock:
            found = self._found()
            listed = sorted(key for key in found if key > after and key.startswith(prefix))
            return Seen(
                {key: found[key] for key in keys if key in found},
                [(key, found[key]) for key in listed[: min(limit, self.most_listed)]],
            )

    def change(self, change: Change) -> bool:
        with self.lock:
            found = self._found()
            for key, value in change.compare.items():
                if self.compares and found.get(key, b"") != value:
                    return False
            if change.remove_range is not None:
                first, stop = change.remove_range
                for key in [key for key in found if first <= key < stop]:
                    del found[key]
            for key in change.remove:
                found.pop(key, None)
            found.update(change.put)
            return True

    def write(self, name: str, data: bytes) -> None:
        with self.lock:
            self.objects[name] = data

    def read(self, name: str, limit: int) -> bytes | None:
        with self.lock:
            data = self.objects.get(name)
            return None if data is None else data[:limit]

    def exists(self, name: str) -> bool:
        with self.lock:
            return name in self.objects

    def remove(self, name: str) -> None:
        with self.lock:
            self.objects.pop(name, None)

    def _found(self) -> dict[str, bytes]:
        if self.keys is None:
            raise NoIndexError("there is no index object")
        return self.keys


@dataclass
class LateObjects(MemoryObjects):
    """A cluster that, while told to, answers no change, and may carry it out later."""

    holding: bool = False
    held: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> bool:
        if self.holding:
            self.held.append(change)
            raise NoAnswerError("no answer")
        return super().change(change)

    def land(self) -> list[bool]:
        """Carry out what was held. Return of each change whether it was made."""
        held, self.held = self.held, []
        return [super(LateObjects, self).change(one) for one in held]
