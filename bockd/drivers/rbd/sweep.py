"""The sweep: images and snaps that no record names are removed, and deep clones flattened.

What is made in the cluster has a random name, and a commit names it later
(bockd.drivers.rbd.making); what a commit has forgotten is removed after it. A gateway that dies in
between leaves what nobody names. To take that for left over, it must be certain that nobody is
about to name it:

* The index counts generations (bockd.drivers.rbd.making). Whoever makes something has read the
  number before, and looks at it again within the change that names the thing: when `GENERATIONS`
  newer ones have begun, it gives up.
* The sweep reads the number after it has found the thing in the cluster, so its maker has read the
  same number or an older one. It begins a generation as long as it knows something that is
  unnamed, `PATIENCE.generation_seconds` after the last one, so that nobody gives up who is not very
  slow. Clocks decide nothing else: a machine may sleep, or be paused, for any time.
* When `GENERATIONS` newer ones have begun, it looks once more whether the thing is unnamed still.
  What was committed before these began, it sees. An older commit cannot come late: it compares the
  version. Its change would run again, and give up.
* Only then the thing is removed, and if it has existed for `PATIENCE.made_seconds`, as the cluster
  says. A name is never used twice, and what was unnamed once is named by nobody later, but by who
  has made it.

Only what has a name as bockd gives them is ever removed: others may keep images and snaps here.

So a thing that is named is never removed, whatever dies or hangs where, and however many gateways
sweep at once; one does, so that the cluster is asked once. That one is in the index (`SWEEPER`),
and another one takes its place when the table of gateways does not have it any more. What it has
seen is in its memory; who takes its place waits anew.

An image goes after its snaps. One that clones hang on stays, its snaps hidden, until the last of
them is gone or flattened; and one that a snapshot is of, whose volume is gone, is named. One that
cannot be opened is what is left of a removal that was cut off, or is under way: it is removed as
any other.

Everything here blocks, and may be killed anywhere: removing and flattening are done again, and do
nothing then. An image that Ceph refuses to look at, to remove or to flatten keeps no other one: its
error is raised when all others had their turn. That the cluster does not answer is raised at once.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from bockd.drivers.rbd.gateways import SHARED, gateways
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.making import GENERATIONS, begin_generation, generation
from bockd.drivers.rbd.records import (
    RbdSnapshotRecord,
    RbdVolumeRecord,
    decode_snapshot,
    decode_volume,
    put_record,
    snapshot_records,
    volume_records,
)
from bockd.errors import BockdError, UnavailableError
from bockd.failpoints import Failpoint, hit
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, sound_records

log = logging.getLogger(__name__)

SWEEPER = b"sweeper"
"""Of the table SHARED: the run that sweeps, as `NAME/RUN`."""

FULL_LOOK_EVERY = 6
"""Looks from one to the next that opens every image, to find snaps that nothing names. The others
open only images that nothing names."""


CLAIMED_AT_ONCE = 100
"""Things that are removed after one last look at the index."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long something must have been unnamed."""

    generation_seconds: float = 600.0
    """From one generation to the next. Far more than making anything takes, which fails at the next
    but one."""
    made_seconds: float = 3600.0
    """Since it was made, as the cluster says, or since it was seen first: the clocks may differ."""


PATIENCE = Patience()


class Thing(NamedTuple):
    """An image, or a snap of one."""

    image: str
    snap: str | None = None


class Seen(NamedTuple):
    """An image as it is in the cluster."""

    made_at: float
    """Seconds since the epoch, by the cluster's clock. Infinity: nothing knows any more."""
    snaps: dict[str, float]
    """When each was made; without those that are hidden, since clones hang on them."""
    is_needed: bool = False
    """It has such snaps."""


class ImageStore(Protocol):
    """The images of a namespace. Everything blocks, and raises BockdError."""

    def names(self) -> list[str]:
        """List the images."""
        ...

    def look(self, image: str) -> Seen:
        """Look at an image, or at what is left of one that cannot be opened, if anything is."""
        ...

    def remove_snap(self, image: str, snap: str) -> None:
        """Remove a snap, or hide it as long as clones hang on it."""
        ...

    def remove(self, image: str) -> bool:
        """Remove an image. Return False if it stays for now: something hangs on it."""
        ...

    def depth(self, image: str) -> int:
        """Count the snaps below an image, one below another. 0 if it is gone."""
        ...

    def flatten(self, image: str, progress: Callable[[int], None]) -> None:
        """Copy to an image all that it shows of the snaps below it, so that it needs none of them.
        `progress` is called with percents, in any thread."""
        ...


def is_made_by_bockd(name: str) -> bool:
    """Return whether an image or snap has a name as `images.new_name` gives them. What has another
    one was made by somebody else, and is left alone."""
    return re.fullmatch("[0-9a-f]{24}", name) is not None


class Named(NamedTuple):
    """What records name."""

    images: frozenset[str]
    snaps: frozenset[Thing]

    def has(self, thing: Thing) -> bool:
        """Return whether something is named."""
        return thing.image in self.images if thing.snap is None else thing in self.snaps


class Noticed(NamedTuple):
    """When something was found in the cluster that nobody names."""

    since: float
    """By the clock of `Sweep`."""
    generation: int


class Turns:
    """Images that have their turn one after the other, whatever becomes of one of them."""

    def __init__(self) -> None:
        self._refused: BockdError | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Keep an error of the `with` block for the end. Raises UnavailableError at once: the next
        image would have to wait for the cluster, too."""
        try:
            yield
        except UnavailableError:
            raise
        except BockdError as error:
            log.debug("the others have their turn nevertheless: %s", error)
            self._refused = self._refused or error

    def end(self) -> None:
        """Raise the first error that was kept: a BockdError."""
        if self._refused is not None:
            raise self._refused


class Sweep:
    """The sweep of one gateway."""

    def __init__(
        self,
        index: SharedIndex,
        store: ImageStore,
        max_depth: int,
        patience: Patience = PATIENCE,
        clock: Callable[[], float] = time.time,
        awake: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        is_ours: Callable[[str], bool] = is_made_by_bockd,
    ) -> None:
        """`clock` gives seconds since the epoch, `awake` seconds that go on while the machine
        sleeps; `is_ours` says by its name what may be removed."""
        self._is_ours = is_ours
        self._index = index
        self._store = store
        self._max_depth = max_depth
        self._patience = patience
        self._clock = clock
        self._awake = awake
        self._looks = 0
        self._first_seen: dict[Thing, Noticed] = {}
        self._generation = 0
        """As the index says."""
        self._begun_at: float | None = None
        """When this run has begun it, or has first known something that is unnamed."""
        self.stopping = False
        """Set by any thread: nothing further is begun."""
        self.flattening: str | None = None
        """What is being flattened, and how far it is."""

    def look(self) -> bool:
        """Look for what nobody names, and remove what is old enough; if it is this gateway's turn,
        else return False. Raises BockdError: what is left, the next look finds."""
        if not self._index.update(self._take_turn):
            self._first_seen.clear()
            self._begun_at = None
            return False
        turns = Turns()
        found = self._unnamed(turns, every=self._looks % FULL_LOOK_EVERY == 0)
        self._looks += 1
        self._grow_older()
        old = [thing for thing, made_at in found.items() if self._is_old(thing, made_at)]
        # Snaps first: an image goes when it has none.
        for some in batched(sorted(old, key=lambda one: one.snap is None), CLAIMED_AT_ONCE):
            self._remove(turns, some)
        self._index.tidy()
        turns.end()
        return True

    def _take_turn(self, txn: Transaction) -> bool:
        """Let this gateway be the one that sweeps, unless another one is that lives."""
        assert txn.author is not None
        sweeper = (txn.get(SHARED, SWEEPER) or b"").decode()
        if sweeper == txn.author:
            return True
        if any(sweeper == f"{one.name}/{one.run}" for one in gateways(txn)):
            return False
        txn.put(SHARED, SWEEPER, txn.author.encode())
        return True

    # -- what nobody names -------------------------------------------------------------------

    def _unnamed(self, turns: Turns, *, every: bool) -> dict[Thing, float]:
        """Find what no record names, each with when it was made. `every`: look for snaps in all
        images."""
        names = [name for name in self._store.names() if self._is_ours(name)]
        # After the list: what is in it and was named before is named in these.
        self._index.refresh()
        with self._index.reading() as txn:
            named = named_in(txn)
            self._generation = generation(txn)
        found: dict[Thing, float] = {}
        left = set(names)
        for image in names:
            if self.stopping:
                break
            if image in named.images and not every:
                continue
            with turns.one():
                unnamed = _unnamed_of(image, self._store.look(image), named)
                found.update(
                    (one, at) for one, at in unnamed if self._is_ours(one.snap or one.image)
                )
                left.remove(image)
        self._notice(found, left)
        return found

    def _notice(self, found: dict[Thing, float], left: set[str]) -> None:
        """Keep in mind what was found, and what was known before of images that were `left` out."""
        now = Noticed(self._awake(), self._generation)
        self._first_seen = {
            thing: since
            for thing, since in self._first_seen.items()
            if thing in found or thing.image in left
        }
        for thing in found:
            self._first_seen.setdefault(thing, now)

    def _grow_older(self) -> None:
        """Begin a generation if it is time to."""
        now = self._awake()
        if not self._first_seen:
            self._begun_at = None
            return
        if self._begun_at is None:
            self._begun_at = now
        if now - self._begun_at >= self._patience.generation_seconds:
            self._generation = self._index.update(_next_generation)
            self._begun_at = now
            hit(Failpoint.GENERATION_BEGUN)

    def _is_old(self, thing: Thing, made_at: float) -> bool:
        noticed = self._first_seen[thing]
        age = max(self._awake() - noticed.since, self._clock() - made_at)
        return (
            self._generation >= noticed.generation + GENERATIONS
            and age >= self._patience.made_seconds
        )

    def _remove(self, turns: Turns, things: list[Thing]) -> None:
        claimed = [] if self.stopping else self._still_unnamed(things)
        hit(Failpoint.LEFTOVER_CLAIMED)
        for thing in claimed:
            if self.stopping:
                return
            with turns.one():
                self._remove_one(thing)
            hit(Failpoint.LEFTOVER_REMOVED)

    def _remove_one(self, thing: Thing) -> None:
        if thing.snap is not None:
            self._store.remove_snap(thing.image, thing.snap)
            log.info("removed snap %s of image %s: nothing names it", thing.snap, thing.image)
        elif self._store.remove(thing.image):
            log.info("removed image %s: nothing names it", thing.image)

    def _still_unnamed(self, things: list[Thing]) -> list[Thing]:
        """Return those of some things that nobody names now, if this gateway is to sweep."""
        self._index.refresh()
        with self._index.reading() as txn:
            if not _sweeps(txn):
                return []
            named = named_in(txn)
            return [thing for thing in things if not named.has(thing)]

    # -- deep clones -------------------------------------------------------------------------

    def flatten(self) -> None:
        """Flatten the images that are deeper than they may be, if it is this gateway's turn. Raises
        BockdError: what is left is flattened later."""
        self._index.refresh()
        with self._index.reading() as txn:
            if not _sweeps(txn):
                return
            deep = {one.image for one in _sound(txn) if one.depth > self._max_depth}
        turns = Turns()
        for image in sorted(deep):
            if self.stopping:
                return
            with turns.one():
                self._flatten(image)
        turns.end()

    def _flatten(self, image: str) -> None:
        def progress(percent: int) -> None:
            self.flattening = f"image {image}, {percent} % done"

        depth = self._store.depth(image)
        if depth > self._max_depth:
            log.info("image %s is %d snaps deep, and is flattened", image, depth)
            progress(0)
            try:
                self._store.flatten(image, progress)
            finally:
                self.flattening = None
            hit(Failpoint.IMAGE_FLATTENED)
            depth = self._store.depth(image)
        self._index.update(lambda txn: _note_depth(txn, image, depth))


def batched(things: list[Thing], size: int) -> Iterator[list[Thing]]:
    """Yield them in lists of that size at most."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def named_in(txn: Transaction) -> Named:
    """Return what the records of a transaction name. Raises DamagedError."""
    records = list(_records(txn))
    return Named(
        frozenset(one.image for one in records),
        frozenset(
            Thing(one.image, one.snap) for one in records if isinstance(one, RbdSnapshotRecord)
        ),
    )


def _records(txn: Transaction) -> Iterator[RbdVolumeRecord | RbdSnapshotRecord]:
    yield from volume_records(txn)
    yield from snapshot_records(txn)


def _sound(txn: Transaction) -> Iterator[RbdVolumeRecord | RbdSnapshotRecord]:
    """Yield the records that can be read. What nobody names they do not tell."""
    yield from sound_records(txn, VOLUMES, decode_volume)
    yield from sound_records(txn, SNAPSHOTS, decode_snapshot)


def _unnamed_of(image: str, seen: Seen, named: Named) -> Iterator[tuple[Thing, float]]:
    """Yield what nobody names of an image, and nothing hangs on, with when it was made."""
    if image not in named.images and not seen.is_needed:
        yield Thing(image), seen.made_at
    for snap, made_at in seen.snaps.items():
        if (thing := Thing(image, snap)) not in named.snaps:
            yield thing, made_at


def _sweeps(txn: Transaction) -> bool:
    """Return whether it is the turn of this gateway."""
    assert txn.author is not None
    return (txn.get(SHARED, SWEEPER) or b"").decode() == txn.author


def _next_generation(txn: Transaction) -> int:
    """Begin a generation, if it is this gateway's turn. Return the one that there is then."""
    return begin_generation(txn) if _sweeps(txn) else generation(txn)


def _note_depth(txn: Transaction, image: str, depth: int) -> None:
    """Write down how deep an image is, in the records of all that are of it."""
    for record in [one for one in _sound(txn) if one.image == image and one.depth != depth]:
        put_record(txn, replace(record, depth=depth))
