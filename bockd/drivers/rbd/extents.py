"""Which objects of an image exist: all that is known of its holes.

An image is cut into objects of `OBJECT_BYTES`. An object that does not exist, in no parent either,
reads as zeros: it is a hole. One that exists is data, whatever it holds: librbd's Python module
tells no holes within.

What existed when an image was opened is asked once, when somebody first wants to know. From the
opening on, each write notes its objects before it is sent, so an answer that is older than the
write takes nothing back. Objects that a trim has covered are holes again, unless a write to them
was under way at any moment between its beginning and its end: which of the two came last is not
known then. So all that reads as something else than zeros is always data here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bockd.drivers.rbd.completions import Image
from bockd.model import MIB, Extent

OBJECT_BYTES = 4 * MIB
"""The size of an image's objects; librbd's own default."""


def _count(size_bytes: int) -> int:
    return -(-size_bytes // OBJECT_BYTES)


class _Trim:
    """A trim that is under way."""

    def __init__(self, covered: range) -> None:
        self.met: set[int] = set()
        """Objects to which a write was under way at the same time."""
        self._covered = covered

    def meet(self, touched: range) -> None:
        """Note a write, to these objects."""
        first = max(touched.start, self._covered.start)
        self.met.update(range(first, min(touched.stop, self._covered.stop)))


class _Write:
    """A write that is under way in a `with` block. (Each write has one: `contextmanager` takes
    three times as long.)"""

    __slots__ = ("_objects", "_touched")

    def __init__(self, objects: Objects, touched: range) -> None:
        self._objects = objects
        self._touched = touched

    def __enter__(self) -> None:
        self._objects.begin_write(self._touched)

    def __exit__(self, *_raised: object) -> None:
        self._objects.end_write(self._touched)


class Objects:
    """A byte for each object of an image: 1 if it exists, or may."""

    def __init__(self, size_bytes: int) -> None:
        self.known = False
        """Whether `learn` has been called: before that only what was written since the opening is
        in here."""
        self._size_bytes = size_bytes
        self._exists = bytearray(_count(size_bytes))
        self._writes: list[range] = []
        """Objects of each write that is under way."""
        self._trims: list[_Trim] = []

    def grow(self, size_bytes: int) -> None:
        """Follow an image that has become larger."""
        self._exists += bytes(_count(size_bytes) - len(self._exists))
        self._size_bytes = size_bytes

    def learn(self, existing: bytes | bytearray) -> None:
        """Take in which objects existed at some moment since the opening, a byte for each."""
        for number in _ones(existing):
            self._exists[number] = 1
        self.known = True

    def writing(self, offset: int, length: int) -> _Write:
        """Note the objects of a write, for as long as it is under way: in a `with` block."""
        return _Write(self, _touched(offset, length))

    def begin_write(self, touched: range) -> None:
        """Note a write to some objects, before it is sent."""
        if len(touched) == 1:
            self._exists[touched.start] = 1
        else:
            self._exists[touched.start : touched.stop] = b"\1" * len(touched)
        for trim in self._trims:
            trim.meet(touched)
        self._writes.append(touched)

    def end_write(self, touched: range) -> None:
        """Note the end of a write, whatever came of it."""
        self._writes.remove(touched)

    @contextmanager
    def trimming(self, offset: int, length: int) -> Iterator[None]:
        """Note what a trim has made holes, if it ends well."""
        covered = self._covered(offset, length)
        if not covered:
            yield
            return
        trim = _Trim(covered)
        for touched in self._writes:
            trim.meet(touched)
        self._trims.append(trim)
        try:
            yield
        finally:
            self._trims.remove(trim)
        for number in covered:
            if number not in trim.met:
                self._exists[number] = 0

    def _covered(self, offset: int, length: int) -> range:
        """Objects of which a range leaves nothing."""
        end = offset + length
        whole = end // OBJECT_BYTES if end < self._size_bytes else _count(end)
        return range(_count(offset), whole)

    def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        """Describe a range as BlockDevice.extents does, all of it unless `limit` ends it."""
        found: list[Extent] = []
        position, end = offset, offset + length
        while position < end and len(found) < limit:
            number = position // OBJECT_BYTES
            exists = self._exists[number]
            change = self._exists.find(1 - exists, number)
            stop = end if change < 0 else min(end, change * OBJECT_BYTES)
            found.append(Extent(position, stop - position, hole=not exists))
            position = stop
        return found


def existing_objects(image: Image, size_bytes: int) -> bytearray:
    """Ask which objects of an image exist, in it or in a parent: a byte for each. Blocks; it reads
    the object map, and objects only where the map is not valid."""
    found = bytearray(_count(size_bytes))

    def note(offset: int, length: int, exists: bool) -> None:
        if exists:
            touched = _touched(offset, length)
            found[touched.start : touched.stop] = b"\1" * len(touched)

    image.diff_iterate(0, size_bytes, None, note, True, True)
    return found


def _touched(offset: int, length: int) -> range:
    return range(offset // OBJECT_BYTES, _count(offset + length))


def _ones(flags: bytes | bytearray) -> Iterator[int]:
    number = flags.find(1)
    while number >= 0:
        yield number
        number = flags.find(1, number + 1)
