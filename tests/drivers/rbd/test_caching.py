"""Giving up what is dirty: only what cannot be written back, and of no gateway that lives."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bockd.errors import (
    BockdError,
    ConflictError,
    DamagedError,
    DeviceError,
    InUseError,
    NoSpaceError,
    UnavailableError,
    UnreadableError,
    VolumeTakenError,
    from_os_error,
    volume_failed,
)
from bockd.model import CacheMode, NodeKind, VolumeId
from bockd.pool.gateways import Gateway as SharedGateway
from bockd.pool.pool import nothing_more
from bockd.publictexts import discretion
from bockd.runtime.steps import Signal, Steps, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.memoryindex import Records
from tests.drivers.rbd.spawned import is_stuck

need_modules()

from bockd.drivers.rbd import draining, inquiry  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.caching import CacheOperations  # noqa: E402
from bockd.drivers.rbd.gateways import GATEWAYS  # noqa: E402
from bockd.drivers.rbd.inquiry import LATE_SECONDS, Inquiry  # noqa: E402
from bockd.drivers.rbd.records import DirtyAt, RbdVolumeRecord, Tenures, put_record  # noqa: E402

ID = VolumeId(1)
HERE, THERE = DirtyAt("here", "log", 1.0), DirtyAt("there", "log", 1.0)
VOLUME = RbdVolumeRecord(
    id=ID,
    name="v",
    size_bytes=1 << 20,
    created_at=0.0,
    from_snapshot=None,
    failed=None,
    image="1" * 24,
    dirty_at=HERE,
)


def spawn(steps: Steps[None]) -> None:
    """Run steps up to where they wait for what never comes."""
    if is_stuck(steps):
        STUCK.append(steps)


STUCK: list[Steps[None]] = []


class Log:
    """That of a volume, which is read when it is opened."""

    trouble = "no space"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.through = False

    def write_through(self) -> None:
        self.through = True

    def write_back(self) -> None:
        self.through = False

    def drain(self) -> Steps[None]:
        steps: Steps[None] = self._gateway.drain()
        return steps

    def dirty(self) -> tuple[int, None]:
        return self._gateway.left, None

    def carried_out(self) -> int:
        self._gateway.looks += 1
        return self._gateway.looks if self._gateway.moves else 0


class Gateway:
    """A volume that is dirty at a gateway, and what becomes of it."""

    def __init__(self) -> None:
        self.now = VOLUME
        self.left = 100
        self.seconds = 0.0
        self.looks = 0
        self.moves = False
        """Switch: requests get below, from look to look."""
        self.opening: Exception | None = None
        self.openings = 0
        self.came: list[str] = []
        self.idle: list[VolumeId] = []
        """What is to be closed when it is written back."""
        self.volumes: dict[VolumeId, Any] = {}
        self.refusals: dict[VolumeId, str] = {}
        self.left_dirty: dict[VolumeId, str] = {}
        self.is_faked = True
        """The record and its image are not touched."""
        self.in_transaction: Callable[..., None] = nothing_more
        self.fronts = self
        self.write_backs = None
        self.spawn: Any = spawn
        self.drain: Any = self.succeed
        self.session = SimpleNamespace(
            who=SimpleNamespace(gateway="here", run="a" * 16),
            tenures=SimpleNamespace(look=lambda _volume: self.now),
        )

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    async def exclusive_soon(self, _node: int, steps: Any) -> None:
        await steps()

    def refuse_used(self, *_arguments: object) -> None:
        """Nobody uses it."""

    def is_dirty_here(self, _volume: VolumeId) -> bool:
        return self.now.dirty_at == HERE

    def record(self, _volume: VolumeId) -> RbdVolumeRecord:
        return self.now

    async def open_volume(self, volume: VolumeId, *_arguments: object) -> Any:
        self.openings += 1
        if self.opening is not None:
            raise self.opening
        self.volumes[volume] = SimpleNamespace(front=SimpleNamespace(log=Log(self)))
        return self.volumes[volume]

    async def succeed(self) -> None:
        self.now = replace(VOLUME, dirty_at=None)

    async def close_volume(self, volume: VolumeId, *, keep_dirty: bool = False) -> None:
        self.volumes.pop(volume, None)
        self.came.append("left" if keep_dirty else "closed")

    async def close_idle(self, kind: NodeKind, volume: VolumeId) -> None:
        assert kind is NodeKind.VOLUME
        self.idle.append(volume)

    async def discard_log(self, _image: str, *, keep: bool) -> None:
        self.came.append(f"log {keep}")

    def _discard(self, seen: RbdVolumeRecord, *_arguments: object) -> RbdVolumeRecord:
        self.came.append("discarded")
        return seen

    def discard(self) -> None:
        operations = CacheOperations(self)  # type: ignore[arg-type]
        if self.is_faked:
            patched: Any = operations
            patched._discard = self._discard
        run_inline(operations.discard(ID, self.in_transaction))


GIVEN_UP = ["left", "left", "discarded", "log True"]
"""It was closed before it was opened anew, too."""
GIVEN_UP_THERE = ["left", "discarded", "log True"]
NOTHING_DISCARDED = "its log may be intact, so nothing was discarded"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    made = Gateway()
    clock = SimpleNamespace(monotonic=lambda: made.seconds, sleep=made.sleep)
    monkeypatch.setattr(draining, "time", clock)
    return made


def test_what_can_be_written_back_is_not_given_up(gateway: Gateway) -> None:
    gateway.discard()
    assert gateway.came == ["closed"]


def raising(error: Exception) -> Any:
    async def fail() -> None:
        raise error

    return fail


def test_what_cannot_be_read_is_given_up(gateway: Gateway) -> None:
    gateway.drain = raising(UnreadableError("it cannot be read"))
    gateway.discard()
    assert (gateway.came, gateway.openings) == (GIVEN_UP, 2)


def test_what_can_be_read_once_the_log_is_opened_anew_is_not_given_up(gateway: Gateway) -> None:
    """A device that has failed refuses all, whatever the disk has come to."""

    async def fail_at_first() -> None:
        if gateway.openings < 2:
            raise UnreadableError("input/output error")
        await gateway.succeed()

    gateway.drain = fail_at_first
    gateway.discard()
    assert (gateway.came, gateway.openings) == (["left", "closed"], 2)


def test_what_is_in_a_directory_that_is_not_there_is_given_up(gateway: Gateway) -> None:
    gateway.opening = ConflictError("the directory of logs is another one")
    gateway.discard()
    assert gateway.came == GIVEN_UP


INTACT: list[BockdError] = [
    UnavailableError("the cluster does not answer"),
    NoSpaceError("the Ceph pool is full"),
    DeviceError("image x: Ceph has rbd_cache=true for it"),
    VolumeTakenError("another gateway has taken the volume"),
    volume_failed(1, "v", "a flush failed"),
    from_os_error(OSError(errno.EMFILE, ""), "opening the write-back log /logs/x"),
    from_os_error(OSError(errno.EIO, ""), "opening the write-back log /logs/x"),
]


@pytest.mark.parametrize("error", INTACT)
@pytest.mark.parametrize("where", ["opening", "drain"])
def test_what_may_be_written_back_yet_is_not_given_up(
    where: str, error: BockdError, gateway: Gateway
) -> None:
    setattr(gateway, where, error if where == "opening" else raising(error))
    gateway.refusals[ID] = "it could not be read before"
    with pytest.raises(UnavailableError, match=NOTHING_DISCARDED) as caught:
        gateway.discard()
    assert gateway.came == []
    assert not gateway.refusals, "it is tried again"
    assert gateway.idle == ([ID] if where == "drain" else [])
    assert str(error) in str(caught.value)
    assert "move the volume's log out" in str(caught.value)
    assert "/logs/x" not in discretion.text(caught.value)
    assert NOTHING_DISCARDED in discretion.text(caught.value)


def test_without_a_thread_nothing_is_given_up(gateway: Gateway) -> None:
    """So it is when the daemon is about to end, too."""

    def no_threads(_steps: Steps[None]) -> None:
        raise RuntimeError("no more threads")

    gateway.spawn = no_threads
    with pytest.raises(UnavailableError, match="nothing of volume 1 was discarded"):
        gateway.discard()
    assert gateway.came == []


def test_what_is_written_back_and_then_not_closed_was_not_given_up(gateway: Gateway) -> None:
    async def close_volume(*_arguments: object) -> None:
        raise UnavailableError("the record may name this gateway")

    patched: Any = gateway
    patched.close_volume = close_volume
    gateway.discard()
    assert gateway.came == []


def test_a_log_that_cannot_be_opened_is_given_up(gateway: Gateway) -> None:
    gateway.opening = DamagedError("it is missing")
    gateway.discard()
    assert gateway.came == GIVEN_UP


@pytest.mark.parametrize("dirty_at", [HERE, None])
def test_a_gateway_that_cannot_write_back_says_so(
    dirty_at: DirtyAt | None, gateway: Gateway
) -> None:
    session: Any = gateway.session
    session.index = Records()
    record = replace(VOLUME, cache=CacheMode.WRITE_BACK, dirty_at=dirty_at)
    put_record(session.index, record)
    operations = CacheOperations(gateway)  # type: ignore[arg-type]
    assert operations.state(record).trouble is None
    gateway.volumes[ID] = SimpleNamespace(front=SimpleNamespace(log=None))
    assert "write-through" in (operations.state(record).trouble or "")
    log = SimpleNamespace(trouble="there is no room for a log", dirty=lambda: (7, 1.0))
    gateway.volumes[ID] = SimpleNamespace(front=SimpleNamespace(log=log))
    assert operations.state(record).trouble == "there is no room for a log"


def put_run(gateway: Gateway, run: str, confirmed: int = 0) -> None:
    there = SharedGateway(name="there", run=run, since=1.0, confirmed=confirmed)
    gateway.session.index.put(GATEWAYS, b"there", msgspec.json.encode(there))


class Asked:
    """A bus that is asked for runs in two rounds, and what happens between them."""

    def __init__(self, gateway: Gateway, meanwhile: Callable[[], None], alive: str = "") -> None:
        self.rounds: list[list[str]] = []
        self.again: list[list[str]] = []
        """What was asked once more, and at once."""
        self._meanwhile = meanwhile
        self._alive = alive
        session: Any = gateway.session
        session.index = Records()
        session.bus = self
        gateway.now = replace(VOLUME, dirty_at=THERE, holder="there", run="b" * 16)

    def ask(self, *_arguments: object) -> None:
        """Nobody has it."""

    def find_alive(self, authors: Callable[[], list[str]], inquiry: Inquiry) -> str | None:
        if inquiry.runs:
            self.again.append(self._round(authors, inquiry))
            return self._alive if self._alive in self.again[-1] else None
        self.rounds.append(self._round(authors, inquiry))
        self._meanwhile()
        self.rounds.append(self._round(authors, inquiry))
        return self._alive if self._alive in self.rounds[-1] else None

    def _round(self, authors: Callable[[], list[str]], inquiry: Inquiry) -> list[str]:
        inquiry.begin_round()
        named = authors()
        inquiry.name(named)
        inquiry.end_round(all_heard=True)
        return named


@pytest.mark.parametrize("alive", [True, False])
def test_the_run_that_had_the_volume_is_asked_too(alive: bool, gateway: Gateway) -> None:
    """Another run of its name may be in the table, or none."""
    asked = Asked(gateway, lambda: None, "there/" + "b" * 16 if alive else "")
    put_run(gateway, "c" * 16)
    if alive:
        with pytest.raises(InUseError, match="is running"):
            gateway.discard()
    else:
        gateway.discard()
    assert asked.rounds == [["there/" + "b" * 16, "there/" + "c" * 16]] * 2
    assert gateway.came == ([] if alive else GIVEN_UP_THERE)


def test_a_run_that_is_started_meanwhile_is_asked(gateway: Gateway) -> None:
    """The service of a gateway is restarted, which was ended in order, so nobody was named."""
    asked = Asked(gateway, lambda: put_run(gateway, "d" * 16), "there/" + "d" * 16)
    gateway.now = replace(VOLUME, dirty_at=THERE)
    with pytest.raises(InUseError, match="is running"):
        gateway.discard()
    assert asked.rounds == [[], ["there/" + "d" * 16]]
    assert gateway.came == []


class Claim:
    """Of a lost gateway's volume: opening its image, and shutting that gateway out, may last."""

    def __init__(self, gateway: Gateway) -> None:
        self.asked = Asked(gateway, lambda: None)
        self.opened: Callable[[], None] = lambda: None
        self.looked: Callable[[], None] = lambda: None
        self.broken: Callable[[], None] = lambda: None
        put_run(gateway, "b" * 16)
        session: Any = gateway.session
        put_record(session.index, gateway.now)
        session.tenures, session.clock = Tenures(session.index), lambda: 9.0
        session.taker = SimpleNamespace(open_claim=self.open)
        gateway.is_faked = False

    def open(self, _image: str) -> Claim:
        self.opened()
        return self

    def owner(self) -> str:
        self.looked()
        return "address"

    def break_lock(self, _owner: str) -> None:
        self.broken()

    def close(self) -> None:
        """It is ended at once."""


@pytest.fixture
def claim(gateway: Gateway) -> Claim:
    return Claim(gateway)


@pytest.mark.parametrize("run", ["b", "d"])
def test_while_a_run_was_not_asked_nothing_is_given_up(
    run: str, gateway: Gateway, claim: Claim
) -> None:
    """It is started between the last question and the commit."""
    session: Any = gateway.session
    claim.looked = lambda: put_run(gateway, run * 16)
    if run == "d":
        with pytest.raises(InUseError, match="has just been started"):
            gateway.discard()
        assert "log True" not in gateway.came
    else:
        gateway.discard()
        assert session.tenures.look(ID).dirty_at is None
        assert "log True" in gateway.came


def test_who_has_confirmed_itself_since_it_was_asked_is_not_given_up(
    gateway: Gateway, claim: Claim
) -> None:
    """It answers from its logs again. Who asks was paused meanwhile, as a virtual machine may be,
    and its clocks with it."""
    claim.broken = lambda: put_run(gateway, "b" * 16, confirmed=1)
    with pytest.raises(InUseError, match="or is back, so nothing was discarded"):
        gateway.discard()
    assert "log True" not in gateway.came


def test_who_is_back_while_the_image_is_opened_is_not_given_up(
    gateway: Gateway, claim: Claim
) -> None:
    """Opening waits without a limit while the image's placement group is inactive."""

    def open_late() -> None:
        claim.asked._alive = "there/" + "b" * 16

    claim.opened = open_late
    with pytest.raises(InUseError, match="is running"):
        gateway.discard()
    assert claim.asked.again == [["there/" + "b" * 16]]
    assert gateway.session.tenures.look(ID).dirty_at == THERE


@pytest.mark.parametrize("seconds", [LATE_SECONDS - 0.1, LATE_SECONDS + 0.1])
@pytest.mark.parametrize("where", ["opened", "broken", "in transaction"])
def test_long_after_the_last_question_nothing_is_given_up(
    where: str, seconds: float, gateway: Gateway, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway may be back by then, and answer from its logs again. What lasts while the image
    is opened does no harm, since it is asked once more."""
    now = [50.0]
    monkeypatch.setattr(inquiry, "boot_seconds", lambda: now[0])

    def stand_still(*_arguments: object) -> None:
        now[0] += seconds

    if where == "in transaction":
        gateway.in_transaction = stand_still
    else:
        setattr(claim, where, stand_still)
    if where == "opened" or seconds < LATE_SECONDS:
        gateway.discard()
        assert gateway.session.tenures.look(ID).dirty_at is None
    else:
        with pytest.raises(UnavailableError, match=r"nothing was discarded.*may be back"):
            gateway.discard()
        assert "log True" not in gateway.came


async def hang() -> None:
    """Write nothing back."""
    await Signal()


def test_what_does_not_get_below_is_not_given_up(gateway: Gateway) -> None:
    """A cluster that hangs may go on."""
    gateway.drain = hang
    with pytest.raises(
        UnavailableError, match="nothing was discarded: the cluster has taken nothing for 20 s"
    ):
        gateway.discard()
    assert gateway.came == []
    STUCK.pop().close()


def test_what_goes_on_is_not_given_up_though_no_epoch_ends(gateway: Gateway) -> None:
    """What is dirty does not get less before all of an epoch is below. It goes on as it was."""
    gateway.drain, gateway.moves = hang, True
    with pytest.raises(InUseError, match="100 bytes are left, so nothing was discarded"):
        gateway.discard()
    assert gateway.came == []
    assert gateway.seconds == pytest.approx(draining.MOST_SECONDS, abs=1.0)
    assert not gateway.volumes[ID].front.log.through, "or all writes would wait for the cluster"
    STUCK.pop().close()
