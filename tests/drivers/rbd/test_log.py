"""The log's rules, one at a time, and what it refuses to read."""

from __future__ import annotations

import re

import pytest

from bockd.drivers.rbd.entries import encode_pieces
from bockd.drivers.rbd.log import NO_BASE, READ_ENTRIES, Base, Log
from bockd.errors import DamagedError, NotFoundError, PoolFormatError

from .memory import MemoryObjects

IDENTITY = "0123456789abcdef" * 2


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def shared(objects: MemoryObjects) -> Log:
    shared = Log(objects)
    assert shared.create(IDENTITY)
    shared.read(0)
    return shared


def keys(objects: MemoryObjects) -> dict[str, bytes]:
    assert objects.keys is not None
    return objects.keys


def dump(shared: Log, version: int, name: str, old: Base = NO_BASE) -> Base:
    shared.begin_dump(name)
    pieces = shared.write_pieces(encode_pieces(name, [(b"t", b"k", b"v")]))
    base = Base(version, name, pieces)
    assert shared.swing(old, base, 1)
    return base


def test_a_new_log_is_empty_and_made_once(objects: MemoryObjects, shared: Log) -> None:
    assert keys(objects) == {"f": f"1 {IDENTITY}".encode(), "v": b"0", "b": b"0 - 0"}
    assert shared.read(0) == (0, 0, NO_BASE, [])
    assert not Log(objects).create("f" * 32)
    assert keys(objects)["f"] == f"1 {IDENTITY}".encode()


def test_without_a_log_reading_says_so() -> None:
    with pytest.raises(NotFoundError):
        Log(MemoryObjects()).read(0)


def test_a_version_is_given_once(objects: MemoryObjects, shared: Log) -> None:
    other = Log(objects)
    other.read(0)
    assert shared.append(0, b"first")
    assert not other.append(0, b"second")
    assert other.append(1, b"second")
    assert shared.read(0) == (0, 2, NO_BASE, [(1, b"first"), (2, b"second")])
    assert shared.read(1) == (1, 2, NO_BASE, [(2, b"second")])
    assert shared.read(2) == (2, 2, NO_BASE, [])


def test_many_entries_are_read_some_at_a_time(shared: Log) -> None:
    for version in range(READ_ENTRIES + 2):
        assert shared.append(version, b"%d" % (version + 1))
    first = shared.read(0)
    assert first.version == READ_ENTRIES + 2
    assert [version for version, _ in first.entries] == list(range(1, READ_ENTRIES + 1))
    rest = shared.read(READ_ENTRIES)
    assert [version for version, _ in rest.entries] == [READ_ENTRIES + 1, READ_ENTRIES + 2]


def test_a_dump_takes_the_place_of_entries_and_of_the_dump_before(
    objects: MemoryObjects, shared: Log
) -> None:
    for version in range(3):
        shared.append(version, b"entry")
    first = dump(shared, 2, "0000000000000002.a.1")
    assert shared.read(0) == (0, 3, first, [(2, b"entry"), (3, b"entry")])  # the last one stays
    second = dump(shared, 3, "0000000000000003.a.2", first)
    assert shared.read(0) == (0, 3, second, [(3, b"entry")])
    assert list(shared.read_dump(second)) == [[(b"t", b"k", b"v")]]
    assert shared.leftovers() == [(2, first.name)]
    shared.discard_dump(first.name)
    assert shared.leftovers() == []
    assert list(objects.objects) == [f"base.{second.name}.0"]
    with pytest.raises(NotFoundError, match=r"lacks base\.0000000000000002\.a\.1\.0"):
        list(shared.read_dump(first))


def test_a_dump_comes_into_force_only_in_the_place_of_the_one_that_was_seen(shared: Log) -> None:
    shared.append(0, b"entry")
    first = dump(shared, 1, "0000000000000001.a.1")
    late = Base(1, "0000000000000001.b.1", 1)
    shared.begin_dump(late.name)
    assert not shared.swing(NO_BASE, late, 1)
    assert shared.read(1).base == first


def test_a_dump_that_was_discarded_never_comes_into_force(
    objects: MemoryObjects, shared: Log
) -> None:
    shared.append(0, b"entry")
    name = "0000000000000001.a.1"
    shared.begin_dump(name)
    shared.write_pieces(encode_pieces(name, []))
    shared.discard_dump(name)
    assert not objects.objects
    assert not shared.swing(NO_BASE, Base(1, name, 1), 1)
    assert shared.read(0) == (0, 1, NO_BASE, [(1, b"entry")])


def test_the_dump_in_force_is_not_discarded(objects: MemoryObjects, shared: Log) -> None:
    shared.append(0, b"entry")
    base = dump(shared, 1, "0000000000000001.a.1")
    shared.discard_dump(base.name)
    assert list(shared.read_dump(base)) == [[(b"t", b"k", b"v")]]


def test_who_died_while_it_removed_a_dump_is_followed(objects: MemoryObjects, shared: Log) -> None:
    name = "0000000000000001.a.1"
    shared.begin_dump(name)
    big = [(b"t", b"%d" % number, bytes(3 << 20)) for number in range(3)]
    assert shared.write_pieces(encode_pieces(name, big)) == 3
    keys(objects)["d/" + name] = b"removing"
    objects.remove(f"base.{name}.2")  # from the last one down
    shared.discard_dump(name)
    assert not objects.objects
    assert shared.leftovers() == []


@pytest.mark.parametrize(
    ("key", "value", "kind", "words"),
    [
        ("f", None, DamagedError, "has lost its key 'f'"),
        ("f", b"1 short", DamagedError, "begins with '1 short', which is no format"),
        ("f", b"3 " + IDENTITY.encode(), PoolFormatError, "has format 3, and this bockd knows 2"),
        ("f", b"0 " + IDENTITY.encode(), DamagedError, "which is no format"),
        ("f", b"\xff", DamagedError, "which is no format"),
        ("v", None, DamagedError, "has lost its key 'v'"),
        ("v", b"", DamagedError, "'' where a version should be"),
        ("v", b"-1", DamagedError, "'-1' where a version should be"),
        ("v", b"9" * 17, DamagedError, "where a version should be"),
        ("b", None, DamagedError, "has lost its key 'b'"),
        ("b", b"0 -", DamagedError, "'0 -' where its dump should be named"),
        ("b", b"0 ../x 1", DamagedError, "where its dump should be named"),
        ("b", b"2 a 1", DamagedError, "is at version 1 and has been at 2 already"),
        ("l/1", b"entry", DamagedError, "has a key 'l/1', which is no entry's"),
        ("l/000000000000000x", b"", DamagedError, "which is no entry's"),
        ("l/0000000000000002", b"", DamagedError, "has entries beyond its last version, 1"),
    ],
)
def test_what_is_not_as_documented_is_refused(
    objects: MemoryObjects, key: str, value: bytes | None, kind: type[Exception], words: str
) -> None:
    Log(objects).create(IDENTITY)
    shared = Log(objects)
    shared.read(0)
    shared.append(0, b"entry")
    if value is None:
        del keys(objects)[key]
    else:
        keys(objects)[key] = value
    for reader in (shared, Log(objects)):
        with pytest.raises(kind) as raised:
            reader.read(0)
        assert words in str(raised.value)


def test_an_older_log_in_its_place_is_refused(objects: MemoryObjects, shared: Log) -> None:
    shared.append(0, b"entry")
    shared.append(1, b"entry")
    keys(objects)["v"] = b"1"
    del keys(objects)["l/0000000000000002"]
    with pytest.raises(DamagedError, match="is at version 1 and has been at 2 already"):
        shared.read(2)


def test_another_pools_log_in_its_place_is_refused_and_not_changed(
    objects: MemoryObjects, shared: Log
) -> None:
    objects.keys = None
    Log(objects).create("f" * 32)
    before = dict(keys(objects))
    with pytest.raises(DamagedError, match="replaced by that of another pool"):
        shared.read(0)
    assert not shared.append(0, b"entry")
    with pytest.raises(DamagedError, match="replaced by that of another pool"):
        shared.begin_trash()
    with pytest.raises(DamagedError, match="replaced by that of another pool"):
        shared.begin_dump("0000000000000000.a.1")
    assert keys(objects) == before


def test_with_a_trash_it_has_another_format_for_good(objects: MemoryObjects, shared: Log) -> None:
    other = Log(objects)
    before = other.read(0)
    shared.begin_trash()
    assert keys(objects)["f"] == f"2 {IDENTITY}".encode()
    shared.begin_trash()
    assert (shared.format, other.format) == (2, 1)
    # Who does not know it yet is refused, until it has looked.
    assert not other.append(0, b"entry")
    assert other.read(0) == before
    assert other.format == 2
    assert other.append(0, b"entry")
    assert Log(objects).read(0).version == 1


def test_an_older_bockd_neither_reads_nor_changes_a_log_with_a_trash(
    objects: MemoryObjects, shared: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it compares, and what it says, is as it was before there was a trash."""
    older = Log(objects)
    older.read(0)
    shared.begin_trash()
    before = dict(keys(objects))
    monkeypatch.setattr("bockd.drivers.rbd.log.NEWEST_FORMAT", 1)
    monkeypatch.setattr("bockd.drivers.rbd.log._HEAD", re.compile(r"(1) ([0-9a-f]{32})"))
    assert not older.append(0, b"entry")
    for one in (older, Log(objects)):
        with pytest.raises(PoolFormatError, match="has format 2, and this bockd knows 1: a newer"):
            one.read(0)
    with pytest.raises(PoolFormatError):
        older.begin_dump("0000000000000000.a.1")
    assert keys(objects) == before


def test_a_look_that_is_older_than_the_format_does_no_harm(
    objects: MemoryObjects, shared: Log
) -> None:
    """Another thread has read it before the format was raised, and comes to its turn later."""
    early = objects.look(("f", "v", "b"), "l/", "l/", 1)
    shared.begin_trash()
    objects.look = lambda *_: early  # type: ignore[method-assign]
    assert shared.read(0).version == 0
    assert shared.format == 2


def test_dumps_begun_before_the_format_was_raised_are_made_again(
    objects: MemoryObjects, shared: Log
) -> None:
    other = Log(objects)
    other.read(0)
    shared.append(0, b"entry")
    shared.begin_trash()
    late = Base(1, "0000000000000001.b.1", 1)
    other.begin_dump(late.name)  # has looked, and seen the format
    assert other.format == 2
    other.write_pieces(encode_pieces(late.name, []))
    assert other.swing(NO_BASE, late, 1)
