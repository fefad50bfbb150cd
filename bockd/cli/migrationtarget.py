"""The copy of a volume that a migration makes in another pool, until it is complete.

Its metadata have under `KEY` of which volume it is the copy, and how far that is (`Progress`). It
is attached to `SERVER`: so it is neither deleted nor used, and its export's name lets the copy in,
over TCP too.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bockd.cli.elsewhere import Elsewhere
from bockd.cli.records import Volume, WayIn
from bockd.cli.waiting import RELEASE_POLL_SECONDS, RELEASE_TIMEOUT_SECONDS, when_released
from bockd.errors import ConflictError, InUseError, NotFoundError

SERVER: Final = "bock-migrate"
"""What the target is attached to while it is filled."""

KEY: Final = "bockd-migration"
"""In the metadata of the target, until it is complete."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the target holds: up to `copied` bytes what the snapshot `snapshot` holds. Behind that,
    where the two snapshots differ, anything; elsewhere what `base` holds."""

    origin: str
    """Of which volume of which tenant it is the copy; see `origin_of`."""
    snapshot: str | None = None
    """What is copied, by name; None: nothing yet."""
    copied: int = 0
    base: str | None = None
    """None: a blank volume. The same as `snapshot`: that is copied."""
    way: str = ""
    """Which attachment it was filled through, as `_way` has it."""

    @property
    def is_complete(self) -> bool:
        """Whether all of one snapshot is copied."""
        return self.base is not None and self.base == self.snapshot

    @property
    def needed(self) -> frozenset[str]:
        """The snapshots without which the target cannot be brought to a later one."""
        return frozenset(one for one in (self.base, self.snapshot) if one is not None)


class Target:
    """A volume there that is to become the copy. Every method raises BockdError."""

    def __init__(self, place: Elsewhere, volume: Volume, called: str) -> None:
        self.id = volume.id
        self.size_bytes = volume.size_bytes
        self.progress = read_progress(volume)
        self.trust = place.trust
        self._there = place.client
        self._called = called
        """The source, in messages."""

    def note(self, progress: Progress) -> None:
        """Have what is known of it survive."""
        self._there.set_metadata(self.id, {KEY: written(progress)})
        self.progress = progress

    def is_as_left(self) -> bool:
        """Return whether it is attached as the last run has left it. Otherwise somebody may have
        written to it."""
        attached = self._there.show_volume(self.id).attachment
        if attached is None or attached.server != SERVER:
            return False
        return _way(self._there.way_in(attached)) == self.progress.way

    def take(self) -> WayIn:
        """Attach it to `SERVER`, anew if it is: what an earlier run has sent lands no more. Raises
        InUseError while another run is at work, ConflictError if one has been since this was read.
        """
        self._let_go()
        try:
            way = self._there.attach(SERVER, self.id, None)
        except NotFoundError as error:
            raise NotFoundError(
                f"attaching to the server {SERVER}: {error} ('bock server add {SERVER} --kind "
                "plain' makes it known there)"
            ) from error
        self.note(replace(self.progress, way=_way(way)))
        return way

    def grow(self, size_bytes: int) -> None:
        """Extend it. Who is connected does not see that."""
        self._there.extend_volume(self.id, size_bytes)
        self.size_bytes = size_bytes

    def delete(self) -> None:
        """Delete it, attached or not, past the trash, unless that is done already. Raises what
        `take` raises."""
        with suppress(NotFoundError):
            self._let_go()
            when_released(lambda: self._there.discard_volume(self.id))

    def _let_go(self) -> None:
        """Detach it from `SERVER`, if it is attached."""
        self.wait_until_alone()
        # Every run that takes it notes something; one that completes it leaves no note.
        now = self._there.show_volume(self.id)
        if KEY not in now.metadata or read_progress(now) != self.progress:
            raise passed_over(self._called)
        if now.attachment is not None:
            self._there.detach(now.attachment, force=True)

    def wait_until_alone(self) -> None:
        """Wait until no other run is connected: the daemon may not have seen a killed one go. What
        that has done is to be seen from then on. Raises InUseError, ConflictError."""
        deadline = time.monotonic() + RELEASE_TIMEOUT_SECONDS
        while self._has_connections():
            if time.monotonic() > deadline:
                raise InUseError(
                    f"{self._called} is being migrated by another command; if its machine is gone, "
                    f"'bock attachment delete {self.id} --force' there"
                )
            time.sleep(RELEASE_POLL_SECONDS)

    def _has_connections(self) -> bool:
        try:
            attached = self._there.show_volume(self.id).attachment
            if attached is None:
                return False
            if attached.server != SERVER:
                raise ConflictError(
                    f"volume {self.id} there, which is to become the copy, is attached to "
                    f"{attached.server}: detach it"
                )
            return bool(self._there.way_in(attached).connections)
        except NotFoundError:
            return False  # it was detached, or deleted, just now


def find_targets(place: Elsewhere, origin: str, called: str) -> list[Target]:
    """List the targets of a volume by id. The first is the one that is filled. There are others if
    runs that began at the same moment have made one each, and one did not live to delete its own.
    Raises BockdError."""
    return [
        Target(place, one, called)
        for one in place.client.list_volumes()
        if KEY in one.metadata and read_progress(one).origin == origin
    ]


def create_target(place: Elsewhere, origin: str, called: str, source: Volume) -> Target:
    """Create a target, with everything but its contents. Raises ConflictError: another run has made
    one, or there is another volume of this name; BockdError."""
    try:
        created = place.client.create_volume(
            source.name,
            source.size_bytes,
            content_bytes=source.content_bytes,
            description=source.description,
            metadata={**source.metadata, KEY: written(Progress(origin))},
        )
    except ConflictError as error:
        if find_targets(place, origin, called):
            raise passed_over(called) from error
        raise
    target = Target(place, created, called)
    # Another run may have looked at the same moment, and found none. Ids follow the order in which
    # volumes are made, so both see which one was the first.
    if [one.id for one in find_targets(place, origin, called)][:1] != [target.id]:
        target.delete()
        raise passed_over(called)
    return target


def finish_target(place: Elsewhere, volume: int, origin: str, source: Volume) -> Volume:
    """Make a complete target a volume like others, and return it. Raises BockdError, ConflictError
    for a volume that is not the complete copy."""
    target = place.client.show_volume(volume)
    # Before anybody can use it: what has this key another run may take for unfinished.
    if KEY in target.metadata:
        progress = read_progress(target)
        if progress.origin != origin or not progress.is_complete:
            raise ConflictError(
                f"volume {volume} there ({target.name}) is not the complete copy of volume "
                f"{source.id} ({source.name})"
            )
        place.client.edit_volume(
            volume,
            name=source.name,
            description=source.description or "",
            metadata=source.metadata,
        )
    if target.attachment is not None and target.attachment.server == SERVER:
        place.client.detach(target.attachment)
    return place.client.show_volume(volume)


def passed_over(called: str) -> ConflictError:
    """Return the error of a run that another one has passed."""
    return ConflictError(
        f"another command has gone on with the migration of {called}; run it again"
    )


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


def _way(way: WayIn) -> str:
    """What tells an attachment from another one, without the secret that its export's name is."""
    name = urlsplit(way.unix_uri or way.uri or "").path
    return hashlib.sha256(name.encode()).hexdigest()[:16]
