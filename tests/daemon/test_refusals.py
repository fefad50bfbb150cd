"""What the daemon refuses, each with a clear error and with nothing changed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest

from bockd.drivers.local.format.catalogue import META, NEWEST_FORMAT
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.pool.index import Transaction

from .process import Bockd, program, serving
from .tree import digest, lasting

MIB = 1 << 20


def holds_what_was_kept(daemon: Bockd) -> None:
    """The daemon serves the volume of the fixture `stopped`."""
    with daemon.connected("kept") as client:
        assert client.pread(4096, 0) == b"kept" * 1024


def connection_refused(daemon: Bockd, export: str) -> str:
    """What the server tells a client that asks for the export. QEMU repeats it, libnbd does not."""
    with pytest.raises(nbd.Error):
        daemon.connect(export)
    result = daemon.run("qemu-img", "info", daemon.uri(export))
    assert result.status == 1
    return result.err


# -- a pool that cannot be opened ------------------------------------------------------------


def test_a_second_daemon_on_one_pool(daemon: Bockd) -> None:
    """The second says which pool and who has it; the first goes on serving, its sockets its own."""
    daemon.bock("volume", "create", "kept", "--size", "1M")
    with daemon.connected("kept") as client:
        client.pwrite(b"kept" * 1024, 0)
        error = daemon.refusal_to_start()
        assert f"the pool {daemon.data_dir} is in use by another bockd" in error
        assert f"process {daemon.pid}" in error
        assert "stop that one first, or serve another directory (BOCKD_DATA)" in error
        assert client.pread(4096, 0) == b"kept" * 1024
    holds_what_was_kept(daemon)
    daemon.check()


def replace_pool_record(pool: Path, payload: bytes | None) -> bytes:
    """Give the pool another record, by default one of the next format; returns the former."""
    index = LmdbIndex.open(pool / "index", Ballast(pool / "ballast").release)

    def change(txn: Transaction) -> bytes:
        former = txn.get(META, b"pool")
        assert former is not None
        newer = {**json.loads(former), "format": NEWEST_FORMAT + 1}
        txn.put(META, b"pool", payload or json.dumps(newer).encode())
        return former

    former = index.update(change)
    index.close()
    return former


def test_a_pool_of_a_newer_format(stopped: Bockd) -> None:
    """Refused by the daemon and by `check`, and not a byte of it is written; the version that can
    read it still finds everything."""
    pool = stopped.data_dir
    record = replace_pool_record(pool, None)
    before = lasting(digest(pool))

    error = stopped.refusal_to_start()
    assert f"format {NEWEST_FORMAT + 1}" in error
    assert f"reads format {NEWEST_FORMAT} and older" in error
    checked = stopped.run(program("bockd"), "check", "--repair")
    assert checked.status == 1
    assert f"format {NEWEST_FORMAT + 1}" in checked.err
    assert lasting(digest(pool)) == before

    replace_pool_record(pool, record)
    stopped.start()
    holds_what_was_kept(stopped)


def test_a_truncated_index(stopped: Bockd) -> None:
    """Refused before it is mapped (a page beyond the end would kill the daemon), and not touched:
    put back in full, it serves."""
    data = stopped.data_dir / "index" / "data.mdb"
    whole = data.read_bytes()
    os.truncate(data, 16 * 4096)
    before = lasting(digest(stopped.data_dir))
    error = stopped.refusal_to_start()
    assert f"{data} is truncated: it has {16 * 4096} bytes" in error
    assert stopped.run(program("bockd"), "check").status == 1
    assert lasting(digest(stopped.data_dir)) == before

    data.write_bytes(whole)
    stopped.start()
    holds_what_was_kept(stopped)
    stopped.check()


def test_an_index_that_is_not_one(stopped: Bockd) -> None:
    data = stopped.data_dir / "index" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(b"something else entirely" * 1000)
    before = lasting(digest(stopped.data_dir))
    assert "is not an LMDB file" in stopped.refusal_to_start()
    assert lasting(digest(stopped.data_dir)) == before
    data.write_bytes(whole)
    stopped.start()
    holds_what_was_kept(stopped)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """The directory cannot be written, not even by root (whom permission bits do not bind)."""
    mounts = (
        ("mount", "--bind", directory, directory),
        ("mount", "-o", "remount,bind,ro", directory),
    )
    for command in mounts:
        subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_directory_that_cannot_be_written(stopped: Bockd) -> None:
    """An existing pool on a read-only file system: refused, nothing changed; writable again, it
    serves."""
    before = digest(stopped.data_dir)
    with read_only(stopped.data_dir):
        error = stopped.refusal_to_start()
        assert "read-only file system" in error
        assert str(stopped.data_dir) in error
    assert digest(stopped.data_dir) == before
    stopped.start()
    holds_what_was_kept(stopped)


def test_a_new_pool_where_none_can_be_made(tmp_path: Path) -> None:
    """Below a read-only directory, and where there is a file."""
    (tmp_path / "outer").mkdir()
    with read_only(tmp_path / "outer"):
        daemon = Bockd(tmp_path / "outer" / "pool", tmp_path / "log")
        assert "read-only file system" in daemon.refusal_to_start()
    assert digest(tmp_path / "outer") == {}
    (tmp_path / "file").write_text("mine")
    daemon = Bockd(tmp_path / "file", tmp_path / "log")
    assert str(tmp_path / "file") in daemon.refusal_to_start()
    assert (tmp_path / "file").read_text() == "mine"


# -- a volume that cannot be opened ----------------------------------------------------------


def test_a_volume_open_in_another_process(daemon: Bockd) -> None:
    """Promise D6: with its lock held elsewhere a volume is refused, to readers of its export and
    to every change, and nothing is changed; the others are served, and it is when the lock goes."""
    daemon.expect_in_log("open in another process")
    taken = daemon.bock("volume", "create", "taken", "--size", "1M")["id"]
    daemon.bock("volume", "create", "kept", "--size", "1M")
    with daemon.connected("kept") as client:
        client.pwrite(b"kept" * 1024, 0)
    lock = daemon.data_dir / "locks" / f"volume-{taken}"
    holder = f"""
import fcntl, sys
file = open({str(lock)!r}, "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert f"volume {taken} is open in another process" in connection_refused(daemon, "taken")
        for command in (
            ("volume", "delete", "taken", "--yes"),
            ("volume", "extend", "taken", "--size", "2M"),
            ("snapshot", "create", "taken", "taken-1"),
        ):
            assert "open in another process" in daemon.refusal(*command)
        holds_what_was_kept(daemon)
        process.stdin.close()
        process.wait()
    assert daemon.bock("snapshot", "list") == []
    with daemon.connected("taken") as client:
        assert client.get_size() == 1 * MIB
        client.pwrite(b"now", 0)
    daemon.check()


def test_the_daemon_keeps_other_processes_out(daemon: Bockd) -> None:
    """While a client is connected the volume's lock is the daemon's; once it is idle and closed,
    or the daemon has ended, it is free."""
    volume = daemon.bock("volume", "create", "mine", "--size", "1M")["id"]
    path = daemon.data_dir / "locks" / f"volume-{volume}"
    with daemon.connected("mine"), path.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    daemon.stop()
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("harm", "unclean"), [("missing", False), ("truncated", True)], ids=["stopped", "killed"]
)
def test_a_damaged_layer(daemon: Bockd, harm: str, unclean: bool) -> None:
    """A layer file that is missing or too short: the volume, its snapshot and a clone that need it
    are refused, the file named; other volumes are served; `check` tells; and with the file put back
    all is well. So it is after a clean stop, and when the volume's journal awaits recovery."""
    daemon.expect_in_log(
        "(cannot be opened|cannot be read|failed with EIO): layer file .* is (missing|truncated)"
    )
    before = set(daemon.layer_files())
    daemon.bock("volume", "create", "hurt", "--size", "1M")
    (name,) = set(daemon.layer_files()) - before
    layer = daemon.data_dir / "layers" / name
    with daemon.connected("hurt") as client:
        client.pwrite(b"hurt" * 1024, MIB - 4096)
    daemon.bock("snapshot", "create", "hurt", "hurt-1")
    daemon.bock("volume", "create", "hurt-clone", "--from-snapshot", "hurt-1")
    daemon.bock("volume", "create", "kept", "--size", "1M")
    clients = [daemon.connect(name) for name in ("kept", "hurt")]
    clients[0].pwrite(b"kept" * 1024, 0)
    clients[1].pwrite(b"more" * 1024, 0)
    if unclean:
        daemon.kill()
    else:
        for client in clients:
            client.shutdown()
        daemon.stop()

    aside = daemon.data_dir.with_name("aside")
    whole = layer.read_bytes()
    aside.write_bytes(whole)
    if harm == "missing":
        layer.unlink()
    else:
        os.truncate(layer, MIB - 4096)
    daemon.start()
    for export in ("hurt", "hurt-clone", "snapshot/hurt-1"):
        assert f"layer file {layer} is {harm}" in connection_refused(daemon, export)
    holds_what_was_kept(daemon)
    assert {v["name"] for v in daemon.bock("volume", "list")} == {"hurt", "hurt-clone", "kept"}
    found = daemon.run(program("bockd"), "check")
    assert found.status == 1
    assert f"layer file {layer} is {harm}" in found.out

    layer.write_bytes(whole)
    daemon.wait_until_unused("kept")
    with daemon.connected("hurt") as client:
        assert client.pread(4096, MIB - 4096) == b"hurt" * 1024
        assert client.pread(4096, 0) == b"more" * 1024
    for export in ("hurt-clone", "snapshot/hurt-1"):
        with daemon.connected(export) as client:
            assert client.pread(4096, MIB - 4096) == b"hurt" * 1024
            assert client.pread(4096, 0) == bytes(4096)
    daemon.check()


def test_a_missing_journal(daemon: Bockd) -> None:
    """A volume that was in use when the daemon died is refused without its journal, and says which
    file it wants; the others are served; `check --repair` accepts the loss."""
    daemon.bock("volume", "create", "lost", "--size", "1M")
    daemon.bock("volume", "create", "kept", "--size", "1M")
    clients = [daemon.connect(name) for name in ("kept", "lost")]
    clients[0].pwrite(b"kept" * 1024, 0)
    clients[1].pwrite(b"lost" * 1024, 0)
    daemon.kill()
    for journal in (daemon.data_dir / "journal").glob("1.*"):
        journal.unlink()
    daemon.expect_in_log(r"volume 1 cannot be opened: .*journal/1\..* is missing")
    daemon.start()
    told = connection_refused(daemon, "lost")
    assert "volume 1 (lost) was in use when the daemon stopped, but its journal" in told
    holds_what_was_kept(daemon)
    daemon.stop()
    found = daemon.run(program("bockd"), "check")
    assert found.status == 1
    assert "incomplete or missing" in found.out
    assert daemon.run(program("bockd"), "check", "--repair").status == 0
    daemon.start()
    with daemon.connected("lost") as client:
        assert client.pread(4096, 0) in (bytes(4096), b"lost" * 1024)
    holds_what_was_kept(daemon)
    daemon.check()


# -- requests that make no sense -------------------------------------------------------------


def test_names_and_sizes_out_of_range(daemon: Bockd) -> None:
    """Refused with what would do; nothing is made."""
    before = lasting(digest(daemon.data_dir / "layers"))
    too_long = "n" * 256
    with daemon.storage() as storage:
        for name in ("", too_long, "é" * 128, "123", " x", "x ", "a\nb", "\x00", "\ud800"):
            with pytest.raises(Exception, match=r"name|Unicode|surrogates|volume"):
                storage.create_volume(name, MIB)
        for size in (-1, 0, MIB - 4096, MIB + 1, MIB + 512, (16 << 40) + 4096, 1 << 63, 1 << 70):
            with pytest.raises(Exception, match=r"size|range|valid"):
                storage.create_volume("sized", size)
        assert storage.list_volumes() == []
    assert "1 MiB and 16 TiB" in daemon.misuse("volume", "create", "v", "--size", "512K")
    assert "1 MiB and 16 TiB" in daemon.misuse("volume", "create", "v", "--size", "17T")
    assert "255" in daemon.misuse("volume", "create", too_long, "--size", "1M")
    assert digest(daemon.data_dir / "layers") == before
    longest = "é" * 127 + "n"
    daemon.bock("volume", "create", longest, "--size", "1M")
    with daemon.connected(longest) as client:
        assert client.get_size() == MIB
    assert "exists already" in daemon.refusal("volume", "create", longest, "--size", "1M")
    daemon.check()


def test_deleting_and_reverting_what_is_in_use(daemon: Bockd) -> None:
    """Refused while a client is connected, who does not notice; done when it has gone."""
    daemon.bock("volume", "create", "used", "--size", "1M")
    daemon.bock("snapshot", "create", "used", "used-1")
    with daemon.connected("used") as client, daemon.connected("snapshot/used-1") as reader:
        client.pwrite(b"used" * 1024, 0)
        for command in (
            ("volume", "delete", "used", "--yes"),
            ("snapshot", "revert", "used-1", "--yes"),
            ("snapshot", "delete", "used-1", "--yes"),
        ):
            error = daemon.refusal(*command)
            assert "end them first" in error
        client.pwrite(b"more" * 1024, 4096)
        assert client.pread(8192, 0) == b"used" * 1024 + b"more" * 1024
        assert reader.pread(8192, 0) == bytes(8192)
    daemon.wait_until_unused("used")
    with daemon.storage() as storage:
        while storage.find_snapshot("used-1").connections:
            pass
    daemon.bock("snapshot", "delete", "used-1", "--yes")
    daemon.bock("volume", "delete", "used", "--yes")
    assert daemon.bock("volume", "list") == []
    daemon.check()


def test_tcp_serves_nothing_and_lists_nothing(pool: Path) -> None:
    """Without an attachment there is no export over TCP, by any name; the Unix socket has them."""
    with serving(pool, nbd_listen="127.0.0.1:0") as daemon:
        daemon.bock("volume", "create", "kept", "--size", "1M")
        daemon.bock("snapshot", "create", "kept", "kept-1")
        names = ["", "kept", "1", "2", "snapshot/kept-1", "snapshot/2", "../kept", "KEPT"]
        for name in names:
            handle = nbd.NBD()
            handle.set_export_name(name)
            with pytest.raises(nbd.Error):
                handle.connect_tcp("127.0.0.1", str(daemon.nbd_port))
        assert listed(daemon, tcp=True) == []
        assert listed(daemon, tcp=False) == ["kept", "snapshot/kept-1"]


def listed(daemon: Bockd, *, tcp: bool) -> list[str]:
    """The names that NBD_OPT_LIST answers."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    if tcp:
        handle.connect_tcp("127.0.0.1", str(daemon.nbd_port))
    else:
        handle.connect_unix(str(daemon.nbd_socket))
    found: list[str] = []
    handle.opt_list(lambda name, _description: found.append(name))
    handle.opt_abort()
    return found
