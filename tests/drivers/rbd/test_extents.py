"""Which objects of an image are holes, whatever overlaps."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

import pytest

from bockd.drivers.rbd.extents import OBJECT_BYTES, Objects, existing_objects
from bockd.model import Extent
from tests.drivers.rbd.fakeimage import FakeImage

SIZE = 8 * OBJECT_BYTES


def shown(objects: Objects, size: int = SIZE) -> str:
    """Draw the objects: x for data, a dot for a hole."""
    drawing = ""
    for extent in objects.extents(0, size, 1000):
        drawing += (".x"[not extent.hole]) * -(-extent.length_bytes // OBJECT_BYTES)
    return drawing


def put(objects: Objects, *numbers: int) -> None:
    for number in numbers:
        with objects.writing(number * OBJECT_BYTES + 512, 512):
            pass


def test_a_write_makes_its_objects_data_before_it_is_sent() -> None:
    objects = Objects(SIZE)
    with objects.writing(OBJECT_BYTES - 1, OBJECT_BYTES + 2):
        assert shown(objects) == "xxx....."
    assert shown(objects) == "xxx....."


def test_what_existed_before_adds_to_what_was_written_since() -> None:
    objects = Objects(SIZE)
    put(objects, 1)
    assert not objects.known
    objects.learn(bytes([0, 0, 0, 1, 1, 0, 0, 0]))
    assert objects.known
    assert shown(objects) == ".x.xx..."


@pytest.mark.parametrize(
    ("offset", "length", "left"),
    [
        (0, SIZE, "........"),
        (OBJECT_BYTES, OBJECT_BYTES, "x.xxxxxx"),
        (OBJECT_BYTES - 1, 2 * OBJECT_BYTES, "x.xxxxxx"),
        (OBJECT_BYTES + 1, OBJECT_BYTES, "xxxxxxxx"),
        (OBJECT_BYTES, OBJECT_BYTES - 1, "xxxxxxxx"),
        (2 * OBJECT_BYTES, 3 * OBJECT_BYTES, "xx...xxx"),
    ],
)
def test_a_trim_makes_holes_of_objects_of_which_it_leaves_nothing(
    offset: int, length: int, left: str
) -> None:
    objects = Objects(SIZE)
    put(objects, *range(8))
    with objects.trimming(offset, length):
        assert shown(objects) == "x" * 8
    assert shown(objects) == left


def test_the_last_object_is_whole_where_the_image_ends_in_it() -> None:
    size = 2 * OBJECT_BYTES + 4096
    objects = Objects(size)
    put(objects, 0, 1, 2)
    with objects.trimming(OBJECT_BYTES, size - OBJECT_BYTES):
        pass
    assert shown(objects, size) == "x.."
    put(objects, 2)
    objects.grow(SIZE)
    with objects.trimming(OBJECT_BYTES, size - OBJECT_BYTES):
        pass
    assert shown(objects) == "x.x....."


@pytest.mark.parametrize("order", ["write inside", "trim inside", "write first", "trim first"])
def test_what_overlaps_a_trim_is_data(order: str) -> None:
    objects = Objects(SIZE)
    put(objects, 0, 1, 2)
    write: AbstractContextManager[None] = objects.writing(OBJECT_BYTES, 1)
    trim: AbstractContextManager[None] = objects.trimming(0, 3 * OBJECT_BYTES)
    first, second = (write, trim) if order in ("trim inside", "write first") else (trim, write)
    first.__enter__()
    second.__enter__()
    ending = (second, first) if order.endswith("inside") else (first, second)
    for one in ending:
        one.__exit__(None, None, None)
    assert shown(objects) == ".x......"


def test_a_trim_that_failed_makes_no_hole() -> None:
    objects = Objects(SIZE)
    put(objects, 1)

    def fail() -> None:
        with objects.trimming(0, SIZE):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert shown(objects) == ".x......"
    with objects.trimming(0, SIZE):
        pass
    assert shown(objects) == "........"


def test_an_image_that_grows_while_something_is_under_way() -> None:
    objects = Objects(2 * OBJECT_BYTES)
    put(objects, 0, 1)
    with objects.trimming(0, 2 * OBJECT_BYTES):
        objects.grow(SIZE)
        put(objects, 5)
    assert shown(objects) == ".....x.."
    objects.learn(b"\1")
    assert shown(objects) == "x....x.."


def test_extents_begin_and_end_with_the_range_and_alternate() -> None:
    objects = Objects(SIZE)
    put(objects, 1, 2, 5)
    extents = objects.extents(512, SIZE - 1024, 100)
    assert extents[0] == Extent(512, OBJECT_BYTES - 512, hole=True)
    assert extents[1] == Extent(OBJECT_BYTES, 2 * OBJECT_BYTES, hole=False)
    assert extents[-1] == Extent(6 * OBJECT_BYTES, 2 * OBJECT_BYTES - 512, hole=True)
    assert [one.hole for one in extents] == [True, False, True, False, True]
    for limit in (1, 2, 4):
        assert objects.extents(512, SIZE - 1024, limit) == extents[:limit]


def test_what_exists_is_asked_of_the_image() -> None:
    image = FakeImage(SIZE)
    image.put(OBJECT_BYTES + 5, b"data")
    image.put(4 * OBJECT_BYTES, b"data")
    assert existing_objects(image, SIZE) == bytes([0, 1, 0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("seed", range(30))
def test_nothing_that_may_hold_data_is_ever_a_hole(seed: int) -> None:
    """Writes and trims take effect at any moment between their beginning and their end."""
    chosen = random.Random(seed)
    objects = Objects(SIZE)
    exists = [False] * 8
    under_way: list[tuple[str, int, int, AbstractContextManager[None], bool]] = []
    for _ in range(400):
        roll = chosen.random()
        if roll < 0.4 and len(under_way) < 5:
            first = chosen.randrange(8)
            end = chosen.randint(first + 1, 8)
            kind = chosen.choice(("write", "trim"))
            begin = objects.writing if kind == "write" else objects.trimming
            context: AbstractContextManager[None] = begin(
                first * OBJECT_BYTES, (end - first) * OBJECT_BYTES
            )
            context.__enter__()
            under_way.append((kind, first, end, context, False))
        elif roll < 0.7 and under_way:  # take effect
            place = chosen.randrange(len(under_way))
            kind, first, end, context, _ = under_way[place]
            exists[first:end] = [kind == "write"] * (end - first)
            under_way[place] = (kind, first, end, context, True)
        elif under_way:
            place = chosen.randrange(len(under_way))
            if under_way[place][4]:
                under_way.pop(place)[3].__exit__(None, None, None)
        if chosen.random() < 0.02:
            objects.learn(bytes(exists))
        drawing = shown(objects)
        wrong = [n for n in range(8) if exists[n] and drawing[n] == "."]
        assert not wrong, f"seed {seed}: {wrong} hold data"
