"""Rows with flushes: that the server has carried them out: fio's nbd engine
does not look."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fio import Job, Outcome
from bench.processes import BenchError
from bench.servers import Flushes, Served
from bench.throughput import flushes_counted

JOB = Job("randwrite", 4096, 32, 1 << 20, seconds=1, flush_every=32)


def count(job: Job, before: Flushes, after: Flushes, writes: int) -> None:
    """Look at a run of so many writes, and at what the server has counted before it and after."""
    answers = iter([before, after])
    served = Served("us", 0, "", Path(), "", lambda: next(answers))
    with flushes_counted(job, served) as ended:
        ended.append(Outcome(writes, 1.0))


def test_flushes_that_were_carried_out_are_enough() -> None:
    count(JOB, Flushes(5, 2), Flushes(105, 2), 3200)


def test_the_flush_after_the_last_writes_may_be_missing() -> None:
    count(JOB, Flushes(0, 0), Flushes(99, 0), 3200)


def test_fewer_flushes_than_asked_for_end_the_row() -> None:
    with pytest.raises(BenchError, match="98 flushes of 99"):
        count(JOB, Flushes(0, 0), Flushes(98, 0), 3200)


def test_a_failed_request_ends_the_row() -> None:
    with pytest.raises(BenchError, match="1 failed requests"):
        count(JOB, Flushes(0, 0), Flushes(100, 1), 3200)


def test_a_row_without_flushes_asks_for_no_counts() -> None:
    def never() -> Flushes:
        raise AssertionError

    with flushes_counted(
        Job("randwrite", 4096, 32, 1 << 20), Served("us", 0, "", Path(), "", never)
    ):
        pass
