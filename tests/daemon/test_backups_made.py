"""Which backups were made is remembered, shown, and told to Prometheus."""

from __future__ import annotations

import logging
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.cli.backup import back_up
from bockd.cli.client import ControlClient
from bockd.control import FrozenPool
from bockd.drivers.local.backup import Backup
from bockd.drivers.local.backuplog import FILE, KEPT, note_backup, read_backups
from bockd.drivers.local.format.layout import unlink_if_present
from bockd.errors import InUseError
from bockd.pool.reports import BackupRecord
from tests.daemon.metrics.scraping import Scrape
from tests.daemon.process import Bockd, program, serving

GIVEN_UP = "a backup was given up by who made it"

METRIC = "bockd_local_last_backup_timestamp_seconds"


class InterruptedRunError(Exception):
    pass


def interrupt(_done: int, _total: int) -> None:
    raise InterruptedRunError


def again(pool: Path, target: Path) -> None:
    """Back up after an interruption, which the daemon looks for once a second."""
    deadline = time.monotonic() + 60
    while True:
        try:
            back_up(pool, target, lambda _done, _total: None)
        except InUseError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


def made(daemon: Bockd) -> list[BackupRecord]:
    """What the daemon says was made."""
    return [
        replace(BackupRecord(**one), left_out=tuple(one["left_out"]))
        for one in daemon.bock("pool", "backups")
    ]


def test_what_was_made_into_which_directory_and_when(tmp_path: Path) -> None:
    with serving(tmp_path / "pool") as daemon:
        daemon.expect_in_log(GIVEN_UP)
        said = daemon.run(program("bock"), "pool", "backups").out
        assert said == "no backup of this pool is known; 'bockd backup' makes one\n"
        assert Scrape.fresh(daemon).value(METRIC) == 0
        daemon.bock("volume", "create", "disk1", "--size", "1M")
        with daemon.connected("disk1") as client:
            client.pwrite(b"x" * 4096, 0)

        before = time.time()
        daemon.run(program("bockd"), "backup", str(daemon.data_dir), str(tmp_path / "first"))
        after = time.time()
        (first,) = made(daemon)
        assert first.directory == str(tmp_path / "first")
        assert first.finished_at is not None
        assert before <= first.began_at < first.finished_at <= after
        assert first.written_bytes > 0
        assert Scrape.fresh(daemon).value(METRIC) == first.finished_at

        # One that is interrupted has no backup any more, in whose directory there was one.
        with pytest.raises(InterruptedRunError):
            back_up(daemon.data_dir, tmp_path / "first", interrupt)
        (broken,) = made(daemon)
        assert broken.began_at >= after
        assert broken.finished_at is None
        assert Scrape.fresh(daemon).value(METRIC) == 0

        again(daemon.data_dir, tmp_path / "second")
        second, unfinished = made(daemon)
        assert (second.directory, unfinished) == (str(tmp_path / "second"), broken)
        shown = daemon.run(program("bock"), "pool", "backups").out.splitlines()
        assert [line.split()[0] for line in shown] == [
            "DIRECTORY",
            second.directory,
            broken.directory,
        ]
        assert shown[2].split()[3] == "no"

        daemon.stop()
        again(daemon.data_dir, tmp_path / "first")  # without a daemon
        daemon.start()
        assert [(one.directory, one.finished_at is None) for one in made(daemon)] == [
            (str(tmp_path / "first"), False),
            (str(tmp_path / "second"), False),
        ]
        # The backup is a pool of which no backup is known.
        assert read_backups(tmp_path / "first") == ()


def test_only_so_many_directories_are_remembered(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        note_backup(tmp_path, BackupRecord(f"/mnt/{number}", float(number)))
    found = read_backups(tmp_path)
    assert [one.directory for one in found] == [f"/mnt/{n}" for n in range(KEPT + 2, 2, -1)]
    note_backup(tmp_path, BackupRecord("/mnt/7", 1000.0, 1001.0, 4096))
    assert read_backups(tmp_path)[0] == BackupRecord("/mnt/7", 1000.0, 1001.0, 4096)
    assert len(read_backups(tmp_path)) == KEPT


def test_what_root_notes_its_pools_owner_may_read(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1235)
    note_backup(tmp_path, BackupRecord("/mnt/1", 1.0))
    found = (tmp_path / FILE).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 1235, 0o600)


@pytest.mark.parametrize("text", ["", "[", '{"a": 1}', '[{"directory": 1}]'])
def test_a_list_that_is_damaged_is_told_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / FILE).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_backups(tmp_path) == ()
    assert "which backups were made is not known" in caplog.text
    note_backup(tmp_path, BackupRecord("/mnt/1", 1.0))
    assert read_backups(tmp_path) == (BackupRecord("/mnt/1", 1.0),)


def test_a_backup_is_whole_that_cannot_be_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path / "pool") as daemon:
        daemon.stop()
        (daemon.data_dir / FILE / "sub").mkdir(parents=True)
        with caplog.at_level(logging.WARNING):
            again(daemon.data_dir, tmp_path / "backup")
        assert f"the backup in {tmp_path / 'backup'} was not noted" in caplog.text


def test_interrupted_in_its_first_moment_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a new file system, too."""
    target = tmp_path / "disk"
    (target / "lost+found").mkdir(parents=True)

    def broken(*_: object) -> None:
        raise InterruptedRunError

    with serving(tmp_path / "pool") as daemon:
        daemon.expect_in_log(GIVEN_UP)
        with monkeypatch.context() as patch:
            patch.setattr(Backup, "_copy_index", broken)
            with pytest.raises(InterruptedRunError):
                back_up(daemon.data_dir, target, interrupt)
        again(daemon.data_dir, target)
        assert made(daemon)[0].finished_at is not None


def test_interrupted_anywhere_the_earlier_one_is_not_called_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where the directory is no pool any more."""
    target = tmp_path / "backup"
    with serving(tmp_path / "pool") as daemon:
        daemon.expect_in_log(GIVEN_UP)
        again(daemon.data_dir, target)

        def broken(path: Path) -> None:
            unlink_if_present(path)
            if path == target / "index" / "lock.mdb":
                raise InterruptedRunError

        with monkeypatch.context() as patch:
            patch.setattr("bockd.drivers.local.backup.unlink_if_present", broken)
            with pytest.raises(InterruptedRunError):
                again(daemon.data_dir, target)
        assert not (target / "index" / "data.mdb").exists()
        assert [one.finished_at for one in made(daemon)] == [None]


def test_what_is_written_while_it_begins_is_later_than_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen_at = list[float]()
    freeze = ControlClient.begin_backup

    def begin(client: ControlClient) -> FrozenPool:
        frozen_at.append(time.time())
        found = freeze(client)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(ControlClient, "begin_backup", begin)
    with serving(tmp_path / "pool") as daemon:
        back_up(daemon.data_dir, tmp_path / "backup", lambda _done, _total: None)
        assert made(daemon)[0].began_at <= frozen_at[-1]


def test_a_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    target = Path(os.fsdecode(bytes(tmp_path) + b"/b\xff"))
    with serving(tmp_path / "pool") as daemon:
        daemon.stop()
        back_up(daemon.data_dir, target, lambda _done, _total: None)
    assert read_backups(daemon.data_dir)[0].directory == f"{tmp_path}/b\\xff"
