"""`bock volume migrate` between two daemons: what arrives, and what a death at any step leaves.

A death is that of a process of its own, which is forked from the test's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bockd.cli import crossing
from bockd.cli.copying import GAP_BYTES, connected
from bockd.cli.crossing import compare, copy_across, joined
from bockd.cli.http import Http
from bockd.cli.migrationtarget import KEY, SERVER
from bockd.cli.storage import StorageClient
from bockd.errors import (
    BockdError,
    ConflictError,
    DamagedError,
    InvalidStateError,
    NotFoundError,
    OverLimitError,
    UnavailableError,
)
from bockd.model import MIB
from bockd.nbd.client import Export
from tests.daemon.migrating import DATA, SIZE, Two, killed, read, show, snapshots, volumes
from tests.daemon.process import Bockd, serving

MOST_STEPS = 100


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    work = tmp_path_factory.mktemp("two")
    with serving(work / "here") as here, serving(work / "there") as there:
        yield Two(here, there, str(work / "there"))


def test_a_volume_moves_with_all_that_belongs_to_it(two: Two) -> None:
    content = two.fill("whole")
    moved = two.here.bock("volume", "migrate", "whole", "--to", two.place)
    assert moved["name"] == "whole"
    two.assert_moved("whole", content)
    space = two.there.bock("volume", "show", "whole")["space"]
    assert space["exclusive_bytes"] + space["shared_bytes"] == sum(DATA.values())
    told = two.here.tool("bock", "volume", "migrate", "whole", "--to", two.place)
    assert "the volume here is held" in told
    two.here.tool("bock", "volume", "migrate", "whole", "--to", two.place, "--delete-source")
    assert volumes(two.here) == []
    two.forget("whole")


def test_a_snapshot_of_the_user_stays_here(two: Two) -> None:
    content = two.fill("kept")
    two.here.bock("snapshot", "create", "kept", "kept-then")
    two.migrate("kept")
    assert snapshots(two.here) == ["kept-then"]
    assert snapshots(two.there) == []
    assert read(two.here, "snapshot/kept-then") == content
    two.here.bock("snapshot", "delete", "kept-then")
    two.assert_moved("kept", content)
    two.forget("kept")


@pytest.mark.long_kills
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_request_to_a_daemon(two: Two, when: str) -> None:
    """One complete copy is readable at each moment, and the records say which. Of every two runs
    one is gone on with; the other is cancelled, unless the volume has moved."""
    step, came = 0, True
    while came:
        step += 1
        assert step < MOST_STEPS
        name = f"step-{when}-{step}"
        content = two.fill(name)
        came = killed(lambda name=name: two.migrate(name), Http, "request", step, when)  # type: ignore[misc]
        has_moved = (show(two.here, name).hold or "").startswith("migrated")
        assert came or has_moved
        if has_moved:
            assert read(two.there, name) == content
            with pytest.raises(ConflictError, match="migrated to volume"):
                two.cancel(name)
        if step % 2 and not has_moved:
            two.cancel(name)
            assert (volumes(two.there), snapshots(two.here)) == ([], [])
            assert show(two.here, name).status == "available"
            assert read(two.here, name) == content
        else:
            two.migrate(name)
            two.assert_moved(name, content)
        two.forget(name)
    assert step > 10


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes after each MiB of data."""
    monkeypatch.setattr(crossing, "WINDOW_BYTES", MIB)
    monkeypatch.setattr(crossing, "NOTED_BYTES", MIB)


@pytest.mark.usefixtures("small_windows")
def test_what_was_noted_is_not_copied_again(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    content = two.fill("noted")
    assert killed(
        lambda: two.migrate("noted"), Export, "write", 3, "after"
    )  # the third MiB of data has gone out
    (target,) = volumes(two.there)
    assert target.attachment is not None
    assert (target.status, target.attachment.server) == ("in-use", SERVER)
    assert f'"copied":{4 * MIB}' in target.metadata[KEY]
    offsets: list[int] = []
    ask = Export.read

    def noting(export: Export, offset: int, length: int) -> None:
        offsets.append(offset)
        ask(export, offset, length)

    monkeypatch.setattr(Export, "read", noting)
    two.migrate("noted", verify=False)
    assert min(offsets) == 4 * MIB
    monkeypatch.undo()
    two.assert_moved("noted", content)
    two.forget("noted")


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("whose", ["here", "there"])
def test_a_daemon_is_killed_in_the_middle(
    two: Two, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"daemon-{whose}"
    content = two.fill(name)
    daemon: Bockd = getattr(two, whose)
    receive, left = Export.receive, list(range(6))

    def dying(export: Export) -> Any:
        if left:
            left.pop()
            if not left:
                daemon.kill()
        return receive(export)

    monkeypatch.setattr(Export, "receive", dying)
    with pytest.raises(UnavailableError):
        two.migrate(name)
    monkeypatch.undo()
    daemon.start()
    assert (show(two.here, name).hold or "").startswith("migration ")
    two.migrate(name)
    two.assert_moved(name, content)
    two.forget(name)


def test_what_was_written_between_two_runs_arrives(two: Two) -> None:
    """The source was released by hand: the copy that was begun is not of it any more."""
    two.fill("changed")
    assert killed(lambda: two.migrate("changed"), Export, "write", 2, "after")
    two.here.bock("volume", "release", "changed")
    with two.here.connected("changed") as client:
        client.zero(MIB, 0)
        client.pwrite(b"new" * 1024, 2 * MIB)
    two.here.wait_until_unused("changed")
    content = read(two.here, "changed")
    two.here.wait_until_unused("changed")
    two.migrate("changed")
    two.assert_moved("changed", content)
    two.forget("changed")


def test_released_while_it_is_copied_it_does_not_move(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have written to it: the copy does not become the volume."""
    two.fill("freed")
    with two.move("freed") as move, two.here.storage() as storage:
        volume = move.source.id
        finished = move._finish_copy

        def released(*arguments: Any) -> None:
            finished(*arguments)
            storage.release_volume(volume)

        monkeypatch.setattr(move, "_finish_copy", released)
        with pytest.raises(InvalidStateError, match="not held any more"):
            move.run()
        assert storage.show_volume(volume).status == "available"
    two.cancel("freed")
    assert volumes(two.there) == []
    two.forget("freed")


def test_who_uses_it_keeps_it(two: Two) -> None:
    two.fill("used")
    with two.here.connected("used"):
        told = two.here.refusal("volume", "migrate", "used", "--to", two.place)
        assert "used by 1 client" in told
        assert "with --live the volume is copied while it is used" in told
    two.here.wait_until_unused("used")
    two.here.bock("attachment", "create", "used", "web1")
    assert "attached to web1" in two.here.refusal("volume", "migrate", "used", "--to", two.place)
    two.here.bock("attachment", "delete", "used")
    two.cancel("used")
    assert volumes(two.there) == []
    with two.here.storage() as storage:
        volume = storage.find_volume("used").id
        storage.hold_volume(volume, "by somebody")
        with pytest.raises(ConflictError, match="by somebody"):
            two.migrate("used")
        storage.release_volume(volume)
    two.forget("used")


def test_a_second_command_waits_and_gives_up(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    content = two.fill("twice")
    monkeypatch.setattr("bockd.cli.migrationtarget.RELEASE_TIMEOUT_SECONDS", 0.1)
    with two.move("twice") as move:
        compared = crossing.compare

        def meanwhile(*arguments: Any) -> None:
            with pytest.raises(BockdError, match="by another command"):
                two.migrate("twice")
            compared(*arguments)

        monkeypatch.setattr("bockd.cli.filling.compare", meanwhile)
        move.run()
    two.assert_moved("twice", content)
    two.forget("twice")


def test_refusals_leave_the_volume_as_it_was(two: Two, tmp_path: Path) -> None:
    two.fill("refused")
    same = Two(two.here, two.here, str(two.here.data_dir))
    with pytest.raises(ConflictError, match="already"):
        same.migrate("refused")
    two.there.bock("volume", "create", "refused", "--size", "1MiB")
    with pytest.raises(ConflictError, match="exists already"):
        two.migrate("refused")
    two.there.bock("volume", "delete", "refused")
    two.there.tool("bock", "tenant", "quota", "demo", "--gigabytes", "0")
    with pytest.raises(OverLimitError):
        two.migrate("refused")
    two.there.tool("bock", "tenant", "quota", "demo", "--default")
    empty = tmp_path / "none.env"
    empty.write_text("export PATH=/bin\n")
    for place, reason in [
        (tmp_path / "absent", "there is no "),
        (tmp_path, "no daemon answers on"),
        (empty, "line 1"),
    ]:
        assert reason in two.here.refusal("volume", "migrate", "refused", "--to", place)
    assert show(two.here, "refused").status == "available"
    assert snapshots(two.here) == []
    assert volumes(two.there) == []
    two.forget("refused")


def test_a_copy_that_differs_is_found(two: Two) -> None:
    two.fill("one")
    with two.here.storage() as storage:
        storage.create_snapshot(storage.find_volume("one").id, "one-then")
    with (
        connected(two.here.uri("one")) as ours,
        connected(two.here.uri("snapshot/one-then")) as old,
    ):
        whole = ((0, SIZE),)
        compare(old, ours, whole, None)
        ours.write(7 * MIB + 5, memoryview(b"x"))
        ours.drain()
        for pair in ((old, ours), (ours, old)):
            with pytest.raises(DamagedError, match=f"at byte {7 * MIB + 5}"):
                compare(*pair, whole, None)
    two.here.wait_until_unused("one")
    two.here.bock("snapshot", "delete", "one-then")
    two.forget("one")


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("seed", range(3))
def test_ranges_of_a_target_that_holds_other_data(two: Two, seed: int) -> None:
    """Within them it becomes the same, zeros and holes too; outside it stays."""
    name, chosen = f"ranges-{seed}", Random(seed)
    source = two.fill(name)
    target = bytearray(chosen.randbytes(SIZE))
    two.there.bock("volume", "create", name, "--size", f"{SIZE // MIB}MiB")
    cuts = sorted(chosen.sample(range(SIZE // 4096), 40))
    pairs = zip(cuts[::2], cuts[1::2], strict=True)
    ranges = [(begin * 4096, (end - begin) * 4096) for begin, end in pairs]
    notes: list[int] = []
    with connected(two.here.uri(name)) as ours, connected(two.there.uri(name)) as theirs:
        for offset in range(0, SIZE, MIB):
            theirs.write(offset, memoryview(target)[offset : offset + MIB])
        theirs.drain()
        copy_across(ours, theirs, ranges, None, notes.append, blank=False)
        compare(ours, theirs, ranges, None)
        for offset, length in ranges:
            target[offset : offset + length] = source[offset : offset + length]
    assert read(two.there, name) == target
    assert notes == sorted(notes)
    assert notes[-1] == SIZE
    two.forget(name)


def test_ranges_with_small_gaps_are_one() -> None:
    assert joined([]) == []
    assert joined([(0, 4096), (4096 + GAP_BYTES, 4096), (3 * GAP_BYTES, 1)]) == [
        (0, 8192 + GAP_BYTES),
        (3 * GAP_BYTES, 1),
    ]


def test_it_goes_on_only_to_where_it_began(two: Two, tmp_path: Path) -> None:
    two.fill("begun")
    assert killed(lambda: two.migrate("begun"), StorageClient, "hold_volume", 1, "after")
    with serving(tmp_path / "third") as third:
        other = Two(two.here, third, str(third.data_dir))
        with pytest.raises(ConflictError, match="name that place"):
            other.migrate("begun")
        assert volumes(third) == []
    two.cancel("begun")
    with pytest.raises(NotFoundError):
        two.migrate("nothing")
    two.forget("begun")
