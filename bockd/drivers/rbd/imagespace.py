"""What one image takes: the bytes of its objects, by which of its snaps show them.

An image has *points*: its snaps in order, then its head. An object that was written at one point is
shown by all that follow, up to the one before which it was written again or trimmed. So each
version of an object belongs to a *run* of points, and of an image it is enough to know how many
bytes each run has. librbd tells it by comparing each point with the one before (fast-diff, as
`rbd du` does): it reads a map of objects, and no data. An object counts as a whole.

Snaps that Ceph keeps hidden, because clones hang on them whose snapshot was deleted, cannot be
compared with others: what only they have is in no run, as it is in no figure of `rbd du`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.connection import CommonConnection
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.extents import OBJECT_BYTES
from bockd.drivers.rbd.images import looking_at
from bockd.errors import NotFoundError

R = TypeVar("R", bound=int)

Objects = dict[int, tuple[int, bool]]
"""By the offset of each object: its length, and whether it exists."""

HEAD = None
"""The point that is not a snap."""


@dataclass(frozen=True, slots=True)
class ImageSpace:
    """An image, as it was at some time while it was looked at."""

    name: str
    points: tuple[str | None, ...] = ()
    """Its snaps in order, and HEAD. Empty: the image is not there."""
    runs: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Bytes of the objects that are shown from one point to another one, by their numbers."""
    own: Mapping[str | None, int] = field(default_factory=dict)
    """What each point shows of the image itself."""
    below: Mapping[str | None, int] = field(default_factory=dict)
    """What each point shows of the images below."""
    parent: tuple[str, str] | None = None
    """The image and the snap that this one is a clone of."""
    hidden_snaps: int = 0

    @property
    def taken_bytes(self) -> int:
        """All that it takes, but for what only hidden snaps have."""
        return sum(self.runs.values())

    def sole_bytes(self, among: Collection[str | None]) -> Counter[str | None]:
        """Return what each of some points shows of the image itself, and no other of them."""
        numbers = [number for number, one in enumerate(self.points) if one in among]
        found: Counter[str | None] = Counter()
        for (first, last), taken in self.runs.items():
            at = bisect_left(numbers, first)
            if bisect_right(numbers, last) - at == 1:
                found[self.points[numbers[at]]] += taken
        return found

    def bytes_by_rank(self, ranks: Mapping[str | None, R]) -> Counter[R]:
        """Return what some points show of the image itself, by their ranks: an object counts for
        the least rank that shows it."""
        found: Counter[R] = Counter()
        for (first, last), taken in self.runs.items():
            shown = [ranks[one] for one in self.points[first : last + 1] if one in ranks]
            if shown:
                found[min(shown)] += taken
        return found

    def freed_bytes(self, snaps: Collection[str]) -> int:
        """Return what the removal of some of its snaps frees, while the image stays."""
        freed, first = 0, 0
        for number, point in enumerate(self.points):
            if point not in snaps:
                first = number + 1
            else:
                freed += sum(
                    self.runs.get((start, number), 0) for start in range(first, number + 1)
                )
        return freed


def look_at_space(images: CommonConnection, name: str) -> ImageSpace:
    """Look what an image takes; nothing if it is not there. Blocks. Raises BockdError."""
    with images.use() as (_, ioctx):
        try:
            return _look(ioctx, name)
        except NotFoundError:  # removed since it was named; a check tells of one that is missing
            return ImageSpace(name)


def _look(ioctx: rados.Ioctx, name: str) -> ImageSpace:
    with looking_at(ioctx, name) as image:
        listed = sorted(image.list_snaps(), key=lambda one: one["id"])
        parent = _parent(image)
    snaps = [
        str(one["name"]) for one in listed if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER
    ]
    points: tuple[str | None, ...] = (*snaps, HEAD)
    runs: Counter[tuple[int, int]] = Counter()
    own: dict[str | None, int] = {}
    below: dict[str | None, int] = {}
    shown: dict[int, tuple[int, int]] = {}  # by offset: since which point, and the length
    for number, point in enumerate(points):
        with looking_at(ioctx, name, point) as image:
            size = image.size()
            changed = differing(image, size, points[number - 1] if number else None)
            everything = size_of(differing(image, size, None, parents=True)) if parent else 0
        for offset, (length, exists) in changed.items():
            if offset in shown:
                first, taken = shown.pop(offset)
                runs[first, number - 1] += taken
            if exists:
                shown[offset] = number, length
        own[point] = sum(length for _, length in shown.values())
        below[point] = max(0, everything - own[point])
    for first, length in shown.values():
        runs[first, len(points) - 1] += length
    return ImageSpace(name, points, runs, own, below, parent, len(listed) - len(snaps))


def differing(
    image: rbd.Image, size_bytes: int, since: str | None, *, parents: bool = False
) -> Objects:
    """Return the objects of an image that exist, or that differ from an earlier snap of it; with
    `parents` those of the images below, too. Blocks."""
    found: Objects = {}

    def note(offset: int, length: int, exists: bool) -> None:
        for start in range(offset, offset + length, OBJECT_BYTES):
            found[start] = min(OBJECT_BYTES, offset + length - start), exists

    with named("comparing the objects of an image"):
        image.diff_iterate(0, size_bytes, since, note, parents, True)
    return found


def size_of(objects: Objects) -> int:
    """Sum the objects that exist."""
    return sum(length for length, exists in objects.values() if exists)


def _parent(image: rbd.Image) -> tuple[str, str] | None:
    try:
        found = image.get_parent_image_spec()
    except rbd.ImageNotFound:
        return None
    return str(found["image_name"]), str(found["snap_name"])
