"""The table of gateways: one name each."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.drivers.rbd.gateways import SHARED, Gateways, gateway
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.records import Identity
from bockd.errors import InUseError, UnavailableError
from bockd.pool.gateways import Addresses, Gateway
from bockd.pool.index import Transaction

from .memory import MemoryObjects


class Bus:
    """What the bus says."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.asked: list[str] = []
        self.before_answering: Callable[[], None] | None = None

    def is_alive(self, author: str) -> bool:
        self.asked.append(author)
        if (call := self.before_answering) is not None:
            self.before_answering = None
            call()
        return author in self.alive


class Tables:
    """Gateways over one index."""

    def __init__(self, directory: Path) -> None:
        self.objects = MemoryObjects()
        Log(self.objects).create("0" * 32)
        self.bus = Bus()
        self._directory = directory

    def table(self, name: str, digit: str) -> Gateways:
        """A run of a gateway, which answers on the bus from now on."""
        run = digit * 16
        index = SharedIndex.open(
            Log(self.objects), self._directory / digit, run=run, clock=time.time
        )
        table = Gateways(index, Identity(name, run), self.bus, lambda: float(digit))
        self.bus.alive.add(table.author)
        return table

    def listed(self) -> list[tuple[str, str]]:
        """Names and the first digits of runs."""
        index = SharedIndex.open(
            Log(self.objects), self._directory / "look", run="f" * 16, clock=time.time
        )
        found = Gateways(index, Identity("look", "f" * 16), self.bus, time.time).all()
        index.close()
        return [(one.name, one.run[0]) for one in found]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


def test_gateways_enter_are_seen_and_leave(tables: Tables) -> None:
    one, two = tables.table("gw1", "1"), tables.table("gw2", "2")
    one.enter()
    two.enter()
    two.announce(Addresses(nbd="two:10809", api="http://two:8776/"))
    assert [(found.name, found.since) for found in two.all()] == [("gw1", 1.0), ("gw2", 2.0)]
    assert two.all()[1].addresses.nbd == "two:10809"
    assert two.others() == {one.author}
    assert tables.bus.asked == []
    one.leave()
    assert tables.listed() == [("gw2", "2")]


def test_the_name_of_a_gateway_that_lives_is_refused(tables: Tables) -> None:
    one = tables.table("gw1", "1")
    one.enter()
    one.announce(Addresses(api="http://one:8776/"))
    with pytest.raises(InUseError, match=r"named 'gw1' serves this pool already \(at http://one"):
        tables.table("gw1", "2").enter()
    assert tables.listed() == [("gw1", "1")]


def test_the_name_of_a_dead_gateway_is_taken_over(tables: Tables) -> None:
    one = tables.table("gw1", "1")
    one.enter()
    tables.bus.alive.clear()
    two = tables.table("gw1", "2")
    two.enter()
    assert tables.listed() == [("gw1", "2")]
    # The first one only hung.
    with pytest.raises(InUseError, match="has taken the name of this gateway"):
        one.keep()
    one.leave()
    two.keep()
    assert tables.listed() == [("gw1", "2")]


def test_of_two_that_take_over_a_name_at_once_one_is_refused(tables: Tables) -> None:
    one, two, three = (tables.table("gw1", digit) for digit in "123")
    one.enter()
    tables.bus.alive.discard(one.author)
    tables.bus.before_answering = two.enter
    with pytest.raises(InUseError, match="serves this pool already"):
        three.enter()
    assert tables.listed() == [("gw1", "2")]
    assert tables.bus.asked == [one.author, one.author, two.author]


def test_what_was_decided_before_a_gateway_is_confirmed_is_decided_anew(tables: Tables) -> None:
    """However late it is committed: whoever had decided may have been stopped before that."""
    one, two = tables.table("gw1", "1"), tables.table("gw2", "2")
    one.enter()
    decided = list[Gateway | None]()

    def decide(txn: Transaction) -> None:
        decided.append(gateway(txn, "gw1"))
        if len(decided) == 1:
            one.confirm()
        txn.put(SHARED, b"given up", b"")

    two._index.update(decide)
    assert len(decided) == 2
    assert decided[0] != decided[1], "a clock that stands still does not say that it was confirmed"
    two.forget(one.author)
    one.confirm()
    assert tables.listed() == [("gw1", "1")]
    tables.bus.alive.clear()
    tables.table("gw1", "3").enter()
    with pytest.raises(InUseError, match="has taken the name of this gateway"):
        one.confirm()


def test_who_was_struck_off_writes_itself_down_again(tables: Tables) -> None:
    one, two = tables.table("gw1", "1"), tables.table("gw2", "2")
    one.enter()
    two.enter()
    two.forget(one.author)
    assert tables.listed() == [("gw2", "2")]
    one.keep()
    assert tables.listed() == [("gw1", "1"), ("gw2", "2")]
    two.forget(f"gw1/{'9' * 16}")
    assert tables.listed() == [("gw1", "1"), ("gw2", "2")]


def test_nobody_starts_who_cannot_ask(tables: Tables) -> None:
    tables.table("gw1", "1").enter()

    def fail() -> None:
        raise UnavailableError("no answer")

    tables.bus.before_answering = fail
    with pytest.raises(UnavailableError):
        tables.table("gw1", "2").enter()
    assert tables.listed() == [("gw1", "1")]
