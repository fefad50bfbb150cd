"""RADOS does what the objects in memory do, on which the log is tested: both are held to this."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bockd.drivers.rbd.objects import Change, Objects
from bockd.errors import NotFoundError
from bockd.model import MIB

from .memory import MemoryObjects
from .opened import opened

VALUES = {"v": b"0", "l/1": b"one", "l/2": b"two", "l/3": b"three", "m": b"after", "e": b""}


@pytest.fixture(params=["memory", "ceph"])
def objects(request: pytest.FixtureRequest) -> Iterator[Objects]:
    if request.param == "memory":
        yield MemoryObjects()
        return
    with opened(request.getfixturevalue("rbd_namespace")) as objects:
        yield objects


def listed(objects: Objects, after: str = "") -> list[tuple[str, bytes]]:
    return objects.look((), "", after, 1000).listed


def test_the_index_object_is_made_once(objects: Objects) -> None:
    with pytest.raises(NotFoundError):
        objects.look(("v",), "l/", "l/", 10)
    assert objects.create(VALUES)
    assert not objects.create({"v": b"other"})
    assert dict(listed(objects)) == VALUES


def test_a_look_shows_keys_and_lists_others(objects: Objects) -> None:
    objects.create(VALUES)
    seen = objects.look(("v", "e", "missing"), "l/", "l/1", 10)
    assert seen == ({"v": b"0", "e": b""}, [("l/2", b"two"), ("l/3", b"three")])
    assert objects.look((), "l/", "", 2).listed == [("l/1", b"one"), ("l/2", b"two")]
    assert objects.look((), "l/", "l/3", 2).listed == []
    assert objects.look((), "x/", "", 2) == ({}, [])


def test_a_change_is_made_if_all_comparisons_hold(objects: Objects) -> None:
    objects.create(VALUES)
    assert objects.change(Change({"v": b"0", "m": b"after"}, {"v": b"1", "n": b"new"}, ("m",)))
    assert objects.look(("v", "m", "n"), "x/", "", 1).values == {"v": b"1", "n": b"new"}


@pytest.mark.parametrize(
    "compare",
    [{"v": b"1"}, {"v": b"0", "m": b"other"}, {"v": b""}, {"v": b"00"}, {"missing": b"0"}],
)
def test_a_change_is_not_made_if_one_does_not(objects: Objects, compare: dict[str, bytes]) -> None:
    objects.create(VALUES)
    change = Change(compare, {"v": b"9", "n": b"new"}, ("m",), ("l/", "l0"))
    assert not objects.change(change)
    assert dict(listed(objects)) == VALUES


def test_a_range_is_removed_up_to_its_end(objects: Objects) -> None:
    objects.create(VALUES)
    assert objects.change(Change({"v": b"0"}, {"b": b"2"}, (), ("l/", "l/3")))
    assert [key for key, _ in listed(objects)] == ["b", "e", "l/3", "m", "v"]


def test_what_a_change_puts_stays_though_it_is_in_the_range(objects: Objects) -> None:
    objects.create(VALUES)
    assert objects.change(Change({}, {"l/2": b"new"}, (), ("l/", "l/9")))
    assert objects.look((), "l/", "", 10).listed == [("l/2", b"new")]


def test_a_change_needs_the_index_object(objects: Objects) -> None:
    for change in (Change({"v": b"0"}, {"v": b"1"}), Change({"v": b"0"}, {}, ("v",))):
        with contextlib.suppress(NotFoundError):
            assert not objects.change(change)
    with pytest.raises(NotFoundError):
        objects.look(("v",), "l/", "l/", 10)


def test_a_value_of_sixteen_mebibytes_comes_back(objects: Objects) -> None:
    objects.create(VALUES)
    large = bytes(range(256)) * (16 * MIB // 256)
    assert objects.change(Change({"v": b"0"}, {"l/4": large}))
    assert objects.look((), "l/", "l/3", 10).listed == [("l/4", large)]


def test_bytes_are_written_read_and_removed(objects: Objects) -> None:
    assert objects.read("base.1", 10) is None
    assert not objects.exists("base.1")
    data = bytes(range(256)) * (4 * MIB // 256)
    objects.write("base.1", data)
    objects.write("base.2", b"")
    assert objects.exists("base.1")
    assert objects.read("base.1", 5 * MIB) == data
    assert objects.read("base.1", 10) == data[:10]
    assert objects.read("base.2", 10) == b""
    objects.write("base.1", b"short")
    assert objects.read("base.1", 10) == b"short"
    objects.remove("base.1")
    objects.remove("base.1")
    assert not objects.exists("base.1")


def test_more_keys_than_the_cluster_lists_at_once_can_be_listed_and_removed(
    objects: Objects,
) -> None:
    objects.create({f"l/{number:04}": b"v" for number in range(2100)})
    after, found = "l/", []
    while page := objects.look((), "l/", after, 2000).listed:
        found += [key for key, _ in page]
        after = page[-1][0]
    assert found == [f"l/{number:04}" for number in range(2100)]
    assert objects.change(Change({}, {}, (), ("l/", "l/2000")))
    assert len(objects.look((), "l/", "", 1000).listed) == 100
