"""Moving a volume to the pool of another daemon, in steps that any later run can take up.

docs/moving.md has the design. What is known of a move lies in the two pools and nowhere else:

* The hold of the source (`Volume.hold`) names the move while it is under way, and then, from the
  commit that makes the target the volume in use, the target.
* The snapshot of the source, named after the hold, is what is copied.
* The target's metadata has under `KEY` of which volume it is the copy, and how far that is.
* The target is attached to `SERVER` until it is complete: so it is neither deleted nor used, and
  its export's name lets the copy in, over TCP too.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec

from bockd.cli.convert import Show
from bockd.cli.copying import connected
from bockd.cli.crossing import compare, copy_across, reached
from bockd.cli.elsewhere import Elsewhere
from bockd.cli.obstacles import explained
from bockd.cli.records import MOVED, Attached, Snapshot, Volume, WayIn
from bockd.cli.silence import NBD_QUESTION, telling_silence
from bockd.cli.storage import StorageClient
from bockd.cli.transfer import (
    RELEASE_POLL_SECONDS,
    RELEASE_TIMEOUT_SECONDS,
    local_uri,
    when_released,
)
from bockd.errors import ConflictError, InUseError, NoSpaceError, NotFoundError
from bockd.model import split_export_uri

SERVER: Final = "bock-migrate"
"""What the target is attached to while it is filled."""

KEY: Final = "bockd-migration"
"""In the metadata of the target, until it is complete."""

MAX_REASON_LENGTH: Final = 255
"""Characters of the reason of a hold."""

_MOVING: Final = re.compile(r"migration ([0-9a-f]{8}) to (.+)")
_MOVED: Final = re.compile(MOVED + r"([0-9]+) at (.+)")
_SNAPSHOT: Final = re.compile(r"migration-[0-9a-f]{8}")

Bar = Callable[[str, int], AbstractContextManager[Show]]
"""Shows how far something is: its title, and its bytes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the target's metadata say of the copy."""

    origin: str
    """Of which volume of which tenant; see `origin_of`."""
    snapshot: int | None = None
    """What is copied; None: nothing yet."""
    copied: int = 0
    """Up to here, in bytes, the target holds what the snapshot holds."""


class Migration:
    """A move of one volume, for as long as a command lasts. Every method raises BockdError."""

    def __init__(self, here: StorageClient, there: Elsewhere, volume: str, bar: Bar) -> None:
        self._here = here
        self._there = there.client
        self._place = there
        self._bar = bar
        self.source = here.find_volume(volume)
        self._origin = origin_of(here.tenant_id, self.source)

    def run(self, *, verify: bool = True) -> Volume:
        """Move the volume, or go on where an earlier run was. Return the target, in use from now
        on; the source stays, held."""
        target = self._find_target()
        if (moved := self._moved_to()) is None:
            self._check_place()
            target = target or self._create_target()
            snapshot = self._hold()
            target = self._copy(snapshot, target, verify=verify)
            # From here on the target is the volume, unless the source was released meanwhile.
            moved_to = f"{MOVED}{target.id} at {self._place.address}"
            self._hold_as(moved_to, instead_of=self.source.hold)
            moved = target.id
        return self._finish(target or self._there.show_volume(moved))

    def cancel(self) -> None:
        """Undo an unfinished move: delete the target, and use the source again. Raises
        ConflictError if the volume has moved already."""
        if self._moved_to() is not None:
            raise ConflictError(f"{self._called()} is {self.source.hold}; move it back from there")
        self._check_place()
        target = self._find_target()
        if target is not None:
            self._delete_target(target)
        self._delete_snapshots()
        if self._moving() is not None:
            self._here.release_volume(self.source.id)

    def delete_source(self) -> None:
        """Delete the source of a volume that has moved."""
        self._here.delete_volume(self.source.id)

    # -- what the records say ----------------------------------------------------------------

    def _called(self) -> str:
        return f"volume {self.source.id} ({self.source.name})"

    def _moving(self) -> str | None:
        """The name of the move that holds the source, if one does."""
        found = _MOVING.fullmatch(self.source.hold or "")
        return None if found is None else found[1]

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

    def _find_target(self) -> Volume | None:
        for one in self._there.list_volumes():
            if KEY in one.metadata and read_progress(one).origin == self._origin:
                return one
        return None

    # -- the steps ---------------------------------------------------------------------------

    def _create_target(self) -> Volume:
        source = self.source
        return self._there.create_volume(
            source.name,
            source.size_bytes,
            content_bytes=source.content_bytes,
            description=source.description,
            metadata={**source.metadata, KEY: written(Progress(self._origin))},
        )

    def _delete_target(self, target: Volume) -> None:
        self._let_go(target, force=True)
        when_released(lambda: self._there.delete_volume(target.id))

    def _hold(self) -> Snapshot:
        """Keep everybody off the source, and return the snapshot of what it holds since."""
        name = self._moving() or secrets.token_hex(4)
        # Also if it is held: whoever could use it nevertheless is found now.
        self._hold_as(f"migration {name} to {self._place.address}")
        title = f"migration-{name}"
        taken = [one for one in self._here.list_snapshots(title) if one.volume == self.source.id]
        return taken[0] if taken else self._here.create_snapshot(self.source.id, title)

    def _hold_as(self, reason: str, *, instead_of: str | None = None) -> None:
        reason = reason[:MAX_REASON_LENGTH]
        with explained(self._here, self.source):
            self.source = self._here.hold_volume(self.source.id, reason, instead_of=instead_of)

    def _copy(self, snapshot: Snapshot, target: Volume, *, verify: bool) -> Volume:
        """Make the target hold what the snapshot holds. Return the target."""
        progress = read_progress(target)
        if progress.snapshot not in (None, snapshot.id) or target.size_bytes != snapshot.size_bytes:
            # The source was released, and perhaps written, since an earlier run.
            self._delete_target(target)
            target = self._create_target()
            progress = read_progress(target)
        progress = replace(progress, snapshot=snapshot.id)
        self._note(target, progress)
        uri, way = local_uri(snapshot), self._take(target)
        with (
            telling_silence(split_export_uri(uri)[1], NBD_QUESTION),
            connected(uri) as source,
            reached(way, self._place.trust) as filled,
            _told_of_room(),
        ):
            with self._bar(f"migrating {self.source.name}", source.size_bytes) as show:
                copy_across(
                    source,
                    filled,
                    progress.copied,
                    show,
                    lambda copied: self._note(target, replace(progress, copied=copied)),
                )
            if verify:
                with self._bar(f"comparing {self.source.name}", source.size_bytes) as show:
                    compare(source, filled, show)
        return target

    def _note(self, target: Volume, progress: Progress) -> None:
        self._there.set_metadata(target.id, KEY, written(progress))

    def _take(self, target: Volume) -> WayIn:
        """Attach the target to `SERVER`, anew if it is: what an earlier run has sent lands no
        more. Raises ConflictError while another run is at work."""
        self._let_go(target, force=False)
        try:
            return self._there.attach(SERVER, target.id, None)
        except NotFoundError as error:
            raise NotFoundError(
                f"attaching to the server {SERVER}: {error} ('bock server add {SERVER} --kind "
                "plain' makes it known there)"
            ) from error

    def _let_go(self, target: Volume, *, force: bool) -> None:
        """Detach the target from `SERVER`, if it is attached."""
        attached = self._there.show_volume(target.id).attachment
        if attached is None:
            return
        if attached.server != SERVER:
            raise ConflictError(
                f"volume {target.id} there, which is to become the copy, is attached to "
                f"{attached.server}: detach it"
            )
        if not force:
            self._wait_until_alone(attached)
        self._there.detach(attached, force=True)

    def _wait_until_alone(self, attached: Attached) -> None:
        """Wait until the daemon has seen a killed run go. Raises InUseError."""
        deadline = time.monotonic() + RELEASE_TIMEOUT_SECONDS
        while self._there.way_in(attached).connections:
            if time.monotonic() > deadline:
                raise InUseError(
                    f"{self._called()} is being migrated by another command; if its machine is "
                    f"gone, 'bock attachment delete {attached.volume} --force' there"
                )
            time.sleep(RELEASE_POLL_SECONDS)

    def _finish(self, target: Volume) -> Volume:
        """Make the target a volume like others, and remove what the move has made here."""
        if KEY in target.metadata:
            self._let_go_in_order(target)
            source = self._here.show_volume(self.source.id)
            self._there.edit_volume(target.id, source.name, source.description, source.metadata)
        self._delete_snapshots()
        return self._there.show_volume(target.id)

    def _let_go_in_order(self, target: Volume) -> None:
        attached = self._there.show_volume(target.id).attachment
        if attached is not None and attached.server == SERVER:
            self._there.detach(attached)

    def _delete_snapshots(self) -> None:
        for one in self._here.list_snapshots():
            if one.volume == self.source.id and _SNAPSHOT.fullmatch(one.name):
                when_released(partial(self._here.delete_snapshot, one.id))


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


def origin_of(tenant: str, volume: Volume) -> str:
    """Return what a volume is known by in another pool: tenants' ids are random, and no id of a
    volume is given twice."""
    told = f"{tenant} {volume.id} {volume.created_at:.0f}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_progress(target: Volume) -> Progress:
    """Read how far a target is. Raises ConflictError."""
    try:
        return msgspec.json.decode(target.metadata[KEY], type=Progress)
    except (KeyError, msgspec.DecodeError) as error:
        raise ConflictError(
            f"volume {target.id} ({target.name}) has metadata {KEY} that no migration wrote"
        ) from error


def written(progress: Progress) -> str:
    """Return the text of a `Progress` for metadata."""
    return msgspec.json.encode(progress).decode()
