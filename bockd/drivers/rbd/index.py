"""The index of a pool in Ceph: a log that all gateways share, and a replica of it on this machine.

Reading is local: it sees the replica, at one instant. `refresh` brings to the replica what anybody
has committed before. `update` appends to the log, and its author is the first to have it applied.

Invariants:
* The replica holds the log up to its version, and nothing else: an entry is committed to it after
  it is in the log. If that fails, the replica is not read any more until a new one is made.
* A change is run on a replica that is at the very version which its entry follows. When another
  gateway was first, the change is run again, on top of that.
* `update` returns only if the log has the change, and raises only if it never will; or it raises
  OutcomeUnknownError.
* What a change is run on is final: no entry that this run has sent before comes later. So a change
  that finds nothing to do may rest on that.
* What is damaged in the log is refused, and nothing after it is used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from bockd.drivers.rbd.entries import Entry, decode_entry, encode_entry, encode_pieces
from bockd.drivers.rbd.log import Base, Log, Tail
from bockd.drivers.rbd.objects import NoAnswerError, NoIndexError
from bockd.drivers.rbd.replica import (
    Replica,
    ReplicaError,
    ReplicaTransaction,
    remove_replicas,
)
from bockd.drivers.rbd.turns import Turns
from bockd.errors import (
    BockdError,
    ClusterUnavailableError,
    DamagedError,
    DeviceError,
    NoSpaceError,
    NotFoundError,
)
from bockd.failpoints import Failpoint, hit

log = logging.getLogger(__name__)
T = TypeVar("T")

DUMP_EVERY = 1000
"""Versions from one dump to the next. A start reads the last dump and about so many entries."""

MAX_ENTRIES = 100_000
"""Entries of the log while a full cluster takes no dump. Ceph warns of 200,000 keys an object."""

ATTEMPTS = 100
"""Of one update, when other gateways commit before it each time."""

TURN_SECONDS = 60.0
"""How long one waits for those who follow or change the index before it. Each takes milliseconds,
or some 20 s while the cluster does not answer."""

LOADS = 10
"""Dumps that are replaced by newer ones while they are loaded; a thousand commits lie between."""


class OutcomeUnknownError(ClusterUnavailableError):
    """The cluster did not answer, so whether the change was made is not known, and it may be made
    later, until the next `update` begins. What the change names in the cluster must stay there."""


class _OvertakenError(Exception):
    """Another gateway has committed first."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail


class SharedIndex:
    """Implements bockd.pool.index.Index, for one gateway. Every method may be called by any thread;
    all but `reading` and `examining` block."""

    def __init__(
        self,
        shared: Log,
        directory: Path,
        run: str,
        clock: Callable[[], float],
        dump_every: int = DUMP_EVERY,
    ) -> None:
        """`directory` is for replicas alone; `run` is 16 hex digits, random for each run."""
        self._log = shared
        self._directory = directory
        self._run = run
        self._clock = clock
        self._dump_every = dump_every
        self.author: str | None = None
        """What transactions say of who makes their changes. It is set once, at the start."""
        self._numbers = count(1)
        """Of all that this run sends: entries and dumps."""
        self._replica: Replica | None = None
        """None: it fell behind the log, and a new one could not be made yet."""
        self._base_version = 0
        """Of the dump in force, when the log was last read."""
        self._dump_due = False
        self._unsettled = 0
        """The last version that was sent, and may come later."""
        self._try_again_at = 0
        """The version before which `update` itself makes no dump, since the cluster is full."""
        self._writing = Turns("changing the index in Ceph", TURN_SECONDS)
        """Who changes the replica, or puts another one in its place, has it."""
        self._dumping = threading.Lock()

    @classmethod
    def open(
        cls,
        shared: Log,
        directory: Path,
        *,
        run: str,
        clock: Callable[[], float],
        dump_every: int = DUMP_EVERY,
    ) -> SharedIndex:
        """Read the whole log into a new replica, in the place of those in the directory. Raises
        NotFoundError: there is no log; DamagedError, PoolFormatError, UnavailableError."""
        remove_replicas(directory)
        index = cls(shared, directory, run, clock, dump_every)
        with index._writing:
            index._renew(0)
        return index

    def close(self) -> None:
        """Remove the replica as soon as nobody reads it."""
        with self._writing:
            self._put_in_place(None)

    @property
    def identity(self) -> str:
        """What names the pool for good: 32 hex digits, random. For any thread."""
        return self._log.identity

    # -- reading -----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[ReplicaTransaction]:
        """Begin a read transaction of the replica. See the contract. Raises DeviceError while the
        replica is behind, because this machine could not write it."""
        replica = self._enter()
        try:
            with replica.reading() as txn:
                txn.author = self.author
                yield txn
        finally:
            replica.leave()

    def examining(self) -> AbstractContextManager[ReplicaTransaction]:
        """See the contract. What is damaged in the log was refused before it came here."""
        return self.reading()

    def _enter(self) -> Replica:
        while (replica := self._replica) is not None:
            if replica.enter():
                return replica
        raise DeviceError(
            f"the copy of the index in {self._directory} could not be written, so it is not read; "
            "this is tried again with each request: bockd's log says why it failed"
        )

    def refresh(self) -> None:
        """Bring the replica up to what anybody has committed before this call. Blocks. Raises
        UnavailableError, DamagedError, PoolFormatError; DeviceError or NoSpaceError of this
        machine."""
        with _still_there():
            tail = self._read_on()
            self._note_base(tail)
            replica = self._replica
            if replica is None or replica.version < tail.version:
                with self._writing:
                    self._follow(tail)

    def _read_on(self) -> Tail:
        """The log from the replica's version on."""
        replica = self._replica
        return self._log.read(0 if replica is None else replica.version)

    # -- following the log -------------------------------------------------------------------

    def _follow(self, tail: Tail) -> Replica:
        """Bring the replica to a version of the log that was read; return it. Holds `_writing`."""
        replica = self._replica
        if replica is None or not self._catch_up(replica, tail):
            replica = self._renew(tail.version)
        return replica

    def _catch_up(self, replica: Replica, tail: Tail) -> bool:
        """Bring a replica to the version of a tail that was read. False: what follows its version
        was removed, since there is a newer dump."""
        goal = tail.version
        while True:
            self._note_base(tail)
            if replica.version >= goal:
                return True
            if tail.after == replica.version:
                first = tail.entries[0][0] if tail.entries else 0
                if first != replica.version + 1 and replica.version < tail.base.version:
                    return False
                self._apply(replica, tail)
            if replica.version < goal:
                tail = self._log.read(replica.version)

    def _renew(self, goal: int) -> Replica:
        """Put a new replica in place, made of a dump and what follows it up to a version. Readers
        go on with the old one until then."""
        for _ in range(LOADS):
            tail = self._log.read(0)
            replica = Replica.create(self._directory / str(next(self._numbers)))
            try:
                done = self._load(replica, tail.base) and self._catch_up(replica, tail)
            except BaseException:
                replica.retire()
                raise
            if done and replica.version >= goal:
                self._put_in_place(replica)
                return replica
            replica.retire()
            if done:
                raise _lost(goal, tail)
        raise ClusterUnavailableError(
            "the index in Ceph changes faster than this gateway can load it"
        )

    def _load(self, replica: Replica, base: Base) -> bool:
        """Fill a new replica from a dump. False: the dump is not in force any more."""
        try:
            replica.load(base.version, self._log.read_dump(base))
        except NotFoundError as error:
            if self._log.read(0).base == base:
                raise DamagedError(f"{error}, and what it holds is nowhere else") from error
            return False
        hit(Failpoint.SHARED_LOADED)
        return True

    def _apply(self, replica: Replica, tail: Tail) -> None:
        """Apply the entries that follow the replica's version: one at least."""
        entries = []
        for expected, (version, data) in enumerate(tail.entries, replica.version + 1):
            if version != expected:
                raise _lost(expected, tail)
            entries.append((version, decode_entry(version, data)))
        if not entries:
            raise _lost(replica.version + 1, tail)
        with self._giving_up(replica):
            replica.apply(entries)

    @contextmanager
    def _giving_up(self, replica: Replica) -> Iterator[None]:
        """Stop reading a replica that could not be written: LMDB may take nothing more then."""
        try:
            yield
        except ReplicaError:
            if replica is self._replica:
                self._put_in_place(None)
            raise

    def _put_in_place(self, replica: Replica | None) -> None:
        old, self._replica = self._replica, replica
        if old is not None:
            old.retire()

    # -- changing ----------------------------------------------------------------------------

    def update(self, change: Callable[[ReplicaTransaction], T]) -> T:
        """Run `change` on what all gateways have committed, and append what it changes to the log.
        It runs again when another gateway was first.

        Raises UnavailableError: nothing was changed; OutcomeUnknownError; NoSpaceError: the cluster
        is full; InvalidRequestError: more was changed than fits an entry; DamagedError,
        PoolFormatError. What `change` raises passes through.
        """
        with _still_there(), self._writing:
            tail = self._read_on()
            for _ in range(ATTEMPTS):
                replica = self._follow(tail)
                self._make_room(replica)
                try:
                    if replica.version < self._unsettled:
                        self._append_nothing(replica)
                        replica = self._follow(self._read_on())
                    return self._attempt(replica, change)
                except _OvertakenError as overtaken:
                    tail = overtaken.tail
        raise ClusterUnavailableError(
            f"other gateways changed the index {ATTEMPTS} times before this one could; try again"
        )

    def begin_trash(self) -> None:
        """Have gateways of a bockd that knows no trash refuse the index. Blocks."""
        with _still_there():
            self._log.begin_trash()

    def _append_nothing(self, replica: Replica) -> None:
        """Take the next version by an empty entry: what was sent for it cannot come any more."""
        self._attempt(replica, lambda _txn: None, appends_nothing=True)

    def _attempt(
        self,
        replica: Replica,
        change: Callable[[ReplicaTransaction], T],
        *,
        appends_nothing: bool = False,
    ) -> T:
        appended = False
        version = replica.version + 1
        try:
            with self._giving_up(replica), replica.writing() as txn:
                txn.author = self.author
                result = change(txn)
                changes = txn.changes
                if not (changes or appends_nothing):
                    return result
                hit(Failpoint.SHARED_CHANGED)
                self._append(version, self._entry(changes))
                appended = True
                hit(Failpoint.SHARED_APPENDED)
                txn.set_version(version)
        except BockdError as error:
            if isinstance(error, OutcomeUnknownError):
                self._unsettled = version
            if not appended:
                raise
            self._replace(version, error)
        hit(Failpoint.SHARED_COMMITTED)
        if version % self._dump_every == 0:
            self._dump_due = True
        return result

    def _entry(self, changes: list[tuple[bytes, bytes, bytes | None]]) -> Entry:
        return Entry(self._run, next(self._numbers), self._clock(), changes)

    def _append(self, version: int, entry: Entry) -> None:
        """Append the entry of a version. Raises _OvertakenError: another one has the version, or
        the format is another one, and this entry never will; UnavailableError: it never will,
        either; OutcomeUnknownError."""
        known = self._log.format
        try:
            if self._log.append(version - 1, encode_entry(version, entry)):
                return
        except NoAnswerError as error:
            hit(Failpoint.SHARED_UNANSWERED)
            self._settle(version, error)
        # Two answers may be missing: that of the log to us, and within the cluster that to an
        # operation which is then repeated, and finds itself carried out.
        try:
            tail = self._log.read(version - 1)
            if tail.version < version and self._log.format != known:  # which never goes back
                raise _OvertakenError(tail)
            author = self._author(version, tail)
        except OutcomeUnknownError:
            raise
        except BockdError as error:
            raise _unknown(error) from error
        if author != (entry.author, entry.number):
            raise _OvertakenError(tail)

    def _settle(self, version: int, error: NoAnswerError) -> None:
        """Take a version by an empty entry, so that the one that was sent cannot come later. Return
        when some entry has the version already."""
        try:
            taken = self._log.append(version - 1, encode_entry(version, self._entry([])))
        except BockdError as second:
            raise _unknown(second) from error
        if taken:
            hit(Failpoint.SHARED_SETTLED)
            raise ClusterUnavailableError(
                f"the index in Ceph was not changed: {error}; try again"
            ) from error

    def _author(self, version: int, tail: Tail) -> tuple[str, int]:
        """Who has written a version that must be there."""
        if not tail.entries or tail.entries[0][0] != version:
            if tail.base.version >= version:
                raise _unknown("other gateways have changed it very often since")
            raise _lost(version, tail)
        entry = decode_entry(*tail.entries[0])
        return entry.author, entry.number

    def _replace(self, version: int, error: BockdError) -> None:
        """Make a new replica: the log has a version that could not be committed to this one."""
        log.warning("%s; a new copy of the index is made", error)
        self._put_in_place(None)
        try:
            self._renew(version)
        except BockdError as second:
            log.warning("%s; what is in the index cannot be read until then", second)

    # -- dumps -------------------------------------------------------------------------------

    @property
    def dump_due(self) -> bool:
        """Whether this gateway should call `dump` soon: it has committed a version that is a
        multiple of DUMP_EVERY, or whoever did has not dumped."""
        return self._dump_due

    def dump(self) -> None:
        """Write the index as it is into the cluster, and remove most of the entries before that,
        and dumps that are not in force. Does nothing but the last if another gateway has just
        dumped. Blocks; other methods go on meanwhile. Raises UnavailableError, NoSpaceError: the
        log is whole, and the next dump tidies up."""
        with self._dumping:
            base = self._read_on().base
            replica = self._enter()
            try:
                base = self._write_dump(replica, base)
            finally:
                replica.leave()
            self._base_version = base.version
            self._dump_due = False
            self._discard_up_to(base.version)

    def tidy(self) -> None:
        """Remove what dumps that came to nothing have left, which `dump` does otherwise. Blocks.
        Raises UnavailableError."""
        with self._dumping:
            self._discard_up_to(self._read_on().base.version)

    def _discard_up_to(self, last: int) -> None:
        for version, name in self._log.leftovers():
            if version <= last:
                self._log.discard_dump(name)

    def _write_dump(self, replica: Replica, old: Base) -> Base:
        """Write a dump of a replica, and put it in force; return the one in force."""
        with replica.snapshot() as (version, records):
            if version <= old.version:
                return old
            name = f"{version:016}.{self._run}.{next(self._numbers)}"
            self._log.begin_dump(name)
            hit(Failpoint.DUMP_BEGUN)
            try:
                pieces = self._log.write_pieces(encode_pieces(name, records))
            except NoSpaceError:
                self._log.discard_dump(name)
                raise
        hit(Failpoint.DUMP_WRITTEN)
        new = Base(version, name, pieces)
        if self._log.swing(old, new, self._dump_every // 2):
            hit(Failpoint.DUMP_SWUNG)
            return new
        self._log.discard_dump(name)
        return self._log.read(version).base

    def _note_base(self, tail: Tail) -> None:
        """Take notice of the dump in force. Of an old one, if the tail was read long ago."""
        self._base_version = max(self._base_version, tail.base.version)
        entries = tail.version - self._base_version
        if entries < self._dump_every // 2:
            self._dump_due = False
        elif entries > self._dump_every * 3 // 2:
            self._dump_due = True

    def _make_room(self, replica: Replica) -> None:
        """Dump at once where nobody has dumped for long, so that the log stays short."""
        entries = replica.version - self._base_version
        if entries < 2 * self._dump_every or replica.version < self._try_again_at:
            return
        try:
            self.dump()
        except NoSpaceError as error:
            # What frees space must go on.
            if entries >= MAX_ENTRIES:
                raise
            log.warning("the index in Ceph was not dumped: %s", error)
            self._try_again_at = replica.version + self._dump_every // 2


@contextmanager
def _still_there() -> Iterator[None]:
    """That a log which was read is gone must not look like a volume that nobody has."""
    try:
        yield
    except NoIndexError as error:
        raise DamagedError(
            "the index of the pool is gone from the Ceph cluster; this gateway served it until now"
        ) from error


def _lost(version: int, tail: Tail) -> DamagedError:
    return DamagedError(
        f"the index in Ceph has lost its version {version}: it has a dump of version "
        f"{tail.base.version} and says that its last version is {tail.version}; nothing after the "
        "gap is used"
    )


def _unknown(reason: object) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"whether the index in Ceph was changed is not known ({reason}); look before you try again"
    )
