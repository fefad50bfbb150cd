"""What the plugin serves and says about it, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import nbd
import pytest

from bockd.drivers.local.format.catalogue import FORMAT, META, NEWEST_FORMAT, Catalogue
from bockd.drivers.local.pool import LocalPool
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.pool.index import Transaction
from bockd.runtime.steps import Background
from tests.drivers.local.named import volume_named

from ..daemon.process import program
from .conftest import MIB, PoolDirectory, serving
from .nbdkit import PLUGIN, REPOSITORY, Nbdkit, refusal, run_nbdkit, served

KNOWN = b"kept" * 1024


def described(pool: PoolDirectory, *arguments: str) -> list[dict[str, Any]]:
    """What `nbdinfo --list` says of each export."""
    told = served('nbdinfo --list --json "$uri"', pool.parameter, *arguments)
    exports: list[dict[str, Any]] = json.loads(told)["exports"]
    return exports


def test_the_whole_pool_is_exported_where_nothing_is_chosen(pool: PoolDirectory) -> None:
    """Without volume= and snapshot= everything is there, volumes first, each under its name."""
    pool.create("disk1")
    pool.create("disk2", 4 * MIB)
    pool.snapshot("disk1", "before")
    exports = described(pool)
    assert [(e["export-name"], e["description"], e["export-size"]) for e in exports] == [
        ("disk1", "volume 1", 8 * MIB),
        ("disk2", "volume 2", 4 * MIB),
        ("snapshot/before", "snapshot 3", 8 * MIB),
    ]
    assert [e["is_read_only"] for e in exports] == [False, False, True]
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        with nbdkit.connected("disk1") as one, nbdkit.connected("2") as two:
            one.pwrite(KNOWN, 0)
            two.pwrite(KNOWN[::-1], 0)
        with nbdkit.connected("disk2") as two, nbdkit.connected("snapshot/before") as snapshot:
            assert two.pread(4096, 0) == KNOWN[::-1]
            assert snapshot.pread(4096, 0) == bytes(4096)
        assert "there is no volume 'disk3'" in nbdkit.connection_refused("disk3")
        assert "name an export" in nbdkit.connection_refused("")


def test_a_chosen_volume_is_exported_alone(pool: PoolDirectory) -> None:
    """It is also what a client gets that names nothing, and the pool's others are not there."""
    pool.create("disk1")
    pool.create("disk2")
    assert [e["export-name"] for e in described(pool, "volume=1")] == ["disk1"]
    with Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit:
        for name in ("", "disk1", "1"):
            with nbdkit.connected(name) as client:
                assert client.get_size() == 8 * MIB
        assert "no export 'disk2' here, only 'disk1'" in nbdkit.connection_refused("disk2")


def test_a_snapshot_whose_name_a_volume_has(pool: PoolDirectory) -> None:
    """A volume may be called like a snapshot's export; `snapshot=` means the snapshot."""
    pool.create("disk1")
    snapshot = pool.snapshot("disk1", "x")
    volume = pool.create("snapshot/x", 4 * MIB)
    for parameter, size in ((snapshot, 8 * MIB), (volume, 4 * MIB)):
        assert served('nbdinfo --size "$uri"', pool.parameter, parameter) == f"{size}\n"


def test_names_that_no_export_has(pool: PoolDirectory) -> None:
    """Told in one line each, however odd; nbdkit goes on."""
    pool.create("disk1")
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        for name in ("x" * 4096, "..", "snapshot/", "a\nb", "\U0001f980" * 1000):
            assert "there is no" in nbdkit.connection_refused(name), name
        # libnbd's Python cannot say that this one was refused.
        told = subprocess.run(
            [program("nbdinfo"), nbdkit.uri(b"\xff\xfe")], capture_output=True, check=False
        )
        assert told.returncode == 1
        assert "there is no such export: its name is not UTF-8" in nbdkit.messages
        assert "Traceback" not in nbdkit.messages
        with nbdkit.connected("disk1") as client:
            assert client.get_size() == 8 * MIB


def test_what_a_volume_and_a_snapshot_can_do(pool: PoolDirectory) -> None:
    pool.create("disk1")
    snapshot = pool.snapshot("disk1", "before")
    for parameter, writable in (("volume=disk1", True), (snapshot, False)):
        with serving(pool, parameter) as client:
            assert client.is_read_only() is not writable
            assert client.can_trim() is writable
            assert client.can_zero() is writable
            assert client.can_fast_zero() is writable
            assert client.can_flush()
            assert client.can_fua() or not writable
            assert client.can_cache()
            assert client.can_multi_conn()
            assert not client.is_rotational()
            assert client.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            assert client.get_block_size(nbd.SIZE_MINIMUM) == 1
            assert client.get_block_size(nbd.SIZE_PREFERRED) == 4096
            assert client.get_block_size(nbd.SIZE_MAXIMUM) == 64 * MIB
            client.flush()
            if not writable:
                client.set_strict_mode(0)
                with pytest.raises(nbd.Error) as refused:
                    client.pwrite(KNOWN, 0)
                assert refused.value.errnum == errno.EPERM


def test_read_only_by_request(pool: PoolDirectory) -> None:
    """`nbdkit -r`: the volume is there and cannot be written."""
    pool.create("disk1")
    with serving(pool, "volume=disk1", filters=("-r",)) as client:
        assert client.is_read_only()
        assert client.pread(512, 0) == bytes(512)


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ((), "pool=DIRECTORY is missing"),
        (("volume=x",), "pool=DIRECTORY is missing"),
        (("pool=",), "pool= is empty"),
        (("pool={pool}", "volume="), "volume= is empty"),
        (("pool={pool}", "volume=a", "snapshot=b"), "either volume= or snapshot=, not both"),
        (("pool={pool}", "volume=a", "volume=b"), "volume= was given twice"),
        (("pool={pool}", "disk=a"), "unknown parameter 'disk': give pool=DIRECTORY"),
        (("pool={pool}", "volume=absent"), "there is no volume 'absent'"),
        (("pool={pool}", "snapshot=absent"), "there is no snapshot 'absent'"),
        (("pool={pool}/nowhere",), "there is no pool in"),
    ],
)
def test_bad_parameters(pool: PoolDirectory, parameters: tuple[str, ...], expected: str) -> None:
    said = refusal(*(parameter.format(pool=pool.path) for parameter in parameters))
    assert expected in said


def test_a_relative_pool_in_the_background(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nbdkit leaves its working directory when it goes into the background."""
    pool.create("disk1")
    monkeypatch.chdir(pool.path.parent)
    assert served('nbdinfo --size "$uri"', "pool=pool", "volume=disk1") == f"{8 * MIB}\n"


def test_a_pool_of_a_newer_format(pool: PoolDirectory) -> None:
    pool.create("disk1")
    index = LmdbIndex.open(pool.path / "index", Ballast(pool.path / "ballast").release)

    def set_format(number: int) -> None:
        def change(txn: Transaction) -> None:
            record = json.loads(txn.get(META, b"pool") or b"")
            txn.put(META, b"pool", json.dumps({**record, "format": number}).encode())

        index.update(change)

    set_format(NEWEST_FORMAT + 1)
    assert f"the pool has format {NEWEST_FORMAT + 1}" in refusal(pool.parameter, "volume=disk1")
    set_format(FORMAT)
    index.close()


def test_a_volume_that_failed(pool: PoolDirectory) -> None:
    """Refused until it is reopened; the others are served."""
    pool.create("disk1")
    pool.create("disk2")
    opened = LocalPool.open(pool.path, Background().spawn)

    def fail(txn: Transaction) -> None:
        catalogue = Catalogue(txn)
        catalogue.put_volume(replace(catalogue.volume(volume_named(opened, "disk1")), failed="EIO"))

    opened.index.update(fail)
    opened.release()
    said = refusal(pool.parameter, "volume=disk1")
    assert "is refused after an error: EIO" in said
    assert "'bock volume reopen 1'" in said
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        assert "'bock volume reopen 1'" in nbdkit.connection_refused("disk1")
        with nbdkit.connected("disk2") as client:
            client.pwrite(KNOWN, 0)


def test_a_volume_that_is_held(pool: PoolDirectory) -> None:
    pool.daemon.start()
    with pool.daemon.storage() as storage:
        held = storage.create_volume("held", MIB).id
        storage.hold_volume(held, "moves away")
    pool.daemon.stop()
    assert f"volume {held} is held (moves away)" in refusal(pool.parameter, "volume=held")
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        assert "is held (moves away)" in nbdkit.connection_refused("held")
    pool.daemon.start()
    with pool.daemon.storage() as storage:
        storage.release_volume(held)
    pool.daemon.stop()
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit, nbdkit.connected("held") as client:
        client.pwrite(b"x" * 512, 0)


def test_a_truncated_layer(pool: PoolDirectory) -> None:
    """Refused by name, before nbdkit goes into the background, and by request; not mapped, not
    guessed."""
    pool.create("disk1")
    pool.create("disk2")
    layer = pool.path / "layers" / "1.0"
    os.truncate(layer, 4 * MIB)
    assert f"layer file {layer} is truncated" in refusal(pool.parameter, "volume=disk1")
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        assert f"layer file {layer} is truncated" in nbdkit.connection_refused("disk1")
        with nbdkit.connected("disk2") as client:
            client.pwrite(KNOWN, 0)
    os.truncate(layer, 8 * MIB)


# -- finding bockd ---------------------------------------------------------------------------


def test_installed_by_pip(pool: PoolDirectory, tmp_path: Path) -> None:
    """The wheel has the plugin, which finds the packages beside it."""
    pool.create("disk1")
    wheel_options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *wheel_options, str(REPOSITORY)], check=True
    )
    (wheel,) = tmp_path.glob("bockd-*.whl")
    installed = tmp_path / "lib" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    # What bockd depends on is where this environment has it, without the checkout.
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for found in Path(lmdb.__path__[0]).parent.iterdir():
        if found.suffix != ".pth":
            (dependencies / found.name).symlink_to(found)
    (installed / "dependencies.pth").write_text(f"{dependencies}\n")
    result = run_nbdkit(
        pool.parameter,
        "volume=disk1",
        "--run",
        'nbdinfo --size "$uri"',
        plugin=installed / "nbd_plugin" / "bock.py",
    )
    assert (result.status, result.out) == (0, f"{8 * MIB}\n"), result


def test_a_plugin_that_finds_no_bockd_says_so(tmp_path: Path) -> None:
    alone = tmp_path / "nbd_plugin" / "bock.py"
    alone.parent.mkdir()
    shutil.copy(PLUGIN, alone)
    result = run_nbdkit("pool=/", "--run", "true", plugin=alone)
    assert result.status == 1
    assert "found no bockd for it in" in result.err
    assert "pip install" in result.err
    assert "Traceback" not in result.err


def test_the_command_prints_the_path_of_the_plugin(pool: PoolDirectory) -> None:
    assert pool.daemon.tool("bockd", "nbdkit-plugin") == f"{PLUGIN}\n"
    version = run_nbdkit("--dump-plugin").out
    assert "bockd_version=" in version
    assert "thread_model=parallel" in version
    assert program("nbdkit")
