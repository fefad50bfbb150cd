"""Bringing the target of a migration from one snapshot of the source to the next.

The first one is copied whole. Of a later one only what has changed is, since all else is there. So
the older one is kept until the later one is copied; `Progress` names both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Self

from bockd.cli.convert import Show
from bockd.cli.copying import connected
from bockd.cli.crossing import Ranges, compare, copy_across, joined, lengths, reached
from bockd.cli.leftovers import delete_leftovers, found_by_name
from bockd.cli.migrationtarget import Target
from bockd.cli.records import Snapshot, Volume, local_uri
from bockd.cli.silence import NBD_QUESTION, telling_silence
from bockd.cli.storage import StorageClient
from bockd.errors import DamagedError, NoSpaceError, NotFoundError
from bockd.model import split_export_uri
from bockd.nbd.client import Export

Bar = Callable[[str, int], AbstractContextManager[Show]]
"""Shows how far something is: its title, and its bytes."""


class Filling:
    """A target, for as long as one run is connected to it. Every method raises BockdError."""

    def __init__(
        self, here: StorageClient, source: Volume, target: Target, bar: Bar, *, verify: bool
    ) -> None:
        """Take the target from an earlier run, and delete snapshots that it has left unused."""
        self._here = here
        self._target = target
        self._source = source.id
        self._name = source.name
        self._bar = bar
        self._verify = verify
        self._compared = False
        """Whether all that the target holds was compared in this run."""
        self._way = target.take()
        delete_leftovers(here, source.id, keep=target.progress.needed)
        self._export = reached(self._way, target.trust)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._export.__exit__(*exception)

    def go_on(self) -> None:
        """Finish what an interrupted run was at, and compare all of it. Otherwise do nothing."""
        if (begun := self._target.progress.snapshot) is not None:
            self._copy(self._found(begun))

    def bring_to(self, snapshot: Snapshot) -> int:
        """Make the target hold what a snapshot holds, and compare that; then delete older ones of
        the same volume. Return how much was copied, in bytes."""
        progress = self._target.progress
        if progress.snapshot is not None and progress.snapshot != snapshot.name:
            if progress.snapshot != progress.base:
                self.go_on()
            progress = replace(self._target.progress, copied=0)
        self._target.note(replace(progress, snapshot=snapshot.name))
        copied = self._copy(snapshot)
        delete_leftovers(self._here, self._source, keep={snapshot.name})
        return copied

    def _copy(self, snapshot: Snapshot) -> int:
        self._grow_to(snapshot.size_bytes)
        ranges = self._missing(snapshot)
        with self._reading(snapshot) as source:
            if self._target.progress.base != snapshot.name:
                self._copy_ranges(source, snapshot, ranges)
            self._compare(source, ranges)
        return lengths(ranges)

    def _copy_ranges(self, source: Export, snapshot: Snapshot, ranges: Ranges) -> None:
        before = self._target.progress
        is_blank = before.base is None

        def note(copied: int) -> None:
            base = snapshot.name if copied >= snapshot.size_bytes else before.base
            self._target.note(replace(before, copied=copied, base=base))

        doing = "migrating" if is_blank else "following"
        with self._shown(doing, ranges) as show, _told_of_room():
            copy_across(source, self._export, ranges, show, note, blank=is_blank)

    def _missing(self, snapshot: Snapshot) -> Ranges:
        """What the target lacks of a snapshot, which its progress names."""
        progress = self._target.progress
        if progress.base == snapshot.name:
            return ()
        if progress.base is None:
            return ((progress.copied, snapshot.size_bytes - progress.copied),)
        base = self._found(progress.base)
        return joined(self._here.changes(base.id, snapshot.id, progress.copied))

    def _found(self, name: str) -> Snapshot:
        found = found_by_name(self._here, self._source, name)
        if found is None:
            raise NotFoundError(f"snapshot {name} is gone; run the command again to begin anew")
        return found

    def _compare(self, source: Export, ranges: Ranges) -> None:
        """Compare what was copied now, or everything if that was not done in this run."""
        if not self._verify:
            return
        if not self._compared:
            ranges = ((0, source.size_bytes),)
        try:
            with self._shown("comparing", ranges) as show:
                compare(source, self._export, ranges, show)
        except DamagedError as error:
            # Nobody knows what else it holds: not as it was left (`Target.is_as_left`).
            self._target.note(replace(self._target.progress, way=""))
            raise DamagedError(f"{error}; run the command again to begin anew") from error
        self._compared = True

    def _shown(self, doing: str, ranges: Ranges) -> AbstractContextManager[Show]:
        if not ranges:
            return nullcontext()
        return self._bar(f"{doing} {self._name}", lengths(ranges))

    @contextmanager
    def _reading(self, snapshot: Snapshot) -> Iterator[Export]:
        uri = local_uri(snapshot)
        with telling_silence(split_export_uri(uri)[1], NBD_QUESTION), connected(uri) as source:
            yield source

    def _grow_to(self, size_bytes: int) -> None:
        """Extend the target if the source was extended."""
        if size_bytes > self._target.size_bytes:
            self._target.grow(size_bytes)
            self._export.__exit__(None)
            self._export = reached(self._way, self._target.trust)


@contextmanager
def _told_of_room() -> Iterator[None]:
    """Say what to do about a pool that is full."""
    try:
        yield
    except NoSpaceError as error:
        raise NoSpaceError(
            f"the pool there has no room ({error}); what was copied stays, and the same command "
            "goes on with it when there is some"
        ) from error
