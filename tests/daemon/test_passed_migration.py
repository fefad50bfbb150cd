"""`bock volume migrate` that another command for the same volume passes: it notices, and touches
nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bockd.cli import migration
from bockd.cli.migrationtarget import KEY, SERVER, Progress, Target, written
from bockd.cli.records import Volume
from bockd.cli.storage import StorageClient
from bockd.errors import ConflictError, InvalidStateError
from bockd.model import MIB
from tests.daemon.livewriting import interrupt
from tests.daemon.migrating import SIZE, Two, killed, read, show, volumes
from tests.daemon.process import serving


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    work = tmp_path_factory.mktemp("two")
    with serving(work / "here") as here, serving(work / "there") as there:
        for one in (here, there):
            one.expect_in_log("is held")
        yield Two(here, there, str(work / "there"))


Run = Callable[[migration.Migration], object]

RUNS: dict[str, Run] = {
    "live": lambda move: move.run(live=True),
    "held": lambda move: move.run(),
    "cancel": lambda move: move.cancel(),
}


def once_before(
    patch: pytest.MonkeyPatch, owner: object, function: str, other: Callable[[], object]
) -> None:
    """Have another command run before a function, or a method of a class, is called the next
    time."""
    call = getattr(owner, function)

    def passed(*arguments: Any, **more: Any) -> Any:
        patch.setattr(owner, function, call)
        other()
        return call(*arguments, **more)

    patch.setattr(owner, function, passed)


def hold(two: Two, name: str) -> None:
    """Stop a move of a held volume where all is copied."""
    assert killed(lambda: two.migrate(name), StorageClient, "hold_volume", 2, "before")


def release_and_write(two: Two, name: str) -> None:
    with two.here.storage() as storage:
        storage.release_volume(show(two.here, name).id)
    with two.here.connected(name) as client:
        client.pwrite(b"newer" * 1000, MIB)
    two.here.wait_until_unused(name)


@pytest.mark.parametrize("how", RUNS)
def test_what_another_command_has_moved_is_left_alone(
    two: Two, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is used there already, and without a connection at this moment."""
    name = f"moved-{how}"
    two.fill(name)
    interrupt(two, name)

    def other() -> None:
        two.migrate(name)
        with two.there.connected(name) as client:
            client.pwrite(b"newer" * 1000, MIB)
        two.there.wait_until_unused(name)

    with two.move(name) as move:
        once_before(monkeypatch, Target, "wait_until_alone", other)
        with pytest.raises(ConflictError, match="another command has gone on"):
            RUNS[how](move)
    target = show(two.there, name)
    assert (target.attachment, KEY in target.metadata) == (None, False)
    assert read(two.there, name)[MIB : MIB + 5000] == b"newer" * 1000
    assert (show(two.here, name).hold or "").startswith("migrated to")
    two.forget(name)


def test_a_moved_volume_is_not_deleted_for_an_unknown_target(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This command had read half of the old records, half of the new ones."""
    content = two.fill("unknown")
    interrupt(two, "unknown")
    with two.move("unknown") as move:
        once_before(monkeypatch, Target, "is_as_left", lambda: two.migrate("unknown"))
        with pytest.raises(ConflictError, match="another command has gone on"):
            move.run(live=True)
    two.assert_moved("unknown", content)
    two.forget("unknown")


@pytest.mark.parametrize("how", ["live", "cancel"])
def test_what_another_command_has_copied_is_not_forgotten(
    two: Two, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has gone again, and has left the source as it was."""
    name = f"copied-{how}"
    two.fill(name)
    interrupt(two, name)

    def other() -> None:
        with two.here.connected(name) as client:
            client.pwrite(b"newer" * 1000, MIB)
        two.here.wait_until_unused(name)
        interrupt(two, name)

    with two.move(name) as move:
        once_before(monkeypatch, Target, "wait_until_alone", other)
        with pytest.raises(ConflictError, match="another command has gone on"):
            RUNS[how](move)
    content = read(two.here, name)
    two.here.wait_until_unused(name)
    two.migrate(name, verify=False)
    two.assert_moved(name, content)
    two.forget(name)


OTHERS: dict[str, Callable[[Two, str], object]] = {
    "unfinished": interrupt,
    "moved": lambda two, name: two.migrate(name),
}


@pytest.mark.parametrize("moment", ["create_volume", "post"])
@pytest.mark.parametrize("other", OTHERS)
def test_of_two_that_find_no_target_one_makes_it(
    two: Two, other: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"both-{other}-{moment}"
    content = two.fill(name)
    with two.move(name) as move:
        once_before(monkeypatch, StorageClient, moment, lambda: OTHERS[other](two, name))
        with pytest.raises(ConflictError, match="another command has gone on"):
            move.run(live=True)
    assert len(volumes(two.there)) == 1
    two.migrate(name)
    two.assert_moved(name, content)
    two.forget(name)


@pytest.mark.parametrize("how", ["cancelled", "finished", "moved"])
def test_a_second_target_is_deleted(two: Two, how: str) -> None:
    """Whose command was killed before it looked for another one."""
    name = f"second-{how}"
    content = two.fill(name)
    OTHERS["moved" if how == "moved" else "unfinished"](two, name)
    with two.move(name) as move, two.there.storage() as there:
        notes = {KEY: written(Progress(move._origin))}
        body = {"display_name": name, "size": 1, "metadata": notes}
        there.post("os-volumes", {"volume": body})
    assert len(volumes(two.there)) == 2
    if how == "cancelled":
        two.cancel(name)
        assert volumes(two.there) == []
    else:
        two.migrate(name)
        assert len(volumes(two.there)) == 1
        two.assert_moved(name, content)
    two.forget(name)


def test_killed_when_it_is_complete_nobody_takes_it_for_unfinished(two: Two) -> None:
    content = two.fill("complete")
    assert killed(lambda: two.migrate("complete"), StorageClient, "edit_volume", 1, "after")
    target = show(two.there, "complete")
    assert target.attachment is not None
    assert (target.attachment.server, KEY in target.metadata) == (SERVER, False)
    two.migrate("complete")
    two.assert_moved("complete", content)
    two.forget("complete")


# -- the hold of the source --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["live", "held"])
def test_a_source_that_was_released_is_not_held_by_the_name_of_its_old_snapshot(
    two: Two, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written since is not in that snapshot."""
    name = f"freed-{how}"
    two.fill(name)
    hold(two, name)
    with two.move(name) as move:
        once_before(monkeypatch, migration.Migration, "_hold", lambda: release_and_write(two, name))
        with pytest.raises(ConflictError, match="not held any more"):
            RUNS[how](move)
    assert show(two.here, name).status == "available"
    content = read(two.here, name)
    assert content[MIB : MIB + 5000] == b"newer" * 1000
    two.here.wait_until_unused(name)
    two.migrate(name)
    two.assert_moved(name, content)
    two.forget(name)


@pytest.mark.parametrize("live", [True, False])
def test_a_source_that_is_released_as_soon_as_it_is_held_does_not_move(
    two: Two, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is released before the command has read the answer."""
    name = f"at-once-{live}"
    two.fill(name)
    held = StorageClient.hold_volume

    def passed(client: StorageClient, volume: int, reason: str, **more: Any) -> Volume:
        monkeypatch.setattr(StorageClient, "hold_volume", held)
        once_before(monkeypatch, StorageClient, "show_volume", lambda: release_and_write(two, name))
        return held(client, volume, reason, **more)

    monkeypatch.setattr(StorageClient, "hold_volume", passed)
    with pytest.raises(ConflictError, match="another command has gone on"):
        two.migrate(name, live=live)
    assert show(two.here, name).status == "available"
    content = read(two.here, name)
    two.here.wait_until_unused(name)
    two.migrate(name)
    two.assert_moved(name, content)
    two.forget(name)


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("find_targets", "another command has gone on"),
        ("delete_leftovers", "held for another reason now"),
    ],
)
def test_cancelled_without_a_target_what_has_moved_is_not_used_here_again(
    two: Two, moment: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = two.fill(moment)
    with two.move(moment) as first, two.here.storage() as storage:
        reason = f"migration 0123abcd to {first._place.address}"
        storage.hold_volume(first.source.id, reason)
    with two.move(moment) as move:
        once_before(monkeypatch, migration, moment, lambda: two.migrate(moment))
        with pytest.raises(ConflictError, match=told):
            move.cancel()
    two.assert_moved(moment, content)
    two.forget(moment)


def test_interrupted_in_the_switch_what_has_moved_is_not_used_here_again(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon carries the request out while the command gives up."""
    content = two.fill("late")
    with two.move("late") as move:
        switch = move._switch

        def interrupted(target: Target) -> None:
            once_before(monkeypatch, StorageClient, "release_volume", lambda: switch(target))
            raise KeyboardInterrupt

        monkeypatch.setattr(move, "_switch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            move.run(live=True)
    assert (show(two.here, "late").hold or "").startswith("migrated to")
    two.migrate("late")
    two.assert_moved("late", content)
    two.forget("late")


def test_a_source_that_was_released_and_written_is_not_deleted(two: Two) -> None:
    content = two.fill("written")
    with two.move("written") as move:
        moved = move.run()
        release_and_write(two, "written")
        with pytest.raises(InvalidStateError, match="it is not held"):
            move.delete_source(moved)
    assert read(two.here, "written")[MIB : MIB + 5000] == b"newer" * 1000
    assert read(two.there, "written") == content
    two.forget("written")


@pytest.mark.parametrize(("name", "size_bytes"), [("other", SIZE), ("sole", SIZE - MIB)])
def test_a_source_is_not_deleted_for_another_volume_of_that_id(
    two: Two, name: str, size_bytes: int
) -> None:
    """As in a pool that was made anew where the old one was."""
    two.fill("sole")
    with two.there.storage() as there, two.here.storage() as here:
        other = there.create_volume(name, size_bytes)
        with two.move("sole") as move:
            reason = f"migrated to volume {other.id} at {move._place.address}"
        here.hold_volume(show(two.here, "sole").id, reason)
        with two.move("sole") as move:
            moved = move.run()
            with pytest.raises(ConflictError, match=f"is {name}, "):
                move.delete_source(moved)
        assert show(two.here, "sole").hold == reason
        there.delete_volume(other.id)
    two.forget("sole")


NOT_THE_COPY = {
    "another's": lambda origin: Progress("0" * 32, "migration-1", 9 * MIB, "migration-1"),
    "blank": lambda origin: Progress(origin),
    "half": lambda origin: Progress(origin, "migration-2", MIB, "migration-1"),
}


@pytest.mark.parametrize("what", NOT_THE_COPY)
def test_only_the_complete_copy_becomes_a_volume_like_others(two: Two, what: str) -> None:
    """Whatever id the hold of the source names."""
    two.fill(what)
    with two.move(what) as move, two.here.storage() as here, two.there.storage() as there:
        notes = {KEY: written(NOT_THE_COPY[what](move._origin))}
        other = there.create_volume("other", MIB, metadata=notes)
        reason = f"migrated to volume {other.id} at {move._place.address}"
        here.hold_volume(move.source.id, reason)
        with pytest.raises(ConflictError, match="not the complete copy"):
            two.migrate(what)
        now = there.show_volume(other.id)
        assert (now.name, now.metadata) == ("other", notes)
        there.delete_volume(other.id)
    two.forget(what)
