"""A journal segment with three records, and its name."""

from __future__ import annotations

from bockd.drivers.local.format.journal import Change, Kind, first_sequence
from bockd.drivers.local.format.layout import JournalName
from bockd.model import VolumeId

BOOT = "0" * 36
NAME = JournalName(VolumeId(7), 3, 2)
FIRST = first_sequence(2)

RECORDS = (
    Change(FIRST, Kind.REDIRECT, 10, 5),
    Change(FIRST + 1, Kind.HOLE, 0, 1 << 32),
    Change(FIRST + 2, Kind.BARRIER, FIRST + 1, 0),
)
