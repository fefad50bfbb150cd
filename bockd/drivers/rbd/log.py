"""The log of a pool's index: what all gateways share, and the rules by which they change it.

It is the keys (omap) of one RADOS object, `index`, and objects with the pieces of dumps:

    f                  "<format> <identity>"; the identity is 32 hex digits, random for each pool
    v                  the last version, in decimal; 0 at first
    b                  the dump in force: "<version> <name> <pieces>", or "0 - 0"
    l/<16 digits>      the entry of each version after that of the dump, and of some before
    d/<name>           a dump that is not in force: "writing", or "removing"
    base.<name>.<n>    an object: a piece of a dump; its name is <16 digits>.<run>.<number>

Invariants:
* A version is made by one operation that compares `v` with the version before it. So each has one
  author, and was made by who knew all before it.
* All of a dump is written before one operation that puts it in force: that compares `b`, asks
  whether the dump is still "writing", and removes entries that are not needed any more.
* Some entries stay that the dump has. So who was refused a version can see who has it, and who is a
  little behind need not load a dump.
* The format only grows (`Log.begin_trash`). Whoever appends compares it, so code that does not know
  it neither reads nor appends anything from then on.
* Pieces are removed only of a dump that is "removing", and such a one never comes into force. So an
  operation that comes late does no harm: everything that may come late is compared with something.
* Each piece belongs to the dump in force, or to one that has a key d/. (But for a piece whose
  writer was very slow and died: it is never read.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from bockd.drivers.rbd.entries import MAX_PIECE_BYTES, NamedRecord, decode_piece, piece_name
from bockd.drivers.rbd.objects import Change, Objects
from bockd.errors import DamagedError, NotFoundError, PoolFormatError
from bockd.failpoints import Failpoint, hit

FORMAT = 1
"""Of a new log."""

FORMAT_WITH_TRASH = 2
"""1, and volumes and snapshots may be in the trash (bockd.pool.trash), which older code would
show."""

NEWEST_FORMAT = FORMAT_WITH_TRASH

READ_ENTRIES = 256
"""Entries of one look: usually less than 100 KB, at the very worst 4 GiB. (The cluster itself
gives no more than 1,024.)"""

MAX_LEFTOVERS = 64
"""Dumps that are tidied up at a time."""

_ENTRY, _DRAFT = "l/", "d/"
_WRITING, _REMOVING = b"writing", b"removing"
_HEAD = re.compile(rf"([1-{NEWEST_FORMAT}]) ([0-9a-f]{{32}})")
_ANY_HEAD = re.compile(r"(\d{1,9}) .*")
_BASE = re.compile(r"(\d{1,16}) (-|[0-9a-f.]{1,64}) (\d{1,9})")


class Base(NamedTuple):
    """A dump: the whole index as it was at one version."""

    version: int
    name: str
    pieces: int

    def encode(self) -> bytes:
        """Encode it as the value of `b`."""
        return f"{self.version} {self.name} {self.pieces}".encode()


NO_BASE = Base(0, "-", 0)
"""Before the first dump: an empty index."""


class _Head(NamedTuple):
    """The value of `f`."""

    format: int
    identity: str

    def encode(self) -> bytes:
        """Encode it as it is stored."""
        return f"{self.format} {self.identity}".encode()


class Tail(NamedTuple):
    """The log from some version on, at one instant."""

    after: int
    version: int
    """The last one."""
    base: Base
    entries: list[tuple[int, bytes]]
    """Versions and their entries, in order; perhaps not up to the last one."""


class Log:
    """The log. Its methods block; any thread may call them. All raise NoAnswerError, and what
    `Objects` raise."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._head: _Head | None = None
        """As it was seen last."""

    def create(self, identity: str) -> bool:
        """Make an empty log; `identity` is 32 random hex digits. Return False if there is one."""
        head = _Head(FORMAT, identity).encode()
        assert _HEAD.fullmatch(head.decode())
        return self._objects.create({"f": head, "v": b"0", "b": NO_BASE.encode()})

    @property
    def identity(self) -> str:
        """The random digits by which the log was made: of a log that was read."""
        return self._known_head().identity

    @property
    def format(self) -> int:
        """Its format, as this gateway knows it: of a log that was read. It never goes back."""
        return self._known_head().format

    def begin_trash(self) -> None:
        """Note that something is about to be moved to the trash: code that knows no trash refuses
        the log from then on. An answer that is lost does no harm: it is noted, or is asked again.
        Raises DamagedError, PoolFormatError."""
        while (head := self._known_head()).format < FORMAT_WITH_TRASH:
            raised = head._replace(format=FORMAT_WITH_TRASH)
            self._objects.change(Change({"f": head.encode()}, {"f": raised.encode()}))
            self._look_at_head()

    # -- entries -----------------------------------------------------------------------------

    def read(self, after: int) -> Tail:
        """Read the entries after a version; some of them, if there are many.

        Raises NotFoundError: there is no log; PoolFormatError, DamagedError.
        """
        seen = self._objects.look(("f", "v", "b"), _ENTRY, _entry_key(after), READ_ENTRIES)
        self._check_head(seen.values.get("f"))
        version = _number(seen.values, "v")
        base = _base(seen.values)
        if version < after or version < base.version:
            raise DamagedError(
                f"the index in Ceph is at version {version} and has been at "
                f"{max(after, base.version)} already: an older one was put in its place; stop all "
                "gateways of this pool before any of them goes on"
            )
        entries = [(_entry_version(key), data) for key, data in seen.listed]
        if entries and entries[-1][0] > version:
            raise DamagedError(f"the index in Ceph has entries beyond its last version, {version}")
        return Tail(after, version, base, entries)

    def append(self, after: int, entry: bytes) -> bool:
        """Append the entry of version `after` + 1. Return False if there is such a version: that of
        another gateway, or this very entry, if its answer was lost on the way; or if another
        gateway has raised the format, which the next `read` tells."""
        version = after + 1
        return self._objects.change(
            Change(
                {"f": self._known_head().encode(), "v": str(after).encode()},
                {"v": str(version).encode(), _entry_key(version): entry},
            )
        )

    # -- dumps -------------------------------------------------------------------------------

    def begin_dump(self, name: str) -> None:
        """Say that a dump is being written. A name is used once."""
        while True:
            head = self._known_head()
            if self._objects.change(Change({"f": head.encode()}, {_DRAFT + name: _WRITING})):
                return
            self._look_at_head()
            if self._known_head() == head:
                raise _replaced()

    def write_pieces(self, pieces: Iterable[tuple[str, bytes]]) -> int:
        """Write the pieces of a dump, in order. Return how many there are."""
        count = 0
        for place, data in pieces:
            self._objects.write(place, data)
            count += 1
            hit(Failpoint.DUMP_PIECE)
        return count

    def swing(self, old: Base, new: Base, keep: int) -> bool:
        """Put a dump in force whose pieces are all written, in the place of `old`, and remove the
        entries up to its version, but for the last `keep`. Return False if another one was put
        there, perhaps this very dump, if its answer was lost on the way; or if another gateway has
        raised the format, and the next dump is to be made."""
        put = {"b": new.encode()}
        if old != NO_BASE:
            put[_DRAFT + old.name] = _REMOVING
        return self._objects.change(
            Change(
                {
                    "f": self._known_head().encode(),
                    "b": old.encode(),
                    _DRAFT + new.name: _WRITING,
                },
                put,
                (_DRAFT + new.name,),
                (_entry_key(0), _entry_key(max(0, new.version - keep) + 1)),
            )
        )

    def read_dump(self, base: Base) -> Iterable[list[NamedRecord]]:
        """Yield the records of a dump, piece by piece. Raises NotFoundError: some of it is gone,
        which is right only if it is not in force any more; DamagedError, PoolFormatError."""
        for number in range(base.pieces):
            place = piece_name(base.name, number)
            data = self._objects.read(place, MAX_PIECE_BYTES + 1)
            if data is None:
                raise NotFoundError(f"the index in Ceph lacks {place}")
            yield decode_piece(place, data)

    def leftovers(self) -> list[tuple[int, str]]:
        """List the dumps that are not in force, each with its version."""
        listed = self._objects.look((), _DRAFT, _DRAFT, MAX_LEFTOVERS).listed
        names = [key.removeprefix(_DRAFT) for key, _ in listed]
        return [(int(digits), name) for name in names if (digits := name[:16]).isdecimal()]

    def discard_dump(self, name: str) -> None:
        """Remove a dump that is not in force, and see to it that it never comes into force. Does
        nothing to one that is."""
        key = _DRAFT + name
        self._objects.change(Change({key: _WRITING}, {key: _REMOVING}))
        if self._objects.look((key,), _DRAFT, _DRAFT, 1).values.get(key) != _REMOVING:
            return
        hit(Failpoint.DUMP_CLAIMED)
        count = 0
        while self._objects.exists(piece_name(name, count)):
            count += 1
        # From the last one down: who has to go on from here counts again.
        for number in reversed(range(count)):
            self._objects.remove(piece_name(name, number))
            hit(Failpoint.DUMP_PIECE_REMOVED)
        hit(Failpoint.DUMP_REMOVED)
        self._objects.change(Change({key: _REMOVING}, {}, (key,)))

    # -- what is read ------------------------------------------------------------------------

    def _known_head(self) -> _Head:
        assert self._head is not None
        return self._head

    def _look_at_head(self) -> None:
        """See which format the log has now."""
        self._check_head(self._objects.look(("f",), _ENTRY, _ENTRY, 1).values.get("f"))

    def _check_head(self, value: bytes | None) -> None:
        """Take notice of the value of `f`. One that another thread has read before may be older
        than what is known. Raises DamagedError, PoolFormatError."""
        text = _text(value, "f")
        if not (found := _HEAD.fullmatch(text)):
            if (other := _ANY_HEAD.fullmatch(text)) and int(other[1]) > NEWEST_FORMAT:
                raise PoolFormatError(
                    f"the index in Ceph has format {other[1]}, and this bockd knows "
                    f"{NEWEST_FORMAT}: a newer bockd wrote it; use that one"
                )
            raise DamagedError(f"the index in Ceph begins with {text!a}, which is no format")
        head = _Head(int(found[1]), found[2])
        if self._head is not None and self._head.identity != head.identity:
            raise _replaced()
        if self._head is None or self._head.format < head.format:
            self._head = head


def _replaced() -> DamagedError:
    return DamagedError(
        "the index in Ceph was replaced by that of another pool while this gateway ran; start "
        "bockd again if that was meant"
    )


def _entry_key(version: int) -> str:
    return f"{_ENTRY}{version:016}"


def _entry_version(key: str) -> int:
    digits = key.removeprefix(_ENTRY)
    if len(digits) != 16 or not digits.isdecimal() or not digits.isascii():
        raise DamagedError(f"the index in Ceph has a key {key!a}, which is no entry's")
    return int(digits)


def _text(value: bytes | None, key: str) -> str:
    if value is None:
        raise DamagedError(f"the index in Ceph has lost its key {key!r}")
    return value.decode("ascii", "backslashreplace")


def _number(values: dict[str, bytes], key: str) -> int:
    text = _text(values.get(key), key)
    if not text.isdecimal() or len(text) > 16:
        raise DamagedError(f"the index in Ceph has {text!a} where a version should be")
    return int(text)


def _base(values: dict[str, bytes]) -> Base:
    text = _text(values.get("b"), "b")
    if not (found := _BASE.fullmatch(text)):
        raise DamagedError(f"the index in Ceph has {text!a} where its dump should be named")
    return Base(int(found[1]), found[2], int(found[3]))
