"""The scenarios in the engine by name; and each fails without the rule that it guards.

pytest tests/crash/scenarios -k 'late punch'
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bockd.drivers.local import registry
from bockd.errors import BockdError
from tests.crash.powercut.engine import laboratory
from tests.crash.powercut.mounted import PowerCutDisk, power_cut_disk
from tests.crash.scenarios import engine, packed, rules

SCENARIOS: dict[str, tuple[engine.Scenario, dict[str, rules.Broken]]] = {
    "a redirect acknowledged while a flush's data sync runs, then a power cut": (
        engine.redirect_during_a_flush,
        {
            "the barrier covers only what came before": rules.of_the_laboratory(
                "flush: the barrier covers only what came before"
            ),
            "the head is synced": rules.of_the_laboratory("flush: sync of the head"),
        },
    ),
    "a flush that joins a running one": (
        engine.flush_joins_a_running_one,
        {
            "it joins only one that has not begun": rules.of_the_laboratory(
                "flush: joins only one that has not begun"
            )
        },
    ),
    "a checkpoint with records arriving during its commit, then SIGKILL": (
        engine.records_during_a_checkpoint,
        {"they stay in memory": rules.all_leaves_are_clean_after_a_checkpoint},
    ),
    "a flush beside a checkpoint, then a power cut before its commit": (
        engine.flush_beside_a_checkpoint,
        {
            "the sealed journal is synced": rules.of_the_laboratory("seal: sync of the journal"),
        },
    ),
    "revert, then SIGKILL before the old journal is gone": (
        engine.revert_before_the_old_journal_is_gone,
        {"a journal counts for its generation": rules.recovery_takes_any_generation},
    ),
    "two 512-byte writes into one frozen block at once": (
        engine.two_writes_into_one_frozen_block,
        {"they exclude each other": rules.locks_exclude_nobody},
    ),
    "a trim's late punch against a new write": (
        engine.late_punch_against_a_new_write,
        {
            "a write takes its blocks off the list": rules.writes_leave_their_punches,
            "a punch and a write exclude each other": rules.locks_exclude_nobody,
        },
    ),
    "a read queued to a stalled socket while its layer is reclaimed": (
        engine.read_while_its_layer_is_reclaimed,
        {"reclaim waits for reads that have begun": rules.reclaim_waits_for_no_read},
    ),
    "snapshot deletion while a redirect away from it is unflushed, then a power cut": (
        engine.deletion_while_a_redirect_is_unflushed,
        {"what reclaim decides from is synced": rules.of_the_laboratory("seal: sync of the head")},
    ),
    "a trim in a packed head, another block, then a power cut before the flush": (
        packed.another_block_after_a_trim,
        {
            "a cell is not used again before the barrier": rules.of_the_laboratory(
                "cells: not used again before the barrier"
            )
        },
    ),
    "a read against a cell that is used again": (
        packed.read_while_its_cell_is_used_again,
        {"a checkpoint waits for reads that have begun": rules.reclaim_waits_for_no_read},
    ),
    "a remount without unsynced pages after a death that left strays": (
        packed.lost_page_over_what_a_death_has_left,
        {
            "the tail begins behind the end of the file": rules.of_the_laboratory(
                "cells: the tail begins behind the end of the file"
            )
        },
    ),
    "a remount without unsynced pages after cells were punched": (
        packed.lost_page_in_a_cell_that_is_used_again,
        {
            "a cell is punched before it is used again": rules.cells_are_not_punched,
            "and the punch is synced": rules.cells_are_free_before_their_punch_is_synced,
        },
    ),
    "rotation during a flush": (
        packed.rotation_during_a_flush,
        {"the old head is synced": rules.of_the_laboratory("flush: sync of the head")},
    ),
    "settling, then a power cut (at every third change of the disk)": (
        packed.settling_at_every_third_change,
        {"copies are synced first": rules.of_the_laboratory("settled layer: sync")},
    ),
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PowerCutDisk]:
    with laboratory(), power_cut_disk(tmp_path_factory.mktemp("scenarios")) as mounted:
        yield mounted


@pytest.mark.parametrize("packed_heads", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_holds(
    disk: PowerCutDisk, monkeypatch: pytest.MonkeyPatch, name: str, packed_heads: bool
) -> None:
    """Whatever heads snapshots make; those of packed.py are packed by themselves."""
    monkeypatch.setattr(registry, "packs_heads", lambda: packed_heads)
    scenario, _ = SCENARIOS[name]
    scenario(disk)


@pytest.mark.parametrize(
    ("name", "rule"), [(name, rule) for name, (_, broken) in SCENARIOS.items() for rule in broken]
)
def test_a_scenario_fails_without_its_rule(
    disk: PowerCutDisk, monkeypatch: pytest.MonkeyPatch, name: str, rule: str
) -> None:
    """In raw heads: a packed one needs some of the rules less. Two writes of one block exclude each
    other there, too, but the second would find its block in the head."""
    monkeypatch.setattr(registry, "packs_heads", lambda: False)
    scenario, broken = SCENARIOS[name]
    with broken[rule](), pytest.raises((AssertionError, BockdError, LookupError)) as failure:
        scenario(disk)
    print(failure.value)
