"""A tenant's wrong count is found by `bockd check`, with and without a daemon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from bockd.blockstorage.contract import Usage
from bockd.blockstorage.records import Ledger
from bockd.drivers.local.pool import LocalPool
from bockd.pool.index import Transaction
from bockd.runtime.steps import Background

from .process import Bockd, program


def plant(data_dir: Path, used: Usage) -> None:
    """Give every tenant this usage, whatever it has."""

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        for record in ledger.tenants():
            ledger.put_tenant(replace(record, used=used))

    pool = LocalPool.open(data_dir, Background().spawn)
    try:
        pool.index.update(change)
    finally:
        pool.release()


def problems(daemon: Bockd, *options: str) -> list[str]:
    """What `bockd check` finds; its exit status must say the same."""
    result = daemon.run(program("bockd"), "check", "--json", *options)
    report = json.loads(result.out)
    assert report["clean"] is not bool(report["problems"])
    assert result.status == (1 if report["problems"] else 0)
    found: list[str] = report["problems"]
    return found


def test_a_wrong_count_is_found_offline_and_by_the_daemon(daemon: Bockd) -> None:
    assert problems(daemon) == []
    daemon.stop()
    assert problems(daemon) == []
    plant(daemon.data_dir, Usage(volumes=7, gigabytes=70))
    (offline,) = problems(daemon)
    assert "recorded is Usage(volumes=7, gigabytes=70, snapshots=0)" in offline
    assert problems(daemon, "--repair") == [offline]
    daemon.start()
    assert problems(daemon) == [offline]
    daemon.stop()
    plant(daemon.data_dir, Usage())
    assert problems(daemon) == []
