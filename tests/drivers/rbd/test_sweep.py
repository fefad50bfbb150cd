"""What the sweep removes, and what it leaves alone, over images in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.drivers.rbd.making import GENERATIONS, Permit
from bockd.drivers.rbd.records import snapshot_record, volume_record
from bockd.drivers.rbd.sweep import FULL_LOOK_EVERY, PATIENCE, Seen, is_made_by_bockd
from bockd.errors import DamagedError, DeviceError, UnavailableError
from bockd.index.keys import id_key
from bockd.model import SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES

from .swept import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_nobody_names_is_removed_and_nothing_else(world: World) -> None:
    world.image("named", snaps={"kept": world.now, "stray": world.now})
    world.image("of-a-snapshot", snaps={"kept-too": world.now})
    world.image("stray-image", snaps={"its-snap": world.now})
    world.volume(1, "named")
    world.snapshot(2, "named", "kept")
    world.snapshot(3, "of-a-snapshot", "kept-too")
    for _ in range(FULL_LOOK_EVERY):
        world.sweep.look()
        assert world.store.removed == []
    world.grow_old()
    for _ in range(FULL_LOOK_EVERY):
        world.sweep.look()
    assert world.store.removed == ["its-snap", "stray-image", "stray"]
    assert sorted(world.store.images) == ["named", "of-a-snapshot"]


def test_what_others_have_made_is_left_alone(world: World) -> None:
    world.image("named", snaps={"foreign-snap": world.now, "stray": world.now})
    world.image("foreign-image", snaps={"its-snap": world.now})
    world.volume(1, "named")
    for _ in range(FULL_LOOK_EVERY):
        world.sweep.look()
    world.grow_old()
    for _ in range(FULL_LOOK_EVERY):
        world.sweep.look()
    assert world.store.removed == ["stray"]
    assert sorted(world.store.images) == ["foreign-image", "named"]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("0123456789abcdef01234567", True),
        ("0123456789abcdef0123456", False),
        ("0123456789abcdef012345678", False),
        ("0123456789ABCDEF01234567", False),
        ("0123456789abcdef0123456\n", False),
        ("0123456789abcdef01234567\n", False),
        ("vm-100-disk-0", False),
    ],
)
def test_bockds_names_are_24_hexadecimal_digits(name: str, ours: bool) -> None:
    assert is_made_by_bockd(name) is ours


def test_it_waits_an_hour_by_the_clusters_clock_and_two_generations(world: World) -> None:
    world.image("young")
    world.image("old").made_at -= PATIENCE.made_seconds
    world.image("of-the-future").made_at += 365 * 86400
    world.sweep.look()
    for begun in range(1, GENERATIONS + 1):
        world.now += PATIENCE.generation_seconds - 1
        world.sweep.look()
        assert world.generation() == begun - 1
        assert world.store.removed == []
        world.now += 1
        world.sweep.look()
        assert world.generation() == begun
    assert world.store.removed == ["old"]
    world.grow_old(PATIENCE.made_seconds - GENERATIONS * PATIENCE.generation_seconds)
    world.sweep.look()
    assert sorted(world.store.removed) == ["of-the-future", "old", "young"]


def test_no_generation_begins_while_all_is_named(world: World) -> None:
    """Nobody who makes something gives up for nothing, and the log does not grow."""
    world.image("a")
    world.volume(1, "a")
    world.look_twice()
    assert world.generation() == 0
    world.forget(1)
    world.sweep.look()
    assert world.generation() == 0
    world.now += PATIENCE.generation_seconds
    world.sweep.look()
    assert world.generation() == 1


def test_a_name_that_comes_at_last_is_seen(world: World) -> None:
    """After the look and before the removal: the transaction right before that finds it."""
    world.image("a")
    world.image("b")
    world.sweep.look()
    world.grow_old()
    _, other, _ = world.gateway("gw2", "2")
    look = world.store.look

    def look_and_name(image: str) -> Seen:
        found = look(image)
        if image == "b":
            other.update(world.name)
        return found

    world.store.look = look_and_name  # type: ignore[method-assign]
    world.sweep.look()
    assert world.store.removed == ["b"]


def test_a_commit_that_was_sent_before_the_removal_is_none_after_it(world: World) -> None:
    """Its maker's machine is paused between the look at the index and the append, and none of its
    clocks knows."""
    _, other, _ = world.gateway("gw2", "2")
    permit = Permit(other)
    world.image("a")
    tries = 0

    def name_it(txn: Transaction) -> None:
        nonlocal tries
        tries += 1
        permit.check(txn)
        world.name(txn)
        if tries == 1:
            world.look_twice()

    with pytest.raises(UnavailableError, match="counts as left over"):
        other.update(name_it)
    assert tries == 2
    assert world.store.removed == ["a"]
    other.refresh()
    with other.reading() as txn:
        assert txn.get(VOLUMES, id_key(1)) is None


def test_who_is_paused_before_it_makes_something_has_made_nothing_that_is_named(
    world: World,
) -> None:
    _, other, _ = world.gateway("gw2", "2")
    permit = Permit(other)
    world.image("older")
    world.look_twice()
    world.image("a")
    with pytest.raises(UnavailableError, match="counts as left over"):
        other.update(permit.check)
    world.look_twice()
    assert world.store.removed == ["older", "a"]


@pytest.mark.parametrize("looks", range(9))
def test_a_maker_that_goes_on_between_two_looks_names_what_is_there(
    world: World, looks: int
) -> None:
    """Or it gives up."""
    _, other, _ = world.gateway("gw2", "2")
    world.sweep.look()
    permit = Permit(other)
    world.image("a")

    def name_it(txn: Transaction) -> None:
        permit.check(txn)
        world.name(txn)

    for _ in range(looks):
        world.sweep.look()
        world.now += PATIENCE.generation_seconds
    try:
        other.update(name_it)
    except UnavailableError:
        assert world.generation() >= GENERATIONS
    else:
        assert looks <= GENERATIONS
        world.look_twice()
        assert world.store.removed == []


def test_images_with_clones_go_when_these_have_gone(world: World) -> None:
    world.image("parent", snaps={"s": world.now})
    world.image("clone", parent=("parent", "s"))
    world.volume(1, "clone")
    world.look_twice()
    assert world.store.removed == ["s"]
    assert "parent" in world.store.images
    version = world.index._replica.version  # type: ignore[union-attr]
    world.look_twice()
    assert world.index._replica.version == version  # type: ignore[union-attr]
    world.forget(1)
    world.look_twice()
    world.look_twice()
    assert world.store.images == {}


def test_one_gateway_sweeps_until_it_is_gone(world: World) -> None:
    world.image("a")
    other_table, _, other = world.gateway("gw2", "2")
    assert world.sweep.look()
    assert not other.look()
    assert world.store.looked == ["a"]
    other_table.forget(world.table.author)
    assert other.look()
    world.grow_old(sweep=other)
    # The first one only hung; it is not its turn any more.
    assert not world.sweep.look()
    assert world.store.removed == []
    other.look()
    assert world.store.removed == ["a"]


def test_a_sweeper_that_hung_removes_nothing_more(world: World) -> None:
    world.image("a")
    other_table, _, other = world.gateway("gw2", "2")
    world.sweep.look()
    world.grow_old()
    look = world.store.look

    def hang(image: str) -> Seen:
        world.store.look = look  # type: ignore[method-assign]
        other_table.forget(world.table.author)
        other.look()
        return look(image)

    world.store.look = hang  # type: ignore[method-assign]
    world.sweep.look()
    assert world.store.removed == []


def test_one_that_is_killed_or_cut_off_in_the_middle_goes_on_later(world: World) -> None:
    class KilledError(Exception):
        pass

    world.image("a", snaps={"s": world.now, "t": world.now})
    world.sweep.look()
    world.grow_old()
    for what in ("s", "t", "a"):

        def die(step: str, at: str = what) -> None:
            if step == at:
                raise KilledError

        world.store.before = die
        with pytest.raises(KilledError):
            world.sweep.look()
    world.store.before = lambda _what: None
    world.sweep.look()
    assert world.store.images == {}


def test_at_the_end_nothing_further_is_begun(world: World) -> None:
    world.image("a")
    world.image("b")
    world.sweep.look()
    world.grow_old()

    def stop(_what: str) -> None:
        world.sweep.stopping = True

    world.store.before = stop
    world.sweep.look()
    assert len(world.store.removed) == 1


def refuse(what: str) -> Callable[[str], None]:
    """Return a step that fails for one image or snap."""

    def step(one: str) -> None:
        if one == what:
            raise DeviceError(f"{what} is refused")

    return step


def allow(_what: str) -> None:
    """Do nothing."""


def test_what_a_removal_has_left_is_removed(world: World) -> None:
    """Nothing says when it was made: it is as old as it has been seen."""
    world.image("a", can_be_opened=False).made_at -= PATIENCE.made_seconds
    world.image("named", can_be_opened=False)
    world.volume(1, "named")
    world.look_twice(PATIENCE.made_seconds - 1)
    assert world.store.removed == []
    world.now += 1
    world.sweep.look()
    assert world.store.removed == ["a"]
    world.look_twice()
    assert world.store.removed == ["a"]


@pytest.mark.parametrize("refused", ["b", "s"])
def test_what_is_not_removed_keeps_no_other(world: World, refused: str) -> None:
    for name in "abc":
        world.image(name)
    world.image("d", snaps={"s": world.now, "t": world.now})
    world.sweep.look()
    world.grow_old()
    world.store.before = refuse(refused)
    for _ in range(2):
        with pytest.raises(DeviceError, match=f"{refused} is refused"):
            world.sweep.look()
    left = {"b": ["b"], "s": ["d"]}[refused]
    assert sorted(world.store.images) == left
    world.store.before = allow
    world.sweep.look()
    assert world.store.images == {}


def test_what_cannot_be_looked_at_keeps_no_other(world: World) -> None:
    """And it is as old as it is when it can be looked at again."""
    world.image("a")
    world.image("b")
    world.sweep.look()
    world.grow_old()
    world.store.before_look = refuse("a")
    for _ in range(FULL_LOOK_EVERY):
        with pytest.raises(DeviceError, match="a is refused"):
            world.sweep.look()
    assert world.store.removed == ["b"]
    world.store.before_look = allow
    world.sweep.look()
    assert world.store.removed == ["b", "a"]


def test_no_other_waits_for_a_cluster_that_does_not_answer(world: World) -> None:
    world.image("a")
    world.image("b")
    world.sweep.look()
    world.grow_old()
    asked: list[str] = []

    def give_up(what: str) -> None:
        asked.append(what)
        raise UnavailableError("no answer")

    world.store.before = give_up
    with pytest.raises(UnavailableError):
        world.sweep.look()
    assert asked == ["a"]


# -- deep clones ------------------------------------------------------------------------------


def chain(world: World, length: int) -> None:
    """Volumes that are clones one of another, by snapshots 101 and so on."""
    world.image("i0", snaps={"s": world.now})
    world.volume(1, "i0")
    for number in range(1, length + 1):
        world.image(f"i{number}", snaps={"s": world.now}, parent=(f"i{number - 1}", "s"))
        world.volume(number + 1, f"i{number}", depth=number)
        world.snapshot(100 + number, f"i{number}", "s", depth=number)


def depths(world: World, *volumes: int) -> list[int]:
    with world.index.reading() as txn:
        return [volume_record(txn, VolumeId(one)).depth for one in volumes]


def test_clones_that_are_too_deep_are_flattened_and_others_stay(world: World) -> None:
    chain(world, 8)
    world.sweep.look()
    world.sweep.flatten()
    # The first one that was flattened made those above it shallow enough.
    assert world.store.flattened == ["i6"]
    assert depths(world, 6, 7, 8, 9) == [5, 0, 1, 2]
    with world.index.reading() as txn:
        assert snapshot_record(txn, SnapshotId(106)).depth == 0
    world.sweep.flatten()
    assert world.store.flattened == ["i6"]
    assert world.sweep.flattening is None


def test_a_flattening_that_was_not_noted_is_noted(world: World) -> None:
    chain(world, 6)
    world.sweep.look()
    world.store.images["i6"].parent = None
    world.sweep.flatten()
    assert world.store.flattened == []
    assert depths(world, 7) == [0]


def test_a_record_that_cannot_be_read_keeps_images_and_no_flattening(world: World) -> None:
    """It may name any image."""
    chain(world, 6)
    world.image("unnamed")
    world.index.update(lambda txn: txn.put(VOLUMES, id_key(99), b"{}"))
    for _ in range(20):
        with pytest.raises(DamagedError, match="malformed"):
            world.sweep.look()
        world.now += PATIENCE.generation_seconds
    assert "unnamed" in world.store.images
    world.sweep.flatten()
    assert world.store.flattened == ["i6"]
    assert depths(world, 7) == [0]


def test_who_does_not_sweep_flattens_nothing(world: World) -> None:
    chain(world, 6)
    world.sweep.look()
    _, _, other = world.gateway("gw2", "2")
    other.flatten()
    assert world.store.flattened == []


def test_what_is_not_flattened_keeps_no_other(world: World) -> None:
    chain(world, 7)
    world.sweep.look()
    world.store.before = refuse("i6")
    with pytest.raises(DeviceError, match="i6 is refused"):
        world.sweep.flatten()
    assert world.store.flattened == ["i7"]
    assert depths(world, 7, 8) == [6, 0]
    assert world.sweep.flattening is None


def test_a_full_cluster_is_tried_again(world: World) -> None:
    chain(world, 6)
    world.sweep.look()

    def full(_what: str) -> None:
        raise UnavailableError("the cluster is full")

    world.store.before = full
    with pytest.raises(UnavailableError):
        world.sweep.flatten()
    assert world.sweep.flattening is None
    assert depths(world, 7) == [6]
    world.store.before = lambda _what: None
    world.sweep.flatten()
    assert depths(world, 7) == [0]
