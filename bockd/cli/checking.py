"""Checking a whole pool that no daemon has: its data, and the records of block storage."""

from __future__ import annotations

from pathlib import Path

from bockd.blockstorage.check import with_records
from bockd.drivers.local.integrity.check import check_open_pool, opened_to_check
from bockd.pool.reports import CheckReport


def check_pool(path: Path, *, repair: bool) -> CheckReport:
    """Check the pool at `path`, which no daemon may have open. Raises what `opened_to_check`
    raises."""
    with opened_to_check(path, repair=repair) as (store, live):
        report = check_open_pool(store, live=live, repair=repair)
        return with_records(report, store.index)
