"""Fixtures of the tests of journal segments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.local.format.journal import JournalSegment, Kind
from bockd.drivers.local.format.layout import Layout
from tests.drivers.local.format.segments import BOOT, FIRST, NAME


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    os.makedirs(layout.discarded)
    return layout


@pytest.fixture
def path(layout: Layout) -> Path:
    """A segment with three records in two batches."""
    segment = JournalSegment.create(layout, NAME, BOOT)
    segment.append([(Kind.REDIRECT, 10, 5), (Kind.HOLE, 0, 1 << 32)])
    segment.append([(Kind.BARRIER, FIRST + 1, 0)])
    segment.close()
    return layout.journal_segment(NAME)
