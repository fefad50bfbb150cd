"""What goes wrong when one rule of the log is left out, for the schedules to notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bockd.drivers.rbd.entries import Entry, encode_entry, encode_pieces
from bockd.drivers.rbd.index import SharedIndex, _OvertakenError
from bockd.drivers.rbd.log import Base, Log
from bockd.drivers.rbd.objects import Change, NoAnswerError
from bockd.drivers.rbd.replica import Replica
from bockd.errors import DamagedError, UnavailableError

from .memory import MemoryObjects
from .schedules import World, unanswered


class LostIsFailed(SharedIndex):
    """A change whose answer was lost is taken for one that was not made."""

    def _settle(self, version: int, error: NoAnswerError) -> None:
        raise UnavailableError("not settled") from error


class LostIsRepeated(SharedIndex):
    """A change whose answer was lost is made again, whatever became of it."""

    def _settle(self, version: int, error: NoAnswerError) -> None:
        raise _OvertakenError(self._log.read(version - 1)) from error


class RefusedIsOvertaken(SharedIndex):
    """A change that was refused is made again, though it may have been carried out before."""

    def _append(self, version: int, entry: Entry) -> None:
        try:
            if self._log.append(version - 1, encode_entry(version, entry)):
                return
        except NoAnswerError as error:
            self._settle(version, error)
        raise _OvertakenError(self._log.read(version - 1))


class RefusedIsLost(SharedIndex):
    """A change that was refused for the format that another gateway has raised is not made."""

    def _append(self, version: int, entry: Entry) -> None:
        try:
            super()._append(version, entry)
        except _OvertakenError as overtaken:
            if overtaken.tail.version < version:
                raise DamagedError("nobody has this version") from overtaken
            raise


class LeavesUnsettled(SharedIndex):
    """A change is run though one whose outcome is unknown may come after it."""

    def _append_nothing(self, replica: Replica) -> None:
        pass


class NeverFresh(SharedIndex):
    """A refresh does nothing."""

    def refresh(self) -> None:
        pass


class SwungFirst(SharedIndex):
    """A dump comes into force before it is written."""

    def _write_dump(self, replica: Replica, old: Base) -> Base:
        with replica.snapshot() as (version, records):
            if version <= old.version:
                return old
            name = f"{version:016}.{self._run}.{next(self._numbers)}"
            self._log.begin_dump(name)
            pieces = list(encode_pieces(name, records))
            new = Base(version, name, len(pieces))
            swung = self._log.swing(old, new, self._dump_every // 2)
            self._log.write_pieces(pieces)
            return new if swung else old


def _superfluous(new: Base, keep: int) -> tuple[str, str]:
    return "l/", f"l/{max(0, new.version - keep) + 1:016}"


class EntriesFirst(Log):
    """The entries are removed before the dump comes into force that makes them superfluous."""

    def swing(self, old: Base, new: Base, keep: int) -> bool:
        self._objects.change(Change({}, {}, remove_range=_superfluous(new, keep)))
        return super().swing(old, new, keep)


class PiecesFirst(Log):
    """The pieces of the dump in force are removed before the next one comes into force."""

    def swing(self, old: Base, new: Base, keep: int) -> bool:
        for number in reversed(range(old.pieces)):
            self._objects.remove(f"base.{old.name}.{number}")
        return super().swing(old, new, keep)


class OlderDump(Log):
    """A dump comes into force whatever has come into force meanwhile."""

    def swing(self, old: Base, new: Base, keep: int) -> bool:
        change = Change(
            {"d/" + new.name: b"writing"},
            {"b": new.encode()},
            ("d/" + new.name,),
            _superfluous(new, keep),
        )
        return self._objects.change(change)


class KeepsNothing(Log):
    """A dump removes all entries that it has."""

    def swing(self, old: Base, new: Base, keep: int) -> bool:
        return super().swing(old, new, 0)


class DiscardsAnyway(Log):
    """A dump that was refused is removed, though it may have come into force before."""

    def discard_dump(self, name: str) -> None:
        count = 0
        while self._objects.exists(f"base.{name}.{count}"):
            count += 1
        for number in reversed(range(count)):
            self._objects.remove(f"base.{name}.{number}")
        self._objects.change(Change({}, {}, ("d/" + name,)))


def _with_index(kind: type[SharedIndex]) -> Callable[[int, Path], World]:
    return lambda seed, directory: World(seed, directory, index_class=kind)


def _with_log(kind: type[Log]) -> Callable[[int, Path], World]:
    return lambda seed, directory: World(seed, directory, log_class=kind)


def _keeps_nothing(seed: int, directory: Path) -> World:
    return World(seed, directory, log_class=KeepsNothing, trouble=0, dump_every=20)


def _leaves_unsettled(seed: int, directory: Path) -> World:
    return replace(unanswered(seed, directory), index_class=LeavesUnsettled)


MUTATIONS: dict[str, Callable[[int, Path], World]] = {
    "KeepsNothing": _keeps_nothing,
    "LeavesUnsettled": _leaves_unsettled,
    "no comparison": lambda seed, directory: World(seed, directory, MemoryObjects(compares=False)),
    **{
        kind.__name__: _with_index(kind)
        for kind in (
            LostIsFailed,
            LostIsRepeated,
            RefusedIsOvertaken,
            RefusedIsLost,
            NeverFresh,
            SwungFirst,
        )
    },
    **{
        kind.__name__: _with_log(kind)
        for kind in (EntriesFirst, PiecesFirst, OlderDump, DiscardsAnyway)
    },
}
