"""`bock volume migrate` that another command for the same volume passes: it notices, and touches
nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bockd.cli import migration
from bockd.cli.migrationtarget import KEY, SERVER, Target
from bockd.cli.storage import StorageClient
from bockd.errors import ConflictError
from bockd.model import MIB
from tests.daemon.livewriting import press_ctrl_c
from tests.daemon.migrating import Two, killed, read, show
from tests.daemon.process import serving


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    work = tmp_path_factory.mktemp("two")
    with serving(work / "here") as here, serving(work / "there") as there:
        for one in (here, there):
            one.expect_in_log("is held")
        yield Two(here, there, str(work / "there"))


def interrupt(two: Two, name: str) -> None:
    """Have a target, and the source in use still."""
    with two.here.connected(name), pytest.raises(KeyboardInterrupt):
        two.migrate(name, live=True, tell=press_ctrl_c)
    two.here.wait_until_unused(name)


Run = Callable[[migration.Migration], object]

RUNS: dict[str, Run] = {
    "live": lambda move: move.run(live=True),
    "held": lambda move: move.run(),
    "cancel": lambda move: move.cancel(),
}


def once_before(patch: pytest.MonkeyPatch, method: str, other: Callable[[], object]) -> None:
    """Have another command run before a method of the target is called the next time."""
    call = getattr(Target, method)

    def passed(target: Target, *arguments: Any) -> Any:
        patch.setattr(Target, method, call)
        other()
        return call(target, *arguments)

    patch.setattr(Target, method, passed)


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
        once_before(monkeypatch, "wait_until_alone", other)
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
        once_before(monkeypatch, "is_as_left", lambda: two.migrate("unknown"))
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
        once_before(monkeypatch, "wait_until_alone", other)
        with pytest.raises(ConflictError, match="another command has gone on"):
            RUNS[how](move)
    content = read(two.here, name)
    two.here.wait_until_unused(name)
    two.migrate(name, verify=False)
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
