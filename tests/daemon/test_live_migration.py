"""`bock volume migrate --live`: what is written meanwhile arrives, and what interrupts it does no
harm.

The writing client and the command are processes of their own where both run at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bockd.cli.copying import GAP_BYTES
from bockd.cli.http import Http
from bockd.cli.migrationtarget import SERVER, read_progress
from bockd.cli.waiting import when_released
from bockd.errors import BockdError, ConflictError, DamagedError, DeniedError
from bockd.model import MIB
from bockd.nbd.client import Export
from tests.daemon.livewriting import (
    Writer,
    assert_nothing_left,
    assert_usable_or_held,
    die,
    interrupt,
    run_live,
)
from tests.daemon.migrating import SIZE, Two, killed, read, show, snapshots, volumes
from tests.daemon.process import Bockd, program, serving

MOST_STEPS = 200
REQUEST = (Http, "request")
SECONDS = 60


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    work = tmp_path_factory.mktemp("two")
    with serving(work / "here") as here, serving(work / "there") as there:
        for one in (here, there):
            one.expect_in_log("is held")
        yield Two(here, there, str(work / "there"))


def pwrite(daemon: Bockd, export: str, data: bytes, offset: int) -> None:
    with daemon.connected(export) as client:
        client.pwrite(data, offset)
    daemon.wait_until_unused(export)


# -- while it is used --------------------------------------------------------------------------


def test_what_clients_write_meanwhile_arrives(two: Two) -> None:
    for number in range(2):
        name = f"written-{number}"
        writer = Writer(two.here, name, two.fill(name))
        assert run_live(two, name, writer, REQUEST, 0, die) == 0
        assert writer.requests > 10
        assert not writer.connected
        two.assert_moved(name, bytes(writer.content))
        two.forget(name)


def test_an_attached_volume_moves_when_it_is_detached(two: Two) -> None:
    two.fill("guest")
    way = two.here.bock("attachment", "create", "guest", "web1")
    writer = Writer(two.here, "guest", read(two.here, "guest"), way["unix_uri"])
    command = [program("bock"), "volume", "migrate", "guest", "--to", two.place, "--live"]
    with subprocess.Popen(
        command, env=two.here.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        told = running.stderr.readline()
        assert "attached to web1 as /dev/vdb: 'bock attachment delete" in told
        assert "waiting for that" in told
        writer.write()
        assert show(two.here, "guest").status == "in-use"
        writer.end()
        two.here.bock("attachment", "delete", "guest")
        out, err = running.communicate(timeout=SECONDS)
    # That it is being detached may be told, too.
    told = "".join(line for line in err.splitlines() if "waiting for that" not in line)
    assert (running.returncode, told) == (0, "")
    assert "migrated volume" in out
    two.assert_moved("guest", bytes(writer.content))
    two.forget("guest")


def test_ctrl_c_leaves_it_in_use_and_the_same_command_goes_on(two: Two) -> None:
    writer = Writer(two.here, "stopped", two.fill("stopped"))
    command = [program("bock"), "volume", "migrate", "stopped", "--to", two.place, "--live"]
    with subprocess.Popen(
        command, env=two.here.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        assert "is used by 1 client" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=SECONDS)
    assert (running.returncode, out) == (130, "")
    assert "interrupted; the same command goes on" in err
    assert show(two.here, "stopped").status == "available"
    writer.write()
    (left,) = snapshots(two.here)
    assert left.startswith("migration-")
    assert run_live(two, "stopped", writer, REQUEST, 0, die) == 0
    two.assert_moved("stopped", bytes(writer.content))
    two.forget("stopped")


def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    """The offsets that a method of the NBD client is called with from now on."""
    offsets: list[int] = []
    call = getattr(Export, method)

    def noting(export: Export, offset: int, *more: Any) -> None:
        offsets.append(offset)
        call(export, offset, *more)

    monkeypatch.setattr(Export, method, noting)
    return offsets


def test_in_the_end_only_the_last_changes_are_copied(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(two.fill("little"))
    client = two.here.connect("little")
    written = counted(monkeypatch, "write")

    def told(_text: str) -> None:
        client.pwrite(b"last" * 1024, 2 * MIB)
        client.zero(4096, 4 * MIB)
        client.shutdown()
        written.clear()

    two.migrate("little", live=True, tell=told)
    content[2 * MIB : 2 * MIB + 4096] = b"last" * 1024
    content[4 * MIB : 4 * MIB + 4096] = bytes(4096)
    assert [at for at in written if not 2 * MIB <= at <= 4 * MIB + GAP_BYTES] == []
    assert len(written) <= 2
    two.assert_moved("little", bytes(content))
    two.forget("little")


def test_rounds_go_on_while_it_waits(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(two.fill("waiting"))
    client = two.here.connect("waiting")
    monkeypatch.setattr("bockd.cli.migration.ROUND_SECONDS", 0.0)
    names: set[str] = set()
    with two.move("waiting") as move:
        rounds = move._round

        def noting(*arguments: Any) -> int:
            if len(names) == 6:
                client.shutdown()
            elif len(names) < 6:
                client.pwrite(bytes([len(names)]) * 4096, len(names) * MIB)
                content[len(names) * MIB : len(names) * MIB + 4096] = bytes([len(names)]) * 4096
            copied = rounds(*arguments)
            names.update(snapshots(two.here))
            assert len(snapshots(two.here)) == 1
            return copied

        monkeypatch.setattr(move, "_round", noting)
        move.run(live=True)
    assert len(names) >= 6
    two.assert_moved("waiting", bytes(content))
    two.forget("waiting")


def test_it_grows_meanwhile(two: Two) -> None:
    content = two.fill("grown")
    with two.here.storage() as storage:
        volume = storage.find_volume("grown").id
        client = two.here.connect("grown")

        def told(_text: str) -> None:
            client.shutdown()
            storage.extend_volume(volume, SIZE + MIB)
            pwrite(two.here, "grown", b"beyond", SIZE + 4096)

        two.migrate("grown", live=True, tell=told)
    end = b"beyond".rjust(4096 + 6, b"\0").ljust(MIB, b"\0")
    two.assert_moved("grown", content + end)
    two.forget("grown")


# -- what it makes -----------------------------------------------------------------------------


def test_its_snapshots_are_not_the_users(two: Two) -> None:
    content = two.fill("counted")
    two.here.bock("snapshot", "create", "counted", "migration-00c0ffee")
    two.here.tool("bock", "tenant", "quota", "demo", "--snapshots", "1")
    interrupt(two, "counted")
    assert len(snapshots(two.here)) == 2
    with two.here.storage() as storage:
        assert storage.limits()["totalSnapshotsUsed"] == 1
    two.migrate("counted", live=True)
    assert snapshots(two.here) == ["migration-00c0ffee"]
    two.here.bock("snapshot", "delete", "migration-00c0ffee")
    two.here.tool("bock", "tenant", "quota", "demo", "--default")
    two.assert_moved("counted", content)
    two.forget("counted")


def test_release_deletes_its_snapshots(two: Two) -> None:
    content = two.fill("released")
    interrupt(two, "released")
    assert two.here.bock("volume", "release", "released")["status"] == "available"
    assert snapshots(two.here) == []
    assert "is not held" in two.here.refusal("volume", "release", "released")
    two.migrate("released", live=True)
    two.assert_moved("released", content)
    two.here.bock("volume", "release", "released")
    two.forget("released")


def test_cancel_leaves_nothing(two: Two) -> None:
    content = two.fill("undone")
    interrupt(two, "undone")
    two.cancel("undone")
    assert_nothing_left(two, "undone")
    assert read(two.here, "undone") == content
    two.forget("undone")


def test_begun_live_it_ends_in_the_other_way(two: Two) -> None:
    two.fill("mixed")
    interrupt(two, "mixed")
    pwrite(two.here, "mixed", b"later" * 1000, MIB)
    content = read(two.here, "mixed")
    two.here.wait_until_unused("mixed")
    two.migrate("mixed")
    two.assert_moved("mixed", content)
    two.forget("mixed")


@pytest.mark.parametrize("copied", [False, True])
def test_torn_in_a_copy_or_a_round_it_ends_in_the_other_way(two: Two, copied: bool) -> None:
    """What was copied in part is no base. Nothing is compared, which would find it."""
    name = f"torn-{copied}"
    content = bytearray(two.fill(name))
    if copied:
        interrupt(two, name)
        for offset in range(0, SIZE, 3 * MIB):
            content[offset : offset + 4096] = b"more" * 1024
            pwrite(two.here, name, b"more" * 1024, offset)
    assert killed(lambda: two.migrate(name, live=True), Export, "write", 2, "before")
    base, unfinished = noted(two, name)
    assert base != unfinished
    pwrite(two.here, name, b"last" * 1024, MIB)
    content[MIB : MIB + 4096] = b"last" * 1024
    two.migrate(name, verify=False)
    two.assert_moved(name, bytes(content))
    two.forget(name)


# -- no stale base -----------------------------------------------------------------------------


def test_reverted_meanwhile(two: Two) -> None:
    content = two.fill("back")
    two.here.bock("snapshot", "create", "back", "back-then")
    pwrite(two.here, "back", b"forgotten" * 1000, 3 * MIB)
    interrupt(two, "back")
    two.here.bock("snapshot", "revert", "back-then")
    assert read(two.here, "back") == content
    two.here.wait_until_unused("back")
    two.migrate("back", live=True)
    two.here.bock("snapshot", "delete", "back-then")
    two.assert_moved("back", content)
    two.forget("back")


def test_its_snapshot_was_deleted(two: Two) -> None:
    two.fill("unbased")
    interrupt(two, "unbased")
    (before,) = volumes(two.there)
    two.here.bock("snapshot", "delete", snapshots(two.here)[0])
    pwrite(two.here, "unbased", b"unknown" * 1000, 3 * MIB)
    content = read(two.here, "unbased")
    two.here.wait_until_unused("unbased")
    two.migrate("unbased", live=True)
    (after,) = volumes(two.there)
    assert before.id != after.id
    two.assert_moved("unbased", content)
    two.forget("unbased")


def test_its_snapshot_was_deleted_in_the_middle_of_a_round(two: Two) -> None:
    """The target then has a part of what no snapshot holds any more: a revert makes that wrong."""
    content = two.fill("torn")
    two.here.bock("snapshot", "create", "torn", "torn-then")
    interrupt(two, "torn")
    pwrite(two.here, "torn", b"passing" * 100_000, 0)
    assert killed(lambda: two.migrate("torn", live=True), Export, "write", 1, "after")
    base, unfinished = noted(two, "torn")
    assert unfinished is not None
    assert snapshots(two.here) == ["torn-then", base, unfinished]
    with two.here.storage() as storage:
        when_released(lambda: storage.delete_snapshot(storage.find_snapshot(unfinished).id))
    two.here.bock("snapshot", "revert", "torn-then")
    two.migrate("torn", live=True)
    two.here.bock("snapshot", "delete", "torn-then")
    two.assert_moved("torn", content)
    two.forget("torn")


def noted(two: Two, name: str) -> tuple[str | None, str | None]:
    """The base and the snapshot that the target's metadata name."""
    progress = read_progress(show(two.there, name))
    return progress.base, progress.snapshot


def test_somebody_has_written_to_the_target(two: Two) -> None:
    content = two.fill("spoilt")
    interrupt(two, "spoilt")
    pwrite(two.there, "spoilt", b"spoilt", 7 * MIB)
    with pytest.raises(DamagedError, match=f"at byte {7 * MIB}; run the command again"):
        two.migrate("spoilt", live=True)
    assert show(two.here, "spoilt").status == "available"
    two.migrate("spoilt", live=True, verify=False)
    two.assert_moved("spoilt", content)
    two.forget("spoilt")


@pytest.mark.parametrize("again", [False, True])
def test_somebody_has_detached_the_target(two: Two, again: bool) -> None:
    """Without a comparison nothing would tell that it was written."""
    content = two.fill("open")
    interrupt(two, "open")
    two.there.bock("attachment", "delete", "open")
    pwrite(two.there, "open", b"spoilt", 7 * MIB)
    if again:
        two.there.bock("attachment", "create", "open", SERVER)
    two.migrate("open", live=True, verify=False)
    two.assert_moved("open", content)
    two.forget("open")


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["_finish_copy", "_switch"])
def test_a_failure_at_the_end_gives_the_source_back(
    two: Two, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.fill("failed")
    interrupt(two, "failed")
    with two.move("failed") as move:

        def failing(*_: Any) -> None:
            assert show(two.here, "failed").status == "maintenance"
            raise DeniedError("not today")

        monkeypatch.setattr(move, moment, failing)
        with pytest.raises(DeniedError, match="not today"):
            move.run(live=True)
    assert show(two.here, "failed").status == "available"
    pwrite(two.here, "failed", b"then", 5 * MIB)
    content = read(two.here, "failed")
    two.here.wait_until_unused("failed")
    two.migrate("failed", live=True)
    two.assert_moved("failed", content)
    two.forget("failed")


def test_of_a_volume_that_has_moved_nothing_is_given_back(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the switch was lost: the target is the volume."""
    content = two.fill("lost")
    with two.move("lost") as move:
        switch = move._switch

        def unanswered(target: Any) -> None:
            switch(target)
            raise DeniedError("no answer")

        monkeypatch.setattr(move, "_switch", unanswered)
        with pytest.raises(DeniedError, match="no answer"):
            move.run(live=True)
    assert (show(two.here, "lost").hold or "").startswith("migrated to")
    with pytest.raises(ConflictError, match="migrated to"):
        two.cancel("lost")
    two.migrate("lost", live=True)
    two.assert_moved("lost", content)
    two.forget("lost")


def test_a_second_command_does_not_end_the_first_ones_hold(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = two.fill("both")
    monkeypatch.setattr("bockd.cli.migrationtarget.RELEASE_TIMEOUT_SECONDS", 0.1)
    with two.move("both") as move:
        finished = move._finish_copy

        def meanwhile(*arguments: Any) -> None:
            for live in (True, False):
                with pytest.raises(BockdError, match="by another command"):
                    two.migrate("both", live=live)
            assert show(two.here, "both").status == "maintenance"
            finished(*arguments)

        monkeypatch.setattr(move, "_finish_copy", meanwhile)
        move.run(live=True)
    two.assert_moved("both", content)
    two.forget("both")


def test_live_goes_with_a_move_only(two: Two) -> None:
    told = two.here.misuse("volume", "migrate", "any", "--to", two.place, "--live", "--cancel")
    assert "--cancel goes with no other option" in told


# -- deaths ------------------------------------------------------------------------------------


def interrupted(two: Two, name: str, number: int, act: Callable[[], None], *whose: Bockd) -> bool:
    """Move a volume while a client writes, with an interruption at a request; then go on with the
    move, or cancel it and see that the source has everything. Return whether it came to that."""
    writer = Writer(two.here, name, two.fill(name))
    status = run_live(two, name, writer, REQUEST, number, act)
    for daemon in whose:
        if status:
            daemon.kill()
            daemon.start()
    has_moved = assert_usable_or_held(two, name)
    assert status or has_moved
    is_free = show(two.here, name).hold is None
    if is_free and not writer.connected:
        writer.connect_again()
    if number % 2 and not has_moved:
        writer.end()
        two.here.wait_until_unused(name)
        two.cancel(name)
        assert_nothing_left(two, name)
        assert read(two.here, name) == writer.content
    else:
        assert run_live(two, name, writer, REQUEST, 0, die) == 0
        two.assert_moved(name, bytes(writer.content))
    two.forget(name)
    return status != 0


def killing(daemon: Bockd) -> Callable[[], None]:
    return lambda: os.kill(daemon.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [16, 29, 40])
def test_killed_at_some_requests(two: Two, number: int) -> None:
    assert interrupted(two, f"killed-{number}", number, die)


@pytest.mark.parametrize(("whose", "number"), [("here", 24), ("there", 34)])
def test_a_daemon_is_killed_at_some_requests(two: Two, whose: str, number: int) -> None:
    daemon: Bockd = getattr(two, whose)
    assert interrupted(two, f"{whose}-{number}", number, killing(daemon), daemon)


@pytest.mark.long_kills
@pytest.mark.parametrize("whose", ["command", "here", "there"])
def test_killed_at_any_request(two: Two, whose: str) -> None:
    daemons: tuple[Bockd, ...] = () if whose == "command" else (getattr(two, whose),)
    act = killing(*daemons) if daemons else die
    number, came = 0, True
    while came:
        number += 1
        assert number < MOST_STEPS
        came = interrupted(two, f"{whose}-any-{number}", number, act, *daemons)
    assert number > 30
