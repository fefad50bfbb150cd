"""Giving up what is dirty here, with the real order of opening, taking and giving back: the record
changes with each of these."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from bockd.errors import (
    BockdError,
    ClusterUnavailableError,
    DamagedError,
    InUseError,
    UnavailableError,
    UnreadableError,
    from_os_error,
)
from bockd.model import CacheMode, VolumeId
from bockd.pool.caches import LogReach, Salvaged
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Signal, Steps, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.memoryindex import Records
from tests.drivers.rbd.spawned import is_stuck

need_modules()

from bockd.drivers.rbd import draining, patience  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.caching import CacheOperations  # noqa: E402
from bockd.drivers.rbd.fronts import Front  # noqa: E402
from bockd.drivers.rbd.inquiry import Inquiry  # noqa: E402
from bockd.drivers.rbd.leftdirty import write_back_left  # noqa: E402
from bockd.drivers.rbd.opened import OpenVolume  # noqa: E402
from bockd.drivers.rbd.opennodes import OpenNodes  # noqa: E402
from bockd.drivers.rbd.records import (  # noqa: E402
    DirtyAt,
    Identity,
    RbdVolumeRecord,
    Tenures,
    put_record,
)
from bockd.drivers.rbd.taking import Taken, Taker  # noqa: E402

ID = VolumeId(1)
VOLUME = RbdVolumeRecord(
    id=ID,
    name="v",
    size_bytes=1 << 20,
    created_at=0.0,
    from_snapshot=None,
    failed=None,
    image="1" * 24,
    dirty_at=DirtyAt("here", "log", 1.0, directory="d"),
    epoch=5,
)


class Claim:
    """An image in a cluster that has no other gateway."""

    image = None

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        gateway.call("open")

    def owner(self) -> str | None:
        self._gateway.call("owner")
        return self._gateway.owner

    def break_lock(self, _owner: str) -> None:
        self._gateway.owner = None

    def catch_up(self) -> None:
        """It has the latest map."""

    def lock(self) -> bool:
        self._gateway.owner = "address"
        return True

    def close(self) -> None:
        self._gateway.call("close")
        self._gateway.owner = None


class Log:
    """That of a volume: it is read when it is written back."""

    trouble = None

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def drain(self) -> None:
        self._gateway.read()
        if not self._gateway.below.fired:
            await self._gateway.below

    def dirty(self) -> tuple[int, float]:
        return 7, 1.0

    def carried_out(self) -> int:
        self._gateway.moved += 1
        return self._gateway.moved

    def write_through(self) -> None:
        """Nobody writes."""

    def write_back(self) -> None:
        """The same."""

    def retire(self) -> None:
        """Nobody reads."""

    async def close(self) -> None:
        """It is closed at once."""


class Gateway:
    """One that has a volume's log: with its index, and all that opens the volume."""

    def __init__(self) -> None:
        self.owner: str | None = None
        self.read: Callable[[], None] = lambda: None
        self.open_log: Callable[[], None] = lambda: None
        self.put_aside = list[str]()
        self.hangs_at = ""
        """The call to the cluster, as "open 2" for the second one, that hangs until `answers`."""
        self.answers = threading.Event()
        self.on_hanging: Callable[[], None] = lambda: None
        self._calls = list[str]()
        records: Any = Records()
        put_record(records, VOLUME)
        who, self.tenures = Identity("here", "a" * 16), Tenures(records)
        bus: Any = SimpleNamespace()
        session: Any = SimpleNamespace(
            who=who,
            index=records,
            tenures=self.tenures,
            clock=lambda: 9.0,
            settings=SimpleNamespace(max_open_volumes=1),
            taker=Taker(who, lambda _image: Claim(self), bus, self.tenures),
        )
        self.below = Signal()
        self.below.fire()
        self.moved = 0
        self._spawned = list[Steps[None]]()
        self.nodes = cast(Any, OpenNodes(session, self._spawn))
        self.nodes._fronted = self._fronted
        self.nodes.fronts.refuse_dirty = self._find_directory
        self.nodes.fronts.discard_log = self._discard_log
        self.nodes.left_dirty[ID] = VOLUME.image
        self.operations = CacheOperations(self.nodes)

    def call(self, name: str) -> None:
        """Call the cluster, which may hang."""
        self._calls.append(name)
        if self.hangs_at == f"{name} {self._calls.count(name)}":
            self.on_hanging()
            assert self.answers.wait(60)

    async def _find_directory(self, _record: RbdVolumeRecord) -> None:
        """It is there, with the log."""

    async def _discard_log(self, image: str, *, keep: bool) -> None:
        assert keep
        self.put_aside.append(image)

    async def _fronted(self, _volume: VolumeId, taken: Taken[Any]) -> OpenVolume:
        self.open_log()
        device: Any = SimpleNamespace(lost=Signal(), size_bytes=VOLUME.size_bytes)
        log: Any = Log(self)
        return OpenVolume(taken, device, Front(device, log=log))

    def discard(self) -> None:
        """Give it up, if that may be."""
        run_inline(self.operations.discard(ID))

    def go_on(self) -> None:
        """Run what is left to be done in the background, to its end."""
        while self._spawned:
            run_inline(self._spawned.pop(0))

    def _spawn(self, steps: Steps[None]) -> None:
        """Run steps up to where they wait for others."""
        if is_stuck(steps):
            self._spawned.append(steps)


def raising(error: BockdError) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.mark.parametrize("where", ["open_log", "read"])
def test_what_cannot_be_read_here_is_given_up(where: str, gateway: Gateway) -> None:
    """To try takes the volume, and gives it back: the record has another epoch then."""
    error = DamagedError("a checksum") if where == "open_log" else UnreadableError("a sector")
    setattr(gateway, where, raising(error))
    gateway.discard()
    now = gateway.tenures.look(ID)
    assert (now.dirty_at, now.holder, gateway.owner) == (None, None, None)
    assert now.epoch > VOLUME.epoch + 1, "it was tried"
    assert gateway.put_aside == [VOLUME.image]
    assert not gateway.nodes.left_dirty


@pytest.mark.parametrize(
    "other", [{"image": "2" * 24}, {"dirty_at": DirtyAt("here", "another log", 2.0)}]
)
def test_what_has_another_image_or_log_meanwhile_is_not_given_up(
    other: dict[str, Any], gateway: Gateway
) -> None:
    def fail() -> None:
        put_record(gateway.nodes.session.index, replace(gateway.tenures.look(ID), **other))
        raise DamagedError("a checksum")

    gateway.open_log = fail
    with pytest.raises(InUseError, match="has just opened or written back volume 1"):
        gateway.discard()
    assert gateway.tenures.look(ID).dirty_at is not None
    assert not gateway.put_aside


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_was_opened_and_not_given_up_is_closed(
    goes_on: bool, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it is written back: it has a lock, and the place of another one."""
    monkeypatch.setattr(draining, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(draining, "LOOK_SECONDS", 0.0)
    if goes_on:
        gateway.below = Signal()
        with pytest.raises(InUseError, match="7 bytes are left, so nothing was discarded"):
            gateway.discard()
        gateway.below.fire()
    else:
        gateway.read = raising(UnavailableError("the cluster does not answer"))
        with pytest.raises(UnavailableError, match="nothing was discarded: the cluster does not"):
            gateway.discard()
        gateway.read = lambda: None
    assert gateway.nodes.volumes
    gateway.go_on()
    assert (gateway.owner, gateway.nodes.volumes) == (None, {})
    assert gateway.tenures.look(ID).dirty_at is None


def test_what_could_not_be_read_once_is_tried_again(gateway: Gateway) -> None:
    """The second time there may be no file to be had: nothing says that the log is damaged."""
    errors: list[BockdError] = [
        DamagedError("a checksum"),
        from_os_error(OSError(errno.EMFILE, ""), "a log"),
    ]

    def fail() -> None:
        if errors:
            raise errors.pop(0)

    gateway.open_log = fail
    with pytest.raises(UnavailableError, match="it is written back by itself"):
        gateway.discard()
    assert gateway.tenures.look(ID).dirty_at is not None
    run_inline(write_back_left(gateway.nodes, ID))
    assert gateway.tenures.look(ID).dirty_at is None
    assert gateway.owner is None


class Begun:
    """What writes back what is whole of a damaged log."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.closed = False

    async def drain(self) -> None:
        assert self._gateway.owner == "address", "the volume is taken"
        assert self._gateway.tenures.look(ID).dirty_at is not None
        self._gateway.read()
        if not self._gateway.below.fired:
            await self._gateway.below

    def carried_out(self) -> int:
        self._gateway.moved += 1
        return self._gateway.moved

    def left_bytes(self) -> int:
        return 7

    def result(self) -> Salvaged:
        assert self.closed
        return Salvaged(20, 30)

    async def close(self) -> None:
        assert self._gateway.owner == "address", "it is not given back before"
        self.closed = True
        self._gateway.below.fire()


def damaged(gateway: Gateway, *, usable: bool = True) -> list[tuple[str, LogReach]]:
    """Have a log that is damaged. Return what is asked for that is written back of it."""
    gateway.open_log = raising(DamagedError("a checksum"))
    asked = list[tuple[str, LogReach]]()

    async def salvage(_below: object, image: str, reach: LogReach) -> Begun | None:
        asked.append((image, reach))
        return Begun(gateway) if usable else None

    gateway.nodes.fronts.write_backs = SimpleNamespace(salvage=salvage)
    return asked


def test_what_is_whole_of_a_damaged_log_is_written_back_before_the_rest_is_given_up(
    gateway: Gateway,
) -> None:
    asked = damaged(gateway)
    gateway.discard()
    now = gateway.tenures.look(ID)
    assert (now.dirty_at, now.salvaged, gateway.owner) == (None, (20, 30), None)
    assert asked == [(VOLUME.image, LogReach("log", 0, 0))]
    assert gateway.put_aside == [VOLUME.image]
    state = gateway.operations.state(now)
    assert state.salvaged == Salvaged(20, 30)


def test_of_what_cannot_be_read_to_its_end_the_rest_is_given_up(gateway: Gateway) -> None:
    damaged(gateway)
    gateway.read = raising(UnreadableError("a sector"))
    gateway.discard()
    assert gateway.tenures.look(ID).salvaged == (20, 30)


@pytest.mark.parametrize("unnotable", [True, False])
def test_of_a_log_that_cannot_be_used_nothing_is_written_back(
    unnotable: bool, gateway: Gateway
) -> None:
    asked = damaged(gateway, usable=unnotable)
    if unnotable:  # more may be there than it says
        gateway.tenures.mark_unnotable(ID, VOLUME.epoch)
    gateway.discard()
    now = gateway.tenures.look(ID)
    assert (now.dirty_at, now.salvaged, bool(asked)) == (None, None, not unnotable)
    assert gateway.put_aside == [VOLUME.image]


def test_while_the_cluster_does_not_take_what_is_whole_nothing_is_given_up(
    gateway: Gateway,
) -> None:
    damaged(gateway)
    gateway.read = raising(ClusterUnavailableError("the cluster does not answer"))
    with pytest.raises(UnavailableError, match="nothing was discarded: the cluster does not"):
        gateway.discard()
    assert gateway.tenures.look(ID).dirty_at == VOLUME.dirty_at
    assert (gateway.put_aside, gateway.owner) == ([], None)


def test_a_long_log_is_written_back_by_several_commands(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(draining, "LOOK_SECONDS", 0.0)
    damaged(gateway)
    gateway.below = Signal()
    with pytest.raises(InUseError, match=r"7 bytes are left.*discard again, and that"):
        gateway.discard()
    assert gateway.tenures.look(ID).dirty_at == VOLUME.dirty_at
    assert (gateway.put_aside, gateway.owner) == ([], None)
    gateway.discard()
    assert gateway.tenures.look(ID).salvaged == (20, 30)


def test_a_log_that_is_discarded_anew_says_nothing_of_an_earlier_one(gateway: Gateway) -> None:
    old = replace(VOLUME, salvaged=Salvaged(1, 2))
    put_record(gateway.nodes.session.index, old)
    gateway.open_log = raising(DamagedError("a checksum"))
    gateway.discard()
    assert gateway.tenures.look(ID).salvaged is None


class Bus:
    """On which one run answers, or none."""

    def __init__(self, alive: str) -> None:
        self.asked = list[list[str]]()
        self._alive = alive

    def find_alive(self, authors: Callable[[], list[str]], inquiry: Inquiry) -> str | None:
        inquiry.begin_round()
        named = authors()
        inquiry.name(named)
        inquiry.end_round(all_heard=True)
        self.asked.append(named)
        return self._alive if self._alive in named else None


@pytest.mark.parametrize("lives", [True, False])
def test_another_run_of_this_gateways_name_is_asked(lives: bool, gateway: Gateway) -> None:
    """It may live on another machine, with the log, which is not here: it answers flushes from it
    until it finds that its name was taken."""
    other = "here/" + "b" * 16
    session: Any = gateway.nodes.session
    session.bus = Bus(other if lives else "")
    put_record(session.index, replace(VOLUME, holder="here", run="b" * 16, address="its"))
    gateway.owner = "its"

    async def missing(_record: RbdVolumeRecord) -> None:
        raise DamagedError("the log is missing")

    gateway.nodes.fronts.refuse_dirty = missing
    if lives:
        with pytest.raises(InUseError, match=r"gateway here, .* is running"):
            gateway.discard()
        assert gateway.tenures.look(ID).dirty_at == VOLUME.dirty_at
        assert gateway.owner == "its"
        assert session.bus.asked == [[other]]
    else:
        gateway.discard()
        assert gateway.tenures.look(ID).dirty_at is None
        assert session.bus.asked == [[other], [other]], "once more when the image was opened"


async def hang(gateway: Gateway, where: str) -> None:
    """Discard while a call to the cluster hangs; then have it answer."""
    runner = StepRunner()
    gateway.hangs_at = where

    async def unused() -> None:
        raise AssertionError

    async with trio.open_nursery() as nursery:
        gateway.nodes.spawn = lambda steps: nursery.start_soon(runner.run, steps)
        try:
            with pytest.raises(ClusterUnavailableError, match="nothing of volume 1 was discarded"):
                await runner.run(gateway.operations.discard(ID))
            for other in (
                gateway.operations.discard(ID),
                gateway.operations.set_mode(ID, CacheMode.NONE),
                gateway.nodes.exclusive_soon(ID, unused),
            ):
                with pytest.raises(ClusterUnavailableError, match="an earlier operation"):
                    await runner.run(other)
        finally:
            gateway.answers.set()


@pytest.mark.parametrize("where", ["open 1", "close 1", "open 2", "open 3", "owner 5", "close 3"])
def test_what_was_not_discarded_in_time_is_not_discarded_later(
    where: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image hangs: whoever asked is told, and so are those who ask for the next operation."""
    gateway.on_hanging = lambda: monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.01)
    gateway.open_log = raising(DamagedError("a checksum"))
    trio.run(hang, gateway, where)
    assert gateway.tenures.look(ID).dirty_at == VOLUME.dirty_at
    assert (gateway.put_aside, gateway.owner, gateway.nodes.unfinished()) == ([], None, 0)


def test_what_was_not_opened_in_time_is_written_back_later(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.on_hanging = lambda: monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.01)
    trio.run(hang, gateway, "open 1")
    now = gateway.tenures.look(ID)
    assert (now.dirty_at, now.holder, gateway.nodes.volumes) == (None, None, {})
    assert not gateway.put_aside
