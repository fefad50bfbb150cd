"""Moving a volume to the pool of another daemon, in steps that any later run can take up.

docs/moving.md has the design. What is known of a move lies in the two pools and nowhere else:

* The hold of the source (`Volume.hold`) names the move while nobody may write any more, and then,
  from the commit that makes the target the volume in use, the target.
* Snapshots of the source are what is copied. They consume no quota.
* The target has the rest; see `bockd.cli.migrationtarget`.

A live move copies snapshots while the source is used, each time what has changed since the last
one. It holds the source when nobody uses it any more, for the last of them.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from bockd.cli.elsewhere import Elsewhere
from bockd.cli.filling import Bar, Filling
from bockd.cli.leftovers import delete_leftovers, snapshots_of_migrations, take_for_migration
from bockd.cli.migrationtarget import (
    Target,
    create_target,
    find_targets,
    finish_target,
    origin_of,
    passed_over,
)
from bockd.cli.obstacles import explained, obstacle
from bockd.cli.records import MOVED, Volume
from bockd.cli.sizes import format_size
from bockd.cli.storage import StorageClient
from bockd.errors import BockdError, ConflictError, InvalidStateError
from bockd.model import MIB

MAX_REASON_LENGTH: Final = 255
"""Characters of the reason of a hold."""

SMALL_REST_BYTES: Final = 64 * MIB
"""Copied in a second or so: not worth another round before the source is held."""

SHRINKS_TO: Final = 0.75
"""Of the round before: a round that copies more than this gains nothing on who writes."""

ROUND_SECONDS: Final = 60.0
"""Between two rounds while the source is waited for: what is left stays what a minute writes. A
snapshot costs the clients little, but not nothing."""

POLL_SECONDS: Final = 0.5

HOLD_AGAIN_SECONDS: Final = 5.0
"""After a hold that was refused, since clients are refused while it is tried."""

_STEADY: Final = frozenset({"available", "in-use"})
"""When a snapshot can be taken."""

_USED: Final = _STEADY | {"attaching", "detaching"}
"""What a volume is that somebody may be using, and will not be using some day."""

_MOVING: Final = re.compile(r"migration ([0-9a-f]{8}) to (.+)")
_MOVED: Final = re.compile(MOVED + r"([0-9]+) at (.+)")

Tell = Callable[[str], object]
"""Tells the user what is waited for."""


class Migration:
    """A move of one volume, for as long as a command lasts. Every method raises BockdError."""

    def __init__(
        self, here: StorageClient, there: Elsewhere, volume: str, bar: Bar, tell: Tell
    ) -> None:
        self._here = here
        self._there = there.client
        self._place = there
        self._bar = bar
        self._tell = tell
        self.source = here.find_volume(volume)
        self._origin = origin_of(here.tenant_id, self.source)
        self._held_as = self.source.hold or ""
        """As this run has held the source, or begins to; empty: not at all."""

    def run(self, *, live: bool = False, verify: bool = True) -> Volume:
        """Move the volume, or go on where an earlier run was. Return the target, in use from now
        on; the source stays, held. With `live`, the source may be used until all but the last
        changes are copied, and is released if it does not move."""
        if (moved := self._moved_to()) is None:
            self._check_place()
            target = self._find_target() or self._create_target()
            if live:
                self._move_live(target, verify=verify)
            else:
                self._move_held(target, verify=verify)
            moved = target.id
        source = self._here.show_volume(self.source.id)
        found = finish_target(self._place, moved, self._origin, source)
        if source.has_moved:
            for surplus in self._find_targets():
                surplus.delete()
        delete_leftovers(self._here, self.source.id)
        return found

    def cancel(self) -> None:
        """Undo an unfinished move: delete the target, and use the source again. Raises
        ConflictError if the volume has moved already."""
        if self._moved_to() is not None:
            raise ConflictError(f"{self._called()} is {self.source.hold}; move it back from there")
        self._check_place()
        targets = self._find_targets()
        for target in targets:
            self._delete(target)
        if not targets:
            self._check_hold()
        delete_leftovers(self._here, self.source.id)
        if self._moving() is not None:
            self._here.release_volume(self.source.id, reason=self.source.hold)

    def delete_source(self, moved: Volume) -> None:
        """Delete the source of a volume that has moved, to what `run` has returned. Raises
        InvalidStateError, ConflictError if the source has been released since, for it may have been
        written then; ConflictError if that may be another volume, as in a pool that was made anew.
        """
        if moved.name != self.source.name or moved.size_bytes < self.source.size_bytes:
            raise ConflictError(
                f"volume {moved.id} there is {moved.name}, {format_size(moved.size_bytes)}: if it "
                f"is the copy of {self._called()}, {format_size(self.source.size_bytes)}, all the "
                f"same, 'bock volume delete {self.source.id}' deletes the one here"
            )
        self._here.delete_volume(self.source.id, hold=self.source.hold)

    # -- what the records say ----------------------------------------------------------------

    def _called(self) -> str:
        return f"volume {self.source.id} ({self.source.name})"

    def _moving(self) -> str | None:
        """The name of the move that holds the source, if one does."""
        return _name_of_move(self.source.hold or "")

    def _moved_to(self) -> int | None:
        """The id of the target, if that is the volume in use."""
        found = _MOVED.fullmatch(self.source.hold or "")
        if found is None:
            return None
        self._check_same_place(found[2])
        return int(found[1])

    def _check_same_place(self, recorded: str) -> None:
        is_cut = len(self.source.hold or "") == MAX_REASON_LENGTH
        address = self._place.address
        if not (address == recorded or (is_cut and address.startswith(recorded))):
            raise ConflictError(f"{self._called()} is held ({self.source.hold}): name that place")

    def _check_place(self) -> None:
        """Raise ConflictError if the source is held by something else, or is in that very pool."""
        if self.source.hold is not None:
            found = _MOVING.fullmatch(self.source.hold)
            if found is None:
                raise ConflictError(
                    f"{self._called()} is held ({self.source.hold}); 'bock volume release "
                    f"{self.source.id}' ends that"
                )
            self._check_same_place(found[2])
        if self._here.tenant_id != self._there.tenant_id:
            return
        same = [one for one in self._there.list_volumes() if one.id == self.source.id]
        if any(origin_of(self._there.tenant_id, one) == self._origin for one in same):
            raise ConflictError(f"{self._called()} is in the pool of {self._place.address} already")

    # -- the target --------------------------------------------------------------------------

    def _find_targets(self) -> list[Target]:
        return find_targets(self._place, self._origin, self._called())

    def _find_target(self) -> Target | None:
        """Return the target of an earlier run, if what it holds is known for certain. Delete it
        otherwise."""
        targets = self._find_targets()
        for surplus in targets[1:]:
            self._delete(surplus)
        if not targets:
            return None
        target = targets[0]
        there_are = {one.name for one in snapshots_of_migrations(self._here, self.source.id)}
        is_known = (
            target.progress.needed <= there_are
            and target.size_bytes <= self.source.size_bytes
            and target.is_as_left()
        )
        if not is_known:
            self._delete(target)
            return None
        return target

    def _delete(self, target: Target) -> None:
        self._refuse_passed(target)
        target.delete()

    def _refuse_passed(self, target: Target) -> None:
        """Raise ConflictError if the volume has moved, or is held, since this run looked at it: who
        moves it is connected to the target until that is committed. Raises InUseError."""
        target.wait_until_alone()
        self._check_hold()

    def _check_hold(self) -> None:
        """Raise ConflictError if the hold of the source is not what this run has read."""
        if self._here.show_volume(self.source.id).hold != self.source.hold:
            raise passed_over(self._called())

    def _create_target(self) -> Target:
        try:
            target = create_target(self._place, self._origin, self._called(), self.source)
        except ConflictError:
            self._check_hold()
            raise
        try:
            # The one that another run had made may be the volume in use by now.
            self._check_hold()
        except ConflictError:
            target.delete()
            raise
        return target

    def _filling(self, target: Target, *, verify: bool) -> Filling:
        self._refuse_passed(target)
        return Filling(self._here, self.source, target, self._bar, verify=verify)

    # -- with nobody at the source -----------------------------------------------------------

    def _move_held(self, target: Target, *, verify: bool) -> None:
        try:
            self._hold()
        except InvalidStateError as error:
            if self._moving() is not None or self._status() not in _USED:
                raise
            raise InvalidStateError(
                f"{error}; with --live the volume is copied while it is used"
            ) from error
        with self._filling(target, verify=verify) as filling:
            self._finish_copy(filling)
        self._switch(target)

    def _hold(self) -> None:
        """Keep everybody off the source."""
        name = self._moving() or secrets.token_hex(4)
        self._held_as = f"migration {name} to {self._place.address}"[:MAX_REASON_LENGTH]
        # Also if it is held: if the daemon died before it looked for users, they are found now.
        # But not if it was released since it was read: the snapshot of that hold is old then.
        self._hold_as(self._held_as, instead_of=self.source.hold)

    def _hold_as(self, reason: str, *, instead_of: str | None) -> None:
        with explained(self._here, self.source):
            held = self._here.hold_volume(self.source.id, reason, instead_of=instead_of)
        if held.hold != reason:  # it was released before it was read
            raise passed_over(self._called())
        self.source = held

    def _finish_copy(self, filling: Filling) -> None:
        """Copy what the source holds since it is held."""
        name = _name_of_move(self._held_as)
        filling.bring_to(take_for_migration(self._here, self.source.id, name))

    def _switch(self, target: Target) -> None:
        """Make the target the volume in use, unless the source was released meanwhile."""
        moved_to = f"{MOVED}{target.id} at {self._place.address}"
        self._hold_as(moved_to[:MAX_REASON_LENGTH], instead_of=self._held_as)

    # -- while the source is used ------------------------------------------------------------

    def _move_live(self, target: Target, *, verify: bool) -> None:
        # Once the target is taken no other command is at work.
        with self._filling(target, verify=verify) as filling, self._released_on_failure():
            if self._moving() is None:
                self._follow(filling)
                self._hold_when_unused(filling)
            else:
                self._hold()
            self._finish_copy(filling)
            self._switch(target)

    def _follow(self, filling: Filling) -> None:
        """Copy in rounds, until little is left to copy or it becomes no less."""
        filling.go_on()
        copied, before = self._round(filling), float("inf")
        while SMALL_REST_BYTES < copied <= before * SHRINKS_TO:
            copied, before = self._round(filling), copied

    def _round(self, filling: Filling) -> int:
        """Copy what has changed. Return how much, in bytes."""
        return filling.bring_to(take_for_migration(self._here, self.source.id))

    def _hold_when_unused(self, filling: Filling) -> None:
        """Hold the source as soon as nobody uses it, and say who does. Meanwhile copy what
        changes."""
        told, last_round = "", time.monotonic()
        while (reason := self._try_to_hold()) is not None:
            if reason != told:
                self._tell(
                    f"{reason}. The volume moves as soon as nobody uses it; waiting for that "
                    "(Ctrl-C stops here, and it stays as it is)"
                )
                told = reason
            if time.monotonic() - last_round >= ROUND_SECONDS and self._status() in _STEADY:
                self._round(filling)
                last_round = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _status(self) -> str:
        return self._here.show_volume(self.source.id).status

    def _try_to_hold(self) -> str | None:
        """Hold the source. Return who uses it; None if it is held."""
        reason = obstacle(self._here, self.source)
        if reason is not None:
            return reason
        try:
            self._hold()
        except InvalidStateError as error:
            if self._status() not in _USED:
                raise
            time.sleep(HOLD_AGAIN_SECONDS)
            return str(error)
        return None

    @contextmanager
    def _released_on_failure(self) -> Iterator[None]:
        """Let the source be used again if the body fails, unless it has moved."""
        try:
            yield
        except BaseException:
            # Whether the hold or the switch was carried out is not known if an answer was lost.
            # What is still to come of a switch is refused when the source is not held.
            if self._held_as:
                with suppress(BockdError):
                    self._here.release_volume(self.source.id, reason=self._held_as)
            raise


def _name_of_move(hold: str) -> str | None:
    found = _MOVING.fullmatch(hold)
    return None if found is None else found[1]
