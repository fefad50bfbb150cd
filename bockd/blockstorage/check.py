"""Checking a whole pool: the engine's data and the records of block storage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bockd.blockstorage.recount import find_problems
from bockd.control import CheckReport
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.integrity.check import check_open_pool, opened_to_check
from bockd.model import VolumeId


def check_pool(path: Path, *, repair: bool) -> CheckReport:
    """Check the pool at `path`, which no daemon may have open. Raises what `opened_to_check`
    raises."""
    with opened_to_check(path, repair=repair) as (store, live):
        return check_everything(store, live=live, repair=repair)


def check_everything(store: StoreAccess, *, live: frozenset[VolumeId], repair: bool) -> CheckReport:
    """Check the open pool (see `check_open_pool`) and recount the tenants' records. Repair changes
    none of these records: they say what was promised to whom, so a person has to look at them."""
    report = check_open_pool(store, live=live, repair=repair)
    with store.index.examining() as txn:
        recounted = find_problems(txn)
    # A broken value is found by both.
    problems = tuple(dict.fromkeys((*report.problems, *recounted)))
    return replace(report, clean=not problems, problems=problems)
