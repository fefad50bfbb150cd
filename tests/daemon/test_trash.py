"""The trash through a whole daemon: nobody reaches what is in it, and it comes back as it was."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbd
import pytest

from bockd.blockstorage.trashrecords import TrashLedger
from bockd.cli import transfer
from bockd.cli.convert import Show
from bockd.cli.copying import copy_in
from bockd.cli.sources import opened_image, opened_source
from bockd.drivers.local.pool import LocalPool
from bockd.errors import BockdError
from bockd.model import MIB
from bockd.nbd.client import Export
from bockd.pool.index import Transaction
from bockd.runtime.steps import Background

from .migrating import Two, killed, show
from .process import Bockd, program, serving

KEPT = "[trash]\nkeep_hours = 168\n"


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Bockd]:
    """A daemon that keeps what is deleted, with a view of its volumes as files."""
    config = tmp_path / "bockd.toml"
    config.write_text(KEPT)
    with serving(
        tmp_path / "pool", config=config, mount=tmp_path / "view", metrics_listen="127.0.0.1:0"
    ) as daemon:
        yield daemon


def write(daemon: Bockd, volume: str, content: bytes) -> None:
    with daemon.connected(volume) as client:
        client.pwrite(content, MIB)
        client.flush()
    daemon.wait_until_unused(volume)


def read(daemon: Bockd, export: str, length: int) -> bytes:
    with daemon.connected(export) as client:
        return bytes(client.pread(length, MIB))


def exports(daemon: Bockd) -> set[str]:
    """What an NBD client is told of."""
    found: set[str] = set()
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(str(daemon.nbd_socket))

    def note(name: str, _about: str) -> int:
        found.add(name)
        return 0

    handle.opt_list(note)
    handle.opt_abort()
    return found


def metric(daemon: Bockd, name: str) -> float:
    with urllib.request.urlopen(daemon.metrics_url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (value,) = (line.split()[1] for line in lines if line.split()[0] == name)
    return float(value)


def names_in_usage(daemon: Bockd) -> set[tuple[str, bool]]:
    return {
        (node["name"], node["in_trash"]) for family in daemon.bock("du") for node in family["nodes"]
    }


def test_nobody_reaches_the_trash_and_it_comes_back_whole(keeping: Bockd, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB)
    keeping.bock("volume", "create", "web", "--size", "8M")
    write(keeping, "web", content)
    shot = keeping.bock("snapshot", "create", "web", "before")["id"]
    write(keeping, "web", content[::-1])
    volume = keeping.bock("volume", "show", "web")["id"]
    view = tmp_path / "view"
    assert os.listdir(view / "volumes") == ["web"]

    deleted = keeping.bock("volume", "delete", "web")
    assert deleted["in_trash"]["id"] == volume
    assert keeping.bock("snapshot", "delete", "before")["in_trash"]["volume"] == volume
    assert keeping.bock("volume", "list") == []
    assert keeping.bock("snapshot", "list") == []
    assert exports(keeping) == set()
    gone = ("web", str(volume), f"trash-{volume}", "snapshot/before", f"snapshot/{shot}")
    for export in gone:
        with pytest.raises(nbd.Error, match="no export named"):
            keeping.connect(export)
    for directory in ("volumes", "snapshots"):
        assert os.listdir(view / directory) == []
    for name in ("web", f"trash-{volume}"):
        assert not (view / "volumes" / name).exists()
    assert "of no tenant" not in keeping.tool("bock", "info")  # nobody's is adopted
    assert names_in_usage(keeping) == {("web", True), ("before", True)}
    assert metric(keeping, "bockd_pool_volumes") == 0
    assert keeping.check()["clean"]

    keeping.restart()
    assert {one["id"] for one in keeping.bock("trash", "list")} == {volume, shot}
    while metric(keeping, "bockd_trash_volumes") != 1:
        pass
    assert metric(keeping, "bockd_trash_volume_size_bytes") == 1 << 30  # in whole GiB
    keeping.bock("trash", "restore", "web")
    keeping.bock("trash", "restore", str(shot))
    assert keeping.bock("trash", "list") == []
    assert read(keeping, "web", len(content)) == content[::-1]
    assert read(keeping, "snapshot/before", len(content)) == content
    assert (view / "volumes" / "web").stat().st_size == 8 * MIB
    assert keeping.check()["clean"]


@pytest.mark.needs("files")
def test_nbdkit_reaches_nothing_there_and_the_pool_shows_what_it_takes(keeping: Bockd) -> None:
    """The tests' cluster has no manager, so the room of a pool there is not known."""
    keeping.bock("volume", "create", "web", "--size", "8M")
    write(keeping, "web", os.urandom(2 * MIB))
    shot = keeping.bock("snapshot", "create", "web", "before")["id"]
    write(keeping, "web", os.urandom(2 * MIB))
    volume = keeping.bock("volume", "delete", "web")["in_trash"]["id"]
    keeping.bock("snapshot", "delete", "before")
    for named in (
        *("volume=web", f"volume={volume}", f"volume=trash-{volume}"),
        *("snapshot=before", f"snapshot={shot}"),
    ):
        served = keeping.run(
            *(program("nbdkit"), "-U", "-", "python"),
            *(keeping.tool("bockd", "nbdkit-plugin").strip(), f"pool={keeping.data_dir}"),
            *(named, "--run", "nbdinfo $uri"),
        )
        assert served.status != 0
        assert "there is no" in served.err
    pool = keeping.bock("pool", "show")
    assert (pool["trash_volumes"], pool["trash_snapshots"]) == (1, 1)
    assert pool["trash_bytes"] == 4 * MIB
    assert (pool["volumes"], pool["volumes_bytes"], pool["snapshots_bytes"]) == (0, 0, 0)


def test_what_limits_and_profiles_have_counted_outlives_the_trash(
    keeping: Bockd, tmp_path: Path
) -> None:
    """One gate counts for both. So nobody gets a full bucket by deleting and restoring."""
    worn = {"name": "worn", "errors": [{"operations": ["read"], "after_requests": 2}]}
    (tmp_path / "worn.json").write_text(json.dumps(worn))
    keeping.bock("volume", "create", "web", "--size", "8M")
    keeping.bock("volume", "profile", "web", f"@{tmp_path / 'worn.json'}")
    keeping.expect_in_log("the device profile 'worn' lets it fail")
    with keeping.connected("web") as client:
        for _ in range(2):
            client.pread(4096, 0)
        with pytest.raises(nbd.Error, match="Input/output error"):
            client.pread(4096, 0)
    keeping.wait_until_unused("web")
    keeping.bock("volume", "delete", "web")
    keeping.bock("trash", "restore", "web")
    with keeping.connected("web") as client, pytest.raises(nbd.Error, match="Input/output error"):
        client.pread(4096, 0)


def in_trash(daemon: Bockd) -> list[tuple[int, str]]:
    return [(one["id"], one["name"]) for one in daemon.bock("trash", "list")]


def test_an_import_that_fails_leaves_nothing_in_the_trash(
    keeping: Bockd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take space and quota, and the place of what was deleted."""
    image = tmp_path / "web.raw"
    image.write_bytes(os.urandom(MIB))

    def changed_meanwhile(path: Path, length: int, uri: str, show: Show) -> None:
        copy_in(path, length, uri, show)
        image.write_bytes(os.urandom(MIB))

    monkeypatch.setattr(transfer, "copy_in", changed_meanwhile)
    with (
        keeping.storage() as storage,
        opened_source(str(image)) as source,
        opened_image(source, "raw") as opened,
        pytest.raises(BockdError, match="changed"),
    ):
        transfer.fill_new_volume(storage, source, opened, "web")
    assert keeping.bock("volume", "list") == []
    assert in_trash(keeping) == []


def test_of_a_move_only_the_source_goes_to_the_trash(keeping: Bockd, tmp_path: Path) -> None:
    config = tmp_path / "there.toml"
    config.write_text(KEPT)
    with serving(tmp_path / "there", config=config) as there:
        two = Two(keeping, there, str(tmp_path / "there"))
        content = two.fill("web")
        assert killed(lambda: two.migrate("web"), Export, "write", 1, "after")
        two.cancel("web")
        assert there.bock("volume", "list") == []
        assert in_trash(there) == []
        keeping.tool("bock", "volume", "migrate", "web", "--to", two.place, "--delete-source")
        ((volume, name),) = in_trash(keeping)
        assert name == "web"
        keeping.bock("trash", "restore", "web")
        source = show(keeping, "web")
        assert (source.id, source.status, source.has_moved) == (volume, "maintenance", True)
        keeping.bock("volume", "release", "web")
        for daemon in (keeping, there):
            with daemon.connected("web") as client:
                assert bytes(client.pread(len(content), 0)) == content


def due_now(data_dir: Path) -> None:
    """As if the time of all that is in the trash were over."""

    def change(txn: Transaction) -> None:
        ledger = TrashLedger(txn)
        for record in list(ledger.records()):
            ledger.put(replace(record, expires_at=record.deleted_at))

    pool = LocalPool.open(data_dir, Background().spawn)
    try:
        pool.index.update(change)
    finally:
        pool.release()


def until_reclaimed(daemon: Bockd) -> None:
    while daemon.check()["pending_reclaim"]:
        pass


@pytest.mark.needs("files")
def test_what_goes_at_a_start_is_what_makes_room(keeping: Bockd, tmp_path: Path) -> None:
    """And not what is due, for the clock may not be right yet. Its space is free then."""
    empty = sum(keeping.layer_files().values())
    keeping.bock("volume", "create", "web", "--size", "8M")
    write(keeping, "web", os.urandom(2 * MIB))
    keeping.bock("volume", "delete", "web")
    keeping.bock("volume", "create", "kept", "--size", "8M")
    keeping.stop()
    due_now(keeping.data_dir)
    keeping.start()
    while metric(keeping, "bockd_trash_volumes") != 1:
        pass
    assert [name for _, name in in_trash(keeping)] == ["web"]
    keeping.stop()
    (tmp_path / "bockd.toml").write_text(KEPT + "full_percent = 1\n")
    keeping.start()
    while in_trash(keeping):
        pass
    keeping.expect_in_log(r"volume \d+ \(web\) is deleted for good: the pool is nearly full")
    until_reclaimed(keeping)
    assert sum(keeping.layer_files().values()) == empty
    assert [one["name"] for one in keeping.bock("volume", "list")] == ["kept"]
    assert keeping.check()["clean"]
