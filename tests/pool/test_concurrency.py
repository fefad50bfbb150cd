"""Operations at once, under trio as the daemon runs them: each is done or refused as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from bockd.config.rbd import RbdSettings
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.memory.pool import MemoryPool
from bockd.errors import BockdError, ConflictError, NotFoundError
from bockd.model import MIB, NodeKind
from bockd.pool.pool import Pool
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn, Steps

AT_ONCE = 12

Play = Callable[[Pool, StepRunner], Any]
Opening = Callable[[Spawn], Pool]


@pytest.fixture(params=["local", "memory", "rbd"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """Opens a pool of each kind, in the loop."""
    if request.param == "local":
        return lambda spawn: LocalPool.open(tmp_path, spawn)
    if request.param == "memory":
        return lambda _spawn: MemoryPool()
    settings: RbdSettings = request.getfixturevalue("rbd_namespace")
    from bockd.drivers.rbd.pool import RbdPool  # only where Ceph's modules are

    return lambda spawn: RbdPool.open(
        settings, tmp_path, spawn, trio.lowlevel.current_trio_token().run_sync_soon
    )


def in_trio(opening: Opening, play: Play) -> None:
    """Run `play` with a pool whose background work runs beside it."""

    async def main() -> None:
        runner = StepRunner()
        async with trio.open_nursery() as background:

            def spawn(steps: Steps[None]) -> None:
                background.start_soon(runner.run, steps)

            pool = opening(spawn)
            await play(pool, runner)
            report = await runner.run(pool.check())
            assert report.clean, report.problems
            await runner.run(pool.close_all())
        pool.release()

    trio.run(main)


async def outcomes(runner: StepRunner, operations: list[Steps[Any]]) -> Counter[str]:
    """Run all at once, and count what became of them."""
    found: Counter[str] = Counter()

    async def one(operation: Steps[Any]) -> None:
        try:
            await runner.run(operation)
        except BockdError as error:
            found[type(error).__name__] += 1
        else:
            found["done"] += 1

    async with trio.open_nursery() as nursery:
        for operation in operations:
            nursery.start_soon(one, operation)
    return found


def test_of_many_who_want_one_name_one_gets_it(opening: Opening) -> None:
    async def play(pool: Pool, runner: StepRunner) -> None:
        wanted = [pool.create_volume("one", MIB) for _ in range(AT_ONCE)]
        found = await outcomes(runner, wanted)
        # Two that make files for the same id at once are a conflict, too, and may try again.
        assert found["done"] == 1
        assert found["done"] + found[ConflictError.__name__] == AT_ONCE

    in_trio(opening, play)


def test_of_many_who_delete_one_volume_one_does(opening: Opening) -> None:
    async def play(pool: Pool, runner: StepRunner) -> None:
        volume = (await runner.run(pool.create_volume("one", MIB))).id
        found = await outcomes(runner, [pool.delete_volume(volume) for _ in range(AT_ONCE)])
        assert found == {"done": 1, NotFoundError.__name__: AT_ONCE - 1}

    in_trio(opening, play)


def test_snapshots_growth_and_deletion_at_once_leave_a_whole_pool(opening: Opening) -> None:
    async def play(pool: Pool, runner: StepRunner) -> None:
        volume = (await runner.run(pool.create_volume("one", MIB))).id
        operations: list[Steps[Any]] = []
        for number in range(4):
            operations.append(pool.create_snapshot(volume, f"s{number}"))
            operations.append(pool.extend_volume(volume, (2 + number) * MIB))
            operations.append(pool.use(NodeKind.VOLUME, volume))
        operations.append(pool.delete_volume(volume))
        found = await outcomes(runner, operations)
        assert found["done"] >= 1
        with pool.nodes() as nodes:
            snapshots = list(nodes.snapshots())
            volumes = list(nodes.volumes())
        assert all(one.volume == volume for one in snapshots)
        for _ in range(pool.users(NodeKind.VOLUME, volume)):
            pool.leave(NodeKind.VOLUME, volume)
        if volumes:
            await runner.run(pool.close_idle(NodeKind.VOLUME, volume))
            await runner.run(pool.delete_volume(volume))

    in_trio(opening, play)
