"""One of the lasting and passing faults at a position of each kind; `make faults` takes all faults
at every position.

A failure names the command that plays it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.amounts import TIMES, amount
from tests.crash.faults.engine import faulty_laboratory
from tests.crash.faults.mounted import Fault, FaultyDisk, How, faulty_disk
from tests.crash.faults.sweep import Positions

SEED = random.randrange(1 << 16)

KINDS = (
    *("create index", "create journal", "create layers", "create locks", "create root"),
    *("mkdir discarded", "mkdir index", "mkdir journal", "mkdir layers", "mkdir locks"),
    *("punch layers", "rename journal", "rename new-journal"),
    *("rename spare-journal", "sync spare-journal", "write spare-journal"),
    *("sync ballast", "sync data.mdb", "sync data.mdb-meta", "sync journal", "sync layers"),
    *("sync new-journal", "syncdir index", "syncdir journal", "syncdir layers", "syncdir root"),
    *("truncate data.mdb", "truncate layers", "truncate lock.mdb", "truncate locks"),
    *("unlink journal", "unlink layers", "unlink locks"),
    *("write ballast", "write data.mdb", "write data.mdb-meta", "write journal"),
    *("write layers", "write locks", "write new-journal", "zero layers"),
)
"""All that the scenario comes to: what is done to what. Writing data.mdb-meta commits."""

FULL_POSITIONS = amount(3)
"""A full disk looks alike from most positions."""

FAULTS = (How.EIO_ONCE, How.ENOSPC_LASTING, How.ENOSPC_ONCE, How.EIO_LASTING)
"""Both errors, that pass and that last; at each kind one is tried, in another run another one."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    with faulty_laboratory(), faulty_disk(tmp_path_factory.mktemp("faults")) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def positions(disk: FaultyDisk) -> Positions:
    return Positions(disk)


def test_the_scenario_comes_to_all_kinds_of_positions(positions: Positions) -> None:
    assert sorted(positions.of_kind) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_an_error_and_loses_nothing_acknowledged(
    disk: FaultyDisk, positions: Positions, kind: str
) -> None:
    """EIO or ENOSPC, once or until the cause is gone: a clear error, nothing acknowledged is lost,
    and the pool goes on; or the volume is refused until it is reopened."""
    print(f"seed {SEED}")
    chance = random.Random(f"{SEED} {kind}")
    for number in range(TIMES):
        how = FAULTS[(SEED + KINDS.index(kind) + number) % len(FAULTS)]
        positions.master(disk, Fault(chance.choice(positions.of_kind[kind]), how))


@pytest.mark.parametrize("number", range(FULL_POSITIONS))
def test_a_disk_that_is_full_from_some_position_on(
    disk: FaultyDisk, positions: Positions, number: int
) -> None:
    """No volume fails, and every refusal says that the disk is full (D5)."""
    print(f"seed {SEED}")
    at = random.Random(f"{SEED} {number}").randint(1, len(positions.kinds))
    positions.master(disk, Fault(at, How.FULL))
