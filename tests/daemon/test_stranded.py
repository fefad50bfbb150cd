"""What a gateway has begun that does not answer any more is resolved by another one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bockd.blockstorage.contract import Status, TenantId
from bockd.blockstorage.interrupted import resolve_interrupted
from bockd.blockstorage.records import Ledger, OwnedVolume
from bockd.daemon.detachings import Detachings
from bockd.daemon.retrying import Retrying
from bockd.daemon.stranded import Stranded
from bockd.errors import InUseError, UnavailableError
from bockd.model import NodeKind, VolumeId
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps, run_inline
from tests.blockstorage.gateways import Gateway, World


class HungError(Exception):
    """Leaves an operation in the middle."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def gateways(world: World) -> Iterator[tuple[Gateway, Gateway]]:
    a, b = world.start("a"), world.start("b")
    yield a, b
    b.assert_sound()
    for gateway in (a, b):
        gateway.die()


def attaching(a: Gateway) -> tuple[TenantId, VolumeId]:
    """A volume that is being attached when the gateway hangs."""

    def hang() -> None:
        raise HungError

    tenant = a.accounts.create_tenant("acme").id
    volume = a.volume(tenant).id
    a.hooks.at["publish"] = hang
    with pytest.raises(HungError):
        a.attach(tenant, volume)
    return tenant, volume


def stranded(gateway: Gateway, round_seconds: float = 30.0) -> Stranded:
    """Rounds that do in place what others do in the background."""

    def spawn(steps: Steps[None]) -> None:
        run_inline(steps)

    return Stranded(
        gateway.context,
        gateway.table,
        StepRunner(),
        Detachings(gateway.context, Retrying(spawn)),
        round_seconds,
    )


def test_a_run_that_is_silent_twice_is_gone(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    a, b = gateways
    _, volume = attaching(a)

    async def main() -> None:
        rounds = stranded(b)
        await rounds.round()
        await rounds.round()
        assert b.status(volume) is Status.ATTACHING
        a.hang()
        await rounds.round()
        world.alive.add(a.table.author)
        await rounds.round()
        a.hang()
        await rounds.round()
        assert b.status(volume) is Status.ATTACHING
        assert [one.name for one in b.table.all()] == ["a", "b"]
        await rounds.round()
        assert b.status(volume) is Status.AVAILABLE
        assert b.hooks.calls == ["withdraw"]
        assert [one.name for one in b.table.all()] == ["b"]

    trio.run(main)


def test_a_run_that_is_in_no_table_is_asked_for_what_it_has_begun(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    """Its gateway has started again, under another name perhaps."""
    a, b = gateways
    _, volume = attaching(a)
    a.hang()
    b.table.forget(a.table.author)

    async def main() -> None:
        rounds = stranded(b)
        await rounds.round()
        await rounds.round()
        assert b.status(volume) is Status.AVAILABLE

    trio.run(main)


def test_nobody_is_gone_while_nobody_can_be_asked(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    a, b = gateways
    _, volume = attaching(a)
    a.hang()

    async def main() -> None:
        rounds = stranded(b)
        await rounds.round()
        world.reachable = False
        with pytest.raises(UnavailableError):
            await rounds.round()
        world.reachable = True
        world.alive.add(a.table.author)
        await rounds.round()
        assert b.status(volume) is Status.ATTACHING

    trio.run(main)


def test_of_two_that_resolve_at_once_one_does(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    a, b = gateways
    _, volume = attaching(a)
    a.hang()
    c = world.start("c")

    async def main() -> None:
        one, two = stranded(b), stranded(c)
        for rounds in (one, two, one, two):
            await rounds.round()
        assert b.status(volume) is Status.AVAILABLE
        assert (b.hooks.calls, c.hooks.calls) == (["withdraw"], [])

    trio.run(main)
    c.die()


def test_a_gateway_whose_name_was_taken_ends(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    a, _ = gateways
    a.hang()
    again = world.start("a")

    async def main() -> None:
        with pytest.raises(InUseError, match="has taken the name of this gateway"):
            await stranded(a, 0.0).run()

    a.index.refresh()
    trio.run(main)
    again.die()


def test_what_this_gateway_has_had_to_give_up_is_resolved(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    """The operation has failed, and its last commit, too."""
    a, b = gateways
    _, volume = attaching(a)

    async def main() -> None:
        rounds, others = stranded(a), stranded(b)
        with a.context.working_on(NodeKind.VOLUME, volume):
            for _ in range(3):
                await rounds.round()
                await others.round()
        assert a.status(volume) is Status.ATTACHING
        await rounds.round()
        assert a.status(volume) is Status.ATTACHING
        await rounds.round()
        assert a.status(volume) is Status.AVAILABLE
        assert b.hooks.calls == []

    trio.run(main)


def test_a_detaching_that_is_tried_again_is_not_begun_twice(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    a, _ = gateways
    _, volume = attaching(a)
    tries: list[Steps[None]] = []

    async def main() -> None:
        rounds = Stranded(
            a.context, a.table, StepRunner(), Detachings(a.context, Retrying(tries.append))
        )
        for _ in range(5):
            await rounds.round()
        assert a.status(volume) is Status.DETACHING
        (only,) = tries
        run_inline(only)
        assert a.status(volume) is Status.AVAILABLE
        await rounds.round()

    trio.run(main)
    assert len(tries) == 1


def test_what_a_start_finishes_no_round_begins_again(
    world: World, gateways: tuple[Gateway, Gateway]
) -> None:
    a, _ = gateways
    _, volume = attaching(a)
    tries: list[Steps[None]] = []
    detachings = Detachings(a.context, Retrying(tries.append))
    for owned in run_inline(resolve_interrupted(a.context, lambda _worker, _key: True)):
        detachings.finish(owned)

    async def main() -> None:
        rounds = Stranded(a.context, a.table, StepRunner(), detachings)
        for _ in range(5):
            await rounds.round()

    trio.run(main)
    (only,) = tries
    run_inline(only)
    assert a.status(volume) is Status.AVAILABLE
    assert detachings.unfinished() == set()


def test_the_records_are_not_decoded_by_the_event_loop(
    gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be tens of thousands, and clients wait meanwhile."""
    a, _ = gateways
    _, volume = attaching(a)
    readers: list[int] = []
    real = Ledger.sound_volumes

    def look(ledger: Ledger) -> Iterator[OwnedVolume]:
        readers.append(threading.get_ident())
        return real(ledger)

    monkeypatch.setattr(Ledger, "sound_volumes", look)

    async def main() -> None:
        tries: list[Steps[None]] = []
        rounds = Stranded(
            a.context, a.table, StepRunner(), Detachings(a.context, Retrying(tries.append))
        )
        while not tries:
            await rounds.round()
        await StepRunner().run(tries[0])

    trio.run(main)
    assert a.status(volume) is Status.AVAILABLE
    assert readers
    assert threading.get_ident() not in readers
