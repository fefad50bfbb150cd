"""What an open volume and its journal need of their pool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from bockd.errors import NoSpaceError, from_os_error
from bockd.steps import Steps
from bockd.store.ballast import Ballast
from bockd.store.index import Index
from bockd.store.journal import JournalSegment
from bockd.store.layout import JournalName, Layout, unlink_if_present

log = logging.getLogger(__name__)

Spawn = Callable[[Steps[None]], None]
"""Runs steps in the background; given by the edge that drives the engine."""


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """What an open volume needs of its pool."""

    layout: Layout
    index: Index
    ballast: Ballast
    boot: str


def create_segment(store: StoreAccess, name: JournalName) -> JournalSegment:
    """A new journal segment, giving up the ballast if the disk is full. BockdError."""
    doing = f"creating journal segment {store.layout.journal_segment(name)}"
    try:
        return JournalSegment.create(store.layout, name, store.boot)
    except OSError as error:
        translated = from_os_error(error, doing)
        if not isinstance(translated, NoSpaceError) or not store.ballast.release():
            raise translated from error
    try:
        return JournalSegment.create(store.layout, name, store.boot)
    except OSError as error:
        raise from_os_error(error, doing) from error


def discard_segments(layout: Layout, segments: list[JournalSegment]) -> None:
    """Close and remove segments whose records are in the index. One that cannot be removed is
    removed at the next opening: its generation is past."""
    for segment in segments:
        segment.close()
        try:
            unlink_if_present(layout.journal_segment(segment.name))
        except OSError as error:
            log.warning("journal segment %s was not removed: %s", segment.name, error)
