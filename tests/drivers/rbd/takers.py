"""Several gateways that take one volume from one another, in memory and in any order.

Each gateway is a few coroutines; whatever they await is a step, and the schedule decides whose step
comes next. It also decides when a write that was sent is carried out, when the OSD hears of a new
map, when a question is given up, who dies in which step, and who starts again. A gateway that hangs
is one whose turn does not come.

    python -m tests.drivers.rbd.takers --seed 1000 --schedules 50000

The rules, which raise ViolationError: one gateway at most has the lock and is not shut out; once a
gateway has written, nothing that an earlier owner of the lock had sent lands; epochs are given in
the order of locks; who has clients and says so is not shut out by the polite, who can be asked is
asked, and no taking asks or tries more than thrice; whatever was opened is closed; in the end the
record names who has the volume. What a gateway has made dirty is dirty until it has written it
back: meanwhile nobody else has the volume.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, cast

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.records import (
    DirtyAt,
    Identity,
    RbdVolumeRecord,
    Tenures,
    put_record,
    volume_record,
)
from bockd.drivers.rbd.taking import TRIES, Taken, Taker
from bockd.errors import InUseError, UnavailableError, VolumeTakenError
from bockd.model import VolumeId
from bockd.pool.index import Index, Transaction
from bockd.runtime.steps import blocking

from .memoryindex import Records
from .turns import Thread, seeded

Event = Callable[[], None]

VOLUME = VolumeId(7)
IMAGE = "0" * 24
LIVES = 2
"""Of a gateway."""
SELDOM = 12
"""One step in so many may be the gateway's last."""
WRITES = 2
"""Of a tenure, at most."""


class ViolationError(AssertionError):
    """A rule was broken."""


def require(held: bool, rule: str) -> None:
    if not held:
        raise ViolationError(rule)


class Ending(Exception):  # noqa: N818 - no error
    """The OSD refuses an operation of a connection that was shut out."""


@dataclass(eq=False)
class Connection:
    """A claim of a gateway on the image."""

    world: World
    gateway: Gateway
    address: str
    map: int
    term: int = 0
    """Counts who has had the lock."""
    asked: bool = False
    open: bool = True
    sent: list[int] = field(default_factory=list)
    """Writes on their way, as the map with which each was sent."""

    def __post_init__(self) -> None:
        self.life = self.gateway.lives

    @property
    def alive(self) -> bool:
        return self.open and self.gateway.alive and self.gateway.lives == self.life

    def owner(self) -> str | None:
        return None if self.world.owner is None else self.world.owner.address

    def is_watching(self, owner: str) -> bool:
        return owner in self.world.watching

    def break_lock(self, owner: str) -> None:
        self.world.break_lock(self, owner, remove=True)

    def catch_up(self) -> None:
        self.map = self.world.map

    def lock(self) -> bool:
        return self.world.lock(self)

    def close(self) -> None:
        assert not self.sent
        self.world.disconnect(self)
        if self.world.owner is self:
            self.world.owner = None


class Gateway:
    """A gateway, which takes the volume, writes to it, and may give it back."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.lives = 0
        self.alive = False
        self.threads: list[Thread] = []
        self.taken: Taken[Connection] | None = None
        self.has_clients = False
        self.question = 0
        """Counts them."""
        self.answers: dict[int, str] = {}
        """Who keeps the volume."""
        self.told: str | None = None
        """What it has heard of that in this taking."""
        self.manner = Manner.FIRM
        self.opened = 0

    def start(self) -> None:
        """Begin a life, in which it takes the volume."""
        self.begin()
        self.spawn(self.live())

    def begin(self) -> None:
        """Begin a life."""
        self.lives += 1
        self.alive = True
        self.opened = 0
        self.told = None
        self.who = Identity(self.name, f"{self.lives:016}")
        world = self.world
        self.taker = world.taker(self.who, self.open_claim, self, world.tenures)

    def spawn(self, steps: Coroutine[Any, Any, None]) -> Thread:
        thread = Thread(steps)
        thread.go_on(lambda: None)
        self.threads.append(thread)
        return thread

    def events(self) -> list[Event]:
        """What it may do next."""
        self.threads = [one for one in self.threads if one.call is not None]
        return [event for one in self.threads for event in self.world.steps(self, one)]

    def die(self) -> None:
        self.alive = False
        for thread in self.threads:
            thread.end()
        self.threads, self.taken = [], None

    # -- what it does ------------------------------------------------------------------------

    async def live(self) -> None:
        self.manner = (Manner.FIRM, Manner.POLITE)[self.world.choose(2)]
        try:
            taken = await self.taker.take(VOLUME, self.manner)
        except (InUseError, UnavailableError):
            return
        self.world.note(taken)
        self.taken, self.has_clients = taken, bool(self.world.choose(2))
        try:
            for _ in range(self.world.choose(WRITES + 1)):
                await blocking((self.write, self.make_dirty)[self.world.choose(2)], taken)
        except VolumeTakenError:
            self.lose(taken.claim)
        if self.taken is taken and self.world.choose(2):
            await self.leave(taken)

    def make_dirty(self, taken: Taken[Connection]) -> None:
        """Answer a write that the image does not have."""
        if self.taken is taken:
            world, dirty = self.world, DirtyAt(self.name, "log", 0.0)
            world.tenures.mark_dirty(VOLUME, taken.epoch, dirty, "directory")
            require(world.dirty in (None, self.name), "one gateway at most makes a volume dirty")
            require(world.epoch() == taken.epoch, "who does not have the volume makes it dirty")
            world.dirty = self.name

    def write_back(self, taken: Taken[Connection]) -> None:
        """Have the image have all that was answered."""
        if self.world.dirty == self.name and not self.world.is_shut_out(taken.claim):
            self.world.tenures.mark_clean(VOLUME, taken.epoch)
            self.world.dirty = None

    def write(self, taken: Taken[Connection]) -> None:
        if self.taken is taken:
            taken.claim.sent.append(taken.claim.map)

    async def leave(self, taken: Taken[Connection]) -> None:
        try:
            if self.world.choose(2):  # else it ends, and keeps it for its next life
                await blocking(self.write_back, taken)
        except VolumeTakenError:
            self.lose(taken.claim)
        if self.taken is not taken:
            return
        self.taken = None
        await self.taker.give_back(taken)

    def lose(self, claim: Connection) -> None:
        """Learn that the volume was taken."""
        if self.taken is not None and self.taken.claim is claim:
            taken, self.taken = self.taken, None
            self.spawn(self.close(taken))

    async def close(self, taken: Taken[Connection]) -> None:
        await blocking(taken.claim.close)

    # -- between gateways --------------------------------------------------------------------

    def open_claim(self, image: str) -> Connection:
        assert image == IMAGE
        self.opened += 1
        require(self.opened <= TRIES, "a taking ends after three tries")
        return self.world.connect(self)

    def ask(self, image: str, manner: Manner, limit_seconds: float | None = None) -> str | None:
        """See `World.question`, which comes before it."""
        assert (image, manner) == (IMAGE, self.manner)
        claims = [one for one in self.world.connections if one.gateway is self and one.alive]
        if limit_seconds is None:
            claims[-1].asked = True
        self.told = self.answers.get(self.question)
        return self.told

    async def answer(self, asker: Gateway, question: int, manner: Manner) -> None:
        taken = self.taken
        if taken is None:
            return
        if manner is Manner.POLITE and self.has_clients:
            await blocking(self.keep, asker, question)
            return
        await self.leave(taken)

    def keep(self, asker: Gateway, question: int) -> None:
        asker.answers[question] = self.name


class World:
    """The cluster, and those who use it."""

    def __init__(
        self,
        choose: Callable[[int], int],
        *,
        gateways: int = 3,
        deaths: int = 2,
        taker: type[Taker[Connection]] = Taker,
        tenures: type[Tenures] = Tenures,
        breaking_shuts_out: bool = True,
    ) -> None:
        self.choose = choose
        self.deaths = deaths
        self.taker = taker
        self.breaking_shuts_out = breaking_shuts_out
        self.records = Records()
        self.tenures = tenures(cast(Index, self.records))
        record = RbdVolumeRecord(
            id=VOLUME,
            name="v",
            size_bytes=1 << 20,
            created_at=0.0,
            from_snapshot=None,
            failed=None,
            image=IMAGE,
        )
        put_record(cast(Transaction, self.records), record)
        self.map = 0
        self.osd_map = 0
        self.shut_out: dict[str, int] = {}
        """Since which map."""
        self.owner: Connection | None = None
        self.landed = 0
        """The last term of which something was written."""
        self.watching: dict[str, Connection] = {}
        self.connections: list[Connection] = []
        self.epochs: dict[int, int] = {}
        self.dirty: str | None = None
        """The gateway that has answered what the image does not have."""
        self._terms = count(1)
        self._last: Gateway | None = None
        self.gateways = [Gateway(self, name) for name in "abcd"[:gateways]]

    # -- the cluster -------------------------------------------------------------------------

    def connect(self, gateway: Gateway) -> Connection:
        made = Connection(self, gateway, f"{gateway.name}{len(self.connections)}", self.map)
        self.connections.append(made)
        self.watching[made.address] = made
        return made

    def disconnect(self, connection: Connection) -> None:
        connection.open = False
        self.watching.pop(connection.address, None)

    def _carry_out(self, connection: Connection, its_map: int) -> None:
        """Something is written by a connection that sent it with that map."""
        self.osd_map = max(self.osd_map, its_map)
        if self.shut_out.get(connection.address, self.osd_map + 1) <= self.osd_map:
            raise Ending
        require(connection.term >= self.landed, "nothing stale lands")
        self.landed = connection.term

    def lock(self, connection: Connection) -> bool:
        if self.owner is not None:
            return False
        self.owner = connection
        connection.term = next(self._terms)
        for other in self.connections:
            has_had = 0 < other.term < connection.term and other.alive
            require(
                not has_had or other.address in self.shut_out,
                "one gateway at most has the lock and is not shut out",
            )
        return True

    def break_lock(self, connection: Connection, address: str, *, remove: bool) -> None:
        if self.owner is None or self.owner.address != address:
            return
        owner, taker = self.owner.gateway, connection.gateway
        if owner is not taker and self.owner.alive:
            record = volume_record(cast(Transaction, self.records), VOLUME)
            own = (record.holder, record.address) == (taker.name, address)
            require(connection.asked or own, "who can be asked is asked")
        require(taker.told is None, "who says that it keeps the volume is not shut out")
        if self.breaking_shuts_out and address not in self.shut_out:
            self.map += 1
            self.shut_out[address] = self.map
        if remove:
            self.owner = None

    def epoch(self) -> int:
        return volume_record(cast(Transaction, self.records), VOLUME).epoch

    def is_shut_out(self, connection: Connection) -> bool:
        return connection.address in self.shut_out

    def note(self, taken: Taken[Connection]) -> None:
        """Somebody was told that it has the volume."""
        if self.epoch() == taken.epoch:
            name = taken.claim.gateway.name
            require(self.dirty in (None, name), "nobody has a volume that is dirty elsewhere")
        self.epochs[taken.claim.term] = taken.epoch
        given = [self.epochs[term] for term in sorted(self.epochs)]
        require(given == sorted(set(given)), "epochs are given in the order of locks")

    # -- the schedule ------------------------------------------------------------------------

    def run(self) -> None:
        for gateway in self.gateways:
            gateway.start()
        try:
            while events := self._events():
                # Often the same gateway goes on, or most schedules would be much the same.
                again = self._last.events() if self._last and self.choose(2) else []
                chosen = again or events
                chosen[self.choose(len(chosen))]()
            self._judge()
        finally:
            for gateway in self.gateways:
                for thread in gateway.threads:
                    thread.end()

    def _events(self) -> list[Event]:
        found: list[Event] = []
        for gateway in self.gateways:
            found += gateway.events()
            if self.deaths and gateway.taken is not None:
                found.append(partial(self._kill_idle, gateway))
            if not gateway.alive and gateway.lives < LIVES:
                found.append(gateway.start)
        found += [partial(self.land, one) for one in self.connections if one.sent]
        if self.osd_map < self.map:
            found.append(self._tell_osd)
        for address, one in list(self.watching.items()):
            if not one.alive:
                found.append(partial(self._forget, address))
        return found

    def steps(self, gateway: Gateway, thread: Thread) -> list[Event]:
        assert thread.call is not None
        call, found = thread.call, list[Event]()
        if thread.kind == "close" and getattr(call, "__self__").sent:  # noqa: B009 - any object
            return found  # closing waits for what is under way
        if thread.kind == "ask" and thread.waiting_for is None:
            return [lambda: self._question(gateway, thread)]
        # If some have not answered, the limit is over.
        found.append(lambda: self._go_on(gateway, thread, call))
        return found

    def _go_on(self, gateway: Gateway, thread: Thread, call: Callable[[], object]) -> None:
        if self.deaths and self.choose(SELDOM) == SELDOM - 1:
            self._kill(gateway, thread)
            return
        self._last = gateway
        thread.waiting_for = None
        thread.go_on(call)

    def _kill(self, gateway: Gateway, thread: Thread) -> None:
        """It dies before, within or after its step."""
        self.deaths -= 1
        when = self.choose(3)
        call = thread.call
        assert call is not None
        if thread.kind == "break_lock" and when:
            connection = getattr(getattr(call, "func"), "__self__")  # noqa: B009 - any object
            self.break_lock(connection, getattr(call, "args")[0], remove=when == 2)  # noqa: B009
        elif when == 2 and thread.kind != "ask":
            call()
        gateway.die()

    def _kill_idle(self, gateway: Gateway) -> None:
        self.deaths -= 1
        gateway.die()

    def _question(self, asker: Gateway, thread: Thread) -> None:
        asker.question += 1
        record = volume_record(cast(Transaction, self.records), VOLUME)
        if self.owner is not None and self.owner.gateway is asker:
            # One that died before it was recorded is not known to be ours.
            known = (record.holder, record.address) == (asker.name, self.owner.address)
            require(not known, "a gateway does not ask itself")
        thread.waiting_for = [
            other.spawn(other.answer(asker, asker.question, asker.manner))
            for other in self.gateways
            if other is not asker and other.alive
        ]

    def land(self, connection: Connection) -> None:
        try:
            self._carry_out(connection, connection.sent.pop(0))
        except Ending:
            connection.sent.clear()
            if connection.alive:
                connection.gateway.lose(connection)

    def _tell_osd(self) -> None:
        self.osd_map = self.map

    def _forget(self, address: str) -> None:
        self.watching.pop(address, None)

    def _judge(self) -> None:
        holding = [gateway.taken for gateway in self.gateways if gateway.taken is not None]
        kept = [taken.claim for taken in holding]
        for one in self.connections:
            require(not one.alive or one in kept, "what was opened is closed")
        record = volume_record(cast(Transaction, self.records), VOLUME)
        for taken in holding:
            if self.owner is taken.claim:
                who = taken.claim.gateway.who
                require(
                    (record.holder, record.run, record.epoch) == (*who, taken.epoch),
                    "the record names who has the volume",
                )


def main() -> None:
    """Play schedules until a rule is broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schedules", type=int, default=1000)
    given = parser.parse_args()
    for seed in range(given.seed, given.seed + given.schedules):
        try:
            World(seeded(seed)).run()
        except ViolationError as error:
            raise ViolationError(f"seed {seed}: {error}") from error
    print(f"{given.schedules} schedules, and no rule was broken")


if __name__ == "__main__":
    main()
