"""Power cuts: sixty here, thousands in `make soak`.

That a broken promise would be noticed is test_mutations.py's.

A failure names its seed: `python -m tests.crash.powercut --seed SEED --runs 1` plays it again.
"""

from __future__ import annotations

import random

import pytest

from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.runtime.steps import Background, run_inline
from tests.amounts import amount
from tests.crash.powercut.apart import play
from tests.crash.powercut.disk import Content, File
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.powercut.operations import SIZE
from tests.crash.powercut.scenario import CUTS_OF_A_RUN
from tests.drivers.local.process import die

SEEDS = range(amount(6))
"""Histories of 10 cuts."""


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_flushed_survives_power_cuts(disk: PowerCutDisk, seed: int) -> None:
    assert play(disk, seed, CUTS_OF_A_RUN).counts.cuts == CUTS_OF_A_RUN


def test_a_seed_is_one_history(disk: PowerCutDisk) -> None:
    """To the last byte: or a failure could not be played again."""
    assert play(disk, 5, CUTS_OF_A_RUN) == play(disk, 5, CUTS_OF_A_RUN)


def test_removed_layers_stay_removed(disk: PowerCutDisk) -> None:
    """Reclaim forgot what it had unlinked before that was durable: the file came back, unknown to
    everybody, and its space was lost."""
    life = disk.new()
    disk.arm(life, 0)
    background = Background()
    pool = LocalPool.open(disk.path(life), background.spawn)
    volume = run_inline(pool.create_volume("v", SIZE))
    run_inline(pool.delete_volume(volume.id))
    run_inline(Reclaimer(pool.registry).run())
    die(pool)
    for number in range(10):
        after = disk.restore(life, str(number))
        pool = LocalPool.open(disk.path(after), background.spawn)
        report = check_open_pool(pool.registry.store, live=frozenset(), repair=False)
        assert report.clean, report.problems
        die(pool)
        disk.drop(after)
    disk.drop(life)


def test_the_disk_keeps_what_is_synced_and_any_part_of_the_rest() -> None:
    """Of two sectors written twice, the second time unsynced, each is old or new by itself."""
    file = File(1, "life", Content())
    old, new = b"o" * 512, b"n" * 512
    for data, synced in ((old + old, True), (new + new, False)):
        changes = file.write(0, data)
        file.apply(file.live, changes)
        file.pending += changes
        if synced:
            file.sync()
    left = {file.after_cut(random.Random(seed)).read(0, 1024) for seed in range(100)}
    assert left == {old + old, old + new, new + old, new + new}
