"""Proving a whole pool: what the engine keeps, and what block storage keeps beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bockd.blockstorage.recount import find_problems
from bockd.control import CheckReport
from bockd.engine.check import check_open_pool, opened_alone
from bockd.engine.durability import StoreAccess
from bockd.model import VolumeId


def check_pool(path: Path, *, repair: bool) -> CheckReport:
    """Check the pool at `path`, which nobody may have open; raises what `opened_alone` raises."""
    with opened_alone(path) as pool:
        return check_everything(pool.store, live=frozenset(), repair=repair)


def check_everything(store: StoreAccess, *, live: frozenset[VolumeId], repair: bool) -> CheckReport:
    """`check_open_pool`, and the recount of tenants' records. Repairing changes nothing about the
    latter: they say what was promised to whom, so that a person has to look at them."""
    report = check_open_pool(store, live=live, repair=repair)
    with store.index.reading() as txn:
        recounted = find_problems(txn)
    # A broken value is found by both.
    problems = tuple(dict.fromkeys((*report.problems, *recounted)))
    return replace(report, clean=not problems, problems=problems)
