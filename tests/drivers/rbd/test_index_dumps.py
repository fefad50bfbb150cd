"""SharedIndex: dumps, who makes them, and who begins with one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.rbd import index as index_module
from bockd.errors import NoSpaceError, UnavailableError
from bockd.pool.nodes import NAMES

from .indexed import LAST, Open, Unruly, gateways, keys, names, put, unruly
from .memory import MemoryObjects


@pytest.fixture
def objects() -> Unruly:
    return unruly()


@pytest.fixture
def gateway(objects: Unruly, tmp_path: Path) -> Iterator[Open]:
    yield from gateways(objects, tmp_path)


def entries(objects: MemoryObjects) -> int:
    return sum(key.startswith("l/") for key in keys(objects))


def test_who_commits_the_tenth_version_has_a_dump_due(objects: Unruly, gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    for number in range(10):
        assert not here.dump_due
        here.update(put(b"%d" % number, b"v"))
    there.refresh()
    assert here.dump_due
    assert not there.dump_due
    here.dump()
    assert not here.dump_due
    assert entries(objects) == 5  # some stay
    assert names(gateway("c")) == names(here)


def test_when_that_one_does_not_dump_others_do(objects: Unruly, gateway: Open) -> None:
    here, there = gateway("a"), gateway("b")
    for number in range(16):
        here.update(put(b"%d" % number, b"v"))
    there.refresh()
    assert there.dump_due
    there.dump()
    here.refresh()
    assert not here.dump_due
    assert not there.dump_due


def test_the_log_stays_short_even_if_nobody_dumps(objects: Unruly, gateway: Open) -> None:
    here = gateway("a")
    for number in range(50):
        here.update(put(b"%d" % number, b"v"))
        assert entries(objects) <= 25
    assert len(objects.objects) == 1
    assert names(gateway("b")) == names(here)


def test_a_full_cluster_goes_on_without_dumps_for_long(
    objects: Unruly,
    gateway: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[str] = []

    def full(name: str, data: bytes) -> None:
        tried.append(name)
        raise NoSpaceError(f"{name}: full")

    monkeypatch.setattr(objects, "write", full)
    monkeypatch.setattr(index_module, "MAX_ENTRIES", 40)
    here = gateway("a")
    for number in range(40):
        here.update(put(b"%d" % number, b"v"))
    assert "the index in Ceph was not dumped" in caplog.text
    assert len(tried) == 4  # at 20 entries, and after each five
    assert [key for key in keys(objects) if key.startswith("d/")] == []
    with pytest.raises(NoSpaceError):
        here.update(put(b"k", b"v"))
    assert entries(objects) == 40
    monkeypatch.undo()
    here.update(put(b"k", b"v"))
    assert entries(objects) == 6


def test_one_that_was_away_for_long_begins_with_the_dump(objects: Unruly, gateway: Open) -> None:
    away, here = gateway("a"), gateway("b")
    away.update(put(b"old", b"v"))
    here.update(lambda txn: txn.delete(NAMES, b"old"))
    for number in range(12):
        here.update(put(b"%d" % number, b"v"))
    here.dump()
    here.update(put(b"after", b"v"))
    with away.reading() as before:
        away.refresh()
        assert dict(before.scan(NAMES, b"", LAST)) == {b"old": b"v"}  # one instant
    assert names(away) == names(here)


def test_a_dump_that_is_replaced_while_it_is_loaded_is_left(
    objects: Unruly, gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = gateway("a")
    here.update(put(b"1", b"v"))
    here.dump()
    read = objects.read

    def first_replaced(name: str, limit: int) -> bytes | None:
        monkeypatch.setattr(objects, "read", read)
        here.update(put(b"2", b"v"))
        here.dump()
        return read(name, limit)

    monkeypatch.setattr(objects, "read", first_replaced)
    assert names(gateway("b")) == {b"1": b"v", b"2": b"v"}


def test_dumps_that_are_always_replaced_are_not_loaded_for_ever(
    objects: Unruly, gateway: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = gateway("a")
    here.update(put(b"1", b"v"))
    here.dump()
    read = objects.read

    def replaced(name: str, limit: int) -> bytes | None:
        here.update(put(b"2", b"v"))
        here.dump()
        return read(name, limit)

    monkeypatch.setattr(objects, "read", replaced)
    with pytest.raises(UnavailableError, match="faster than this gateway can load it"):
        gateway("b")
    assert list((tmp_path / "b").iterdir()) == []
