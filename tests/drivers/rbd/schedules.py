"""Several gateways on one log, in a random but repeatable order, against one sequential oracle.

Each gateway is a thread, and only one of all runs at a time. Wherever it calls the cluster it
stops, and the schedule decides who goes on, and what becomes of the call: it is carried out; or its
answer is lost, and it is carried out, now, later, or never; or it is carried out, its answer is
lost within the cluster, and it is repeated there; or the gateway dies.

    python -m tests.drivers.rbd.schedules --seed 1000 --schedules 5000
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from bockd.drivers.rbd.index import OutcomeUnknownError, SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.objects import Change, NoAnswerError, Seen
from bockd.errors import UnavailableError
from bockd.index.keys import id_key
from bockd.pool.index import Transaction
from bockd.pool.nodes import NAMES, SNAPSHOTS, VOLUMES

from .memory import MemoryObjects

T = TypeVar("T")

IDENTITY = "0" * 32
COUNT = b"count"
LAST = b"\xff" * 9


class Killed(BaseException):
    """The gateway's end: nothing handles it."""


class ViolationError(AssertionError):
    """The index broke a promise."""


@dataclass
class Update:
    """An update, and what was said of it."""

    token: int
    began: int
    answered: int | None = None
    """When, by the schedule's clock."""
    number: int = 0
    """Of those that were made, as it was answered."""
    never: bool = False
    """It was said that it will not be made, or a later one of its run did not find it."""


def make(txn: Transaction, token: int) -> int:
    """One change: the next number becomes the token's, and names come and go."""
    number = int(txn.get(SNAPSHOTS, COUNT) or b"0") + 1
    txn.put(SNAPSHOTS, COUNT, b"%d" % number)
    txn.put(VOLUMES, id_key(number), b"%d" % token)
    txn.put(NAMES, b"n%d" % (token % 7), b"%d of %d" % (token, number))
    if token % 3 == 0:
        txn.delete(NAMES, b"n%d" % (token % 5))
    if token % 11 == 0:
        txn.erase(NAMES, b"n2", b"n5", 2)
    return number


class Plain(dict[tuple[str, bytes], bytes]):
    """The oracle: what `make` asks of a transaction, over a dictionary."""

    def transaction(self) -> Transaction:
        return self  # type: ignore[return-value]

    def get(self, table: object, key: bytes) -> bytes | None:  # type: ignore[override]
        return super().get((str(table), key))

    def put(self, table: object, key: bytes, payload: bytes) -> None:
        self[str(table), key] = payload

    def delete(self, table: object, key: bytes) -> bool:
        return self.pop((str(table), key), None) is not None

    def erase(self, table: object, start: bytes, stop: bytes, limit: int) -> bool:
        keys = sorted(k for t, k in self if t == str(table) and start <= k < stop)
        for key in keys[:limit]:
            del self[str(table), key]
        return len(keys) > limit


@dataclass
class Gateway:
    """A gateway's thread, between two of its calls."""

    name: str
    world: World
    thread: threading.Thread | None = None
    orders: SimpleQueue[str] = field(default_factory=SimpleQueue)
    """What becomes of the call that it waits with."""
    stopped: SimpleQueue[bool] = field(default_factory=SimpleQueue)
    """It waits with a call (True), or has ended."""
    seen: int = 0
    """Updates that its replica has shown."""
    unknown: list[Update] = field(default_factory=list)
    """Updates of its run of which nothing was said."""

    def start(self) -> None:
        self.thread = threading.Thread(target=self._live, name=self.name, daemon=True)
        self.thread.start()

    def _live(self) -> None:
        try:
            self.world.program(self)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - the schedule reports it
            self.world.failures.append(error)
        self.stopped.put(False)

    def order(self) -> str:
        """Wait for what shall become of a call."""
        self.stopped.put(True)
        return self.orders.get()


@dataclass
class Wire:
    """A gateway's way to the cluster. Implements bockd.drivers.rbd.objects."""

    objects: MemoryObjects
    gateway: Gateway

    def create(self, values: Mapping[str, bytes]) -> bool:
        return self.objects.create(values)

    def look(self, keys: tuple[str, ...], prefix: str, after: str, limit: int) -> Seen:
        return self._read("look", lambda: self.objects.look(keys, prefix, after, limit))

    def read(self, name: str, limit: int) -> bytes | None:
        return self._read("read", lambda: self.objects.read(name, limit))

    def exists(self, name: str) -> bool:
        return self._read("exists", lambda: self.objects.exists(name))

    def change(self, change: Change) -> bool:
        return self._write("change", lambda: self.objects.change(change))

    def write(self, name: str, data: bytes) -> None:
        self._write("write", lambda: self.objects.write(name, data))

    def remove(self, name: str) -> None:
        self._write("remove", lambda: self.objects.remove(name))

    def _read(self, name: str, call: Callable[[], T]) -> T:
        order = self.gateway.order()
        if order.startswith("die"):
            raise Killed
        if order.startswith("lose"):
            raise NoAnswerError(f"{name}: no answer")
        return call()

    def _write(self, name: str, call: Callable[[], T]) -> T:
        order = self.gateway.order()
        if order.endswith("done"):
            call()
        elif order.endswith("late"):
            self.gateway.world.late.append(call)
        if order.startswith("die"):
            raise Killed
        if order.startswith("lose"):
            raise NoAnswerError(f"{name}: no answer")
        if order == "repeat":
            call()
        return call()


ORDERS = ("lose never", "lose done", "lose late", "repeat", "die never", "die done", "die late")


@dataclass
class World:
    """One schedule, from its seed."""

    seed: int
    directory: Path
    objects: MemoryObjects = field(default_factory=MemoryObjects)
    log_class: type[Log] = Log
    index_class: type[SharedIndex] = SharedIndex
    gateways: int = 3
    operations: int = 10
    """Of each gateway's life."""
    trouble: float = 0.08
    """How many calls meet with it."""
    orders: tuple[str, ...] = ORDERS
    """Of what kinds it is."""
    deaths: int = 3
    dump_every: int = 4
    updates: list[Update] = field(default_factory=list)
    late: list[Callable[[], object]] = field(default_factory=list)
    """Calls that are under way while nobody waits for them."""
    failures: list[BaseException] = field(default_factory=list)
    raised: bool = False
    """Somebody was told that the log has the format of one with a trash."""
    now: int = 0
    runs: int = 0
    ending: bool = False

    def run(self) -> None:
        """Play it to its end and judge. Raises ViolationError, or whatever the index raised."""
        self.random = random.Random(self.seed)
        self.objects.most_listed = self.random.choice((2, 5, 1024))
        self.log_class(self.objects).create(IDENTITY)
        living = [self.begin() for _ in range(self.gateways)]
        try:
            while living:
                gateway = self.random.choice(living)
                self.now += 1
                gateway.orders.put(self.decide())
                if not gateway.stopped.get():
                    living.remove(gateway)
                if self.late and self.random.random() < 0.1:
                    self.land()
                if self.failures:
                    break
        finally:
            self.ending = True
            for gateway in living:
                gateway.orders.put("die never")
                gateway.stopped.get()
        if self.failures:
            raise self.failures[0]
        while self.late:
            self.land()
        self.judge()

    def begin(self) -> Gateway:
        self.runs += 1
        gateway = Gateway(f"gateway {self.runs} of seed {self.seed}", self)
        gateway.start()
        assert gateway.stopped.get()
        return gateway

    def decide(self) -> str:
        if self.random.random() >= self.trouble:
            return "go"
        order = self.random.choice(self.orders)
        if order.startswith("die"):
            if self.deaths == 0:
                return "go"
            self.deaths -= 1
        return order

    def land(self) -> None:
        """One of the late calls is carried out, or never will be."""
        call = self.late.pop(self.random.randrange(len(self.late)))
        if self.random.random() < 0.7:
            call()

    # -- what a gateway does -----------------------------------------------------------------

    def program(self, gateway: Gateway) -> None:
        """A gateway's life; after a death another one begins in its place."""
        while not self.ending:
            try:
                index = self.open(gateway)
                try:
                    self.live(gateway, index)
                finally:
                    index.close()
            except Killed:
                continue
            return

    def open(self, gateway: Gateway) -> SharedIndex:
        while True:
            self.runs += 1
            run = f"{self.runs:016x}"
            least = self.answered()
            try:
                index = self.index_class.open(
                    self.log_class(Wire(self.objects, gateway)),
                    self.directory / run,
                    run=run,
                    clock=lambda: float(self.now),
                    dump_every=self.dump_every,
                )
            except NoAnswerError:
                continue
            gateway.seen = 0
            gateway.unknown.clear()
            self.look(gateway, index, least)
            return index

    def live(self, gateway: Gateway, index: SharedIndex) -> None:
        for _ in range(self.operations):
            kind = self.random.random()
            if kind < 0.5:
                self.update(gateway, index)
            elif kind < 0.6:
                self.ask(gateway, index)
            elif kind < 0.87:
                self.refresh(gateway, index)
            elif kind < 0.9:
                self.begin_trash(index)
            if index.dump_due or kind > 0.97:
                try:
                    index.dump()
                except NoAnswerError:
                    continue

    def update(self, gateway: Gateway, index: SharedIndex) -> None:
        self.now += 1
        update = Update(len(self.updates) + 1, self.now)
        self.updates.append(update)
        try:
            number = index.update(lambda txn: make(txn, update.token))
        except UnavailableError as error:
            update.never = not isinstance(error, OutcomeUnknownError)
            if not update.never:
                gateway.unknown.append(update)
                if self.random.random() < 0.5:
                    self.ask(gateway, index)
            if self.trouble == 0:
                raise ViolationError("an update failed without need") from error
            return
        self.now += 1
        update.answered, update.number = self.now, number
        self.look(gateway, index, number)

    def ask(self, gateway: Gateway, index: SharedIndex) -> None:
        """Ask what has become of updates, by one that changes nothing: its answer is final."""
        unknown = list(gateway.unknown)
        try:
            made = index.update(
                lambda txn: {payload for _, payload in txn.scan(VOLUMES, b"", LAST)}
            )
        except UnavailableError:
            return
        for update in unknown:
            update.never = b"%d" % update.token not in made

    def begin_trash(self, index: SharedIndex) -> None:
        """The log gets another format, in the middle of what others do, for all that come."""
        try:
            index.begin_trash()
        except NoAnswerError:
            return
        self.raised = True

    def refresh(self, gateway: Gateway, index: SharedIndex) -> None:
        least = self.answered()
        try:
            index.refresh()
        except NoAnswerError:
            return
        self.look(gateway, index, least)

    def answered(self) -> int:
        """How many updates there are at least, from now on."""
        return max((u.number for u in self.updates if u.answered is not None), default=0)

    def look(self, gateway: Gateway, index: SharedIndex, least: int) -> None:
        """A gateway's replica shows what it must, and does not go back."""
        with index.reading() as txn:
            shown = int(txn.get(SNAPSHOTS, COUNT) or b"0")
            assert txn.count(VOLUMES) == shown
        if shown < max(least, gateway.seen):
            raise ViolationError(f"{gateway.name} shows {shown}, after {max(least, gateway.seen)}")
        gateway.seen = shown

    # -- judging -----------------------------------------------------------------------------

    def judge(self) -> None:
        index = SharedIndex.open(
            Log(self.objects),
            self.directory / "judge",
            run="f" * 16,
            clock=lambda: 0.0,
            dump_every=self.dump_every,
        )
        try:
            self.compare(index)
            index.dump()
            self.judge_objects()
        finally:
            index.close()
        again = SharedIndex.open(
            Log(self.objects), self.directory / "again", run="e" * 16, clock=lambda: 0.0
        )
        try:
            self.compare(again)
        finally:
            again.close()

    def compare(self, index: SharedIndex) -> None:
        with index.reading() as txn:
            made = [int(payload) for _, payload in txn.scan(VOLUMES, b"", LAST)]
            names = dict(txn.scan(NAMES, b"", LAST))
        if len(made) != len(set(made)):
            raise ViolationError(f"updates were made twice: {made}")
        order = {token: number for number, token in enumerate(made, 1)}
        for update in self.updates:
            if update.answered is not None and order.get(update.token) != update.number:
                raise ViolationError(f"update {update.token} was answered and is not there: {made}")
            if update.never and update.token in order:
                raise ViolationError(
                    f"update {update.token} was made after it was given up: {made}"
                )
        for one in self.updates:
            for other in self.updates:
                if (
                    one.answered is not None
                    and one.answered < other.began
                    and other.token in order
                    and order[one.token] > order[other.token]
                ):
                    raise ViolationError(f"{other.token} came before {one.token}")
        oracle = Plain()
        for token in made:
            make(oracle.transaction(), token)
        if names != {key: value for (table, key), value in oracle.items() if table == str(NAMES)}:
            raise ViolationError(f"the names are {names}, after {made}")

    def judge_objects(self) -> None:
        """What lies in the cluster after a last dump is what its keys say."""
        keys = self.objects.keys
        assert keys is not None
        if self.raised and not keys["f"].startswith(b"2 "):
            raise ViolationError(f"the format went back to {keys['f']!r}")
        version, name, pieces = keys["b"].decode().split()
        if version != keys["v"].decode():
            raise ViolationError(f"a dump of all is of version {version}")
        entries = [key for key in keys if key.startswith("l/")]
        if len(entries) > self.dump_every // 2:
            raise ViolationError(f"many entries are left after a dump of all: {entries}")
        for number in range(int(pieces)):
            if f"base.{name}.{number}" not in self.objects.objects:
                raise ViolationError(f"a piece of the dump in force is missing: {number}")


def unanswered(seed: int, directory: Path) -> World:
    """Return a schedule in which the outcome of much is unknown."""
    orders = ("lose late", "lose late", "lose never")
    return World(seed, directory, gateways=2, operations=20, trouble=0.3, orders=orders)


def play(world: World) -> None:
    """Play a schedule, and leave nothing behind. What it raises names its seed."""
    try:
        world.run()
    except BaseException as error:
        error.add_note(f"seed {world.seed}")
        raise
    finally:
        shutil.rmtree(world.directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedules", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(given.seed, given.seed + given.schedules):
            play(World(seed, Path(directory) / "world"))
    print(f"{given.schedules} schedules without a failure")


if __name__ == "__main__":
    main()
