"""The byte budget: nobody waits for ever, nothing is lost."""

from __future__ import annotations

import trio
import trio.testing

from bockd.nbd.server.budget import Account, MemoryBudget
from bockd.nbd.server.limits import PIECE_BYTES
from tests.nbd.server.serving import in_trio

SHARED = 2 * PIECE_BYTES


@in_trio
async def test_what_others_hold_leaves_one_piece_for_each() -> None:
    budget = MemoryBudget(SHARED)
    greedy, modest = Account(budget), Account(budget)
    for _ in range(3):  # two shared ones and its own
        await greedy.acquire(PIECE_BYTES)
    await modest.acquire(PIECE_BYTES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(modest.acquire, PIECE_BYTES)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        modest.release(PIECE_BYTES)
    modest.release(PIECE_BYTES)
    for _ in range(3):
        greedy.release(PIECE_BYTES)
    assert budget.free_bytes == SHARED


@in_trio
async def test_a_cancelled_wait_takes_nothing() -> None:
    budget = MemoryBudget(0)
    account = Account(budget)
    await account.acquire(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(account.acquire, 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        account.release(100)  # granted in the moment of its cancellation
    assert budget.free_bytes == 0
    await account.acquire(PIECE_BYTES)


@in_trio
async def test_of_one_connection_one_request_waits_in_the_budget() -> None:
    """Whoever gives something back asks all who wait there: they must be few."""
    budget = MemoryBudget(0)
    greedy, modest = Account(budget), Account(budget)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(greedy.acquire, PIECE_BYTES)
        await trio.testing.wait_all_tasks_blocked()
        assert len(budget._waiters) == 1
        await modest.acquire(PIECE_BYTES)
        for _ in range(99):
            greedy.release(PIECE_BYTES)
            await trio.testing.wait_all_tasks_blocked()
    assert not budget._waiters


@in_trio
async def test_charges_overdraw_and_settle() -> None:
    budget = MemoryBudget(SHARED)
    account, other = Account(budget), Account(budget)
    account.charge(2 * SHARED)
    other.charge(100)
    await other.repay()  # within its own piece
    async with trio.open_nursery() as nursery:
        nursery.start_soon(account.repay)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        account.discharge(SHARED + 100)
    account.discharge(SHARED - 100)
    other.discharge(100)
    assert budget.free_bytes == SHARED
