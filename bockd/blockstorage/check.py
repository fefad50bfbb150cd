"""The records of block storage as a part of what a check of the pool reports."""

from __future__ import annotations

from dataclasses import replace

from bockd.blockstorage.recount import find_problems
from bockd.pool.index import Index
from bockd.pool.reports import CheckReport


def with_records(report: CheckReport, index: Index) -> CheckReport:
    """Recount the tenants' records and add what is wrong to the pool's report. Repair changes none
    of these records: they say what was promised to whom, so a person has to look at them.
    Blocks."""
    with index.examining() as txn:
        recounted = find_problems(txn)
    # A broken value is found by both.
    problems = tuple(dict.fromkeys((*report.problems, *recounted)))
    return replace(report, clean=not problems, problems=problems)
