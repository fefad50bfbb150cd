"""One pool, several processes: daemon, plugin, second plugin and `check`, in every pairing and in
both orders (promise D6). What one has open the others refuse, with a message that says what to do;
all else they share."""

from __future__ import annotations

import random
from collections.abc import Iterator

import nbd
import pytest

from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.locks import FileLock
from bockd.drivers.local.maintenance.merging import MAX_DEAD_LAYERS

from ..daemon.process import Bockd, program
from .conftest import MIB, PoolDirectory
from .nbdkit import Nbdkit, refusal

BLOCK = 4096
KNOWN = b"kept" * 1024
ELSEWHERE = "is open in another process: use that one's export, or let it close the volume"


@pytest.fixture
def daemon(pool: PoolDirectory) -> Iterator[Bockd]:
    """The pool's daemon, running, with two volumes."""
    running = pool.daemon.start()
    for name in ("disk1", "disk2"):
        running.bock("volume", "create", name, "--size", "8M")
    yield running
    if running.running:
        running.check()
        running.stop()


def refused_by(daemon: Bockd, export: str) -> str:
    """What the daemon tells an NBD client that asks for the export. QEMU repeats it."""
    daemon.expect_in_log("cannot be opened: .* in another process")
    result = daemon.run("qemu-img", "info", daemon.uri(export))
    assert result.status == 1
    return result.err


def test_a_volume_of_the_daemons_is_refused_by_the_plugin(
    pool: PoolDirectory, daemon: Bockd
) -> None:
    """The plugin is refused that volume, at its start and on request, and serves another one."""
    with daemon.connected("disk1") as first:
        first.pwrite(KNOWN, 0)
        said = refusal(pool.parameter, "volume=disk1")
        assert f"volume 1 {ELSEWHERE}" in said
        assert f"(process {daemon.pid})" in said
        with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
            assert f"volume 1 {ELSEWHERE}" in nbdkit.connection_refused("disk1")
            with nbdkit.connected("disk2") as second:
                second.pwrite(KNOWN[::-1], 0)
        first.pwrite(KNOWN, 4096)
    with daemon.connected("disk1") as first, daemon.connected("disk2") as second:
        assert first.pread(8192, 0) == KNOWN * 2
        assert second.pread(4096, 0) == KNOWN[::-1]


def test_what_the_daemon_keeps_open_for_nobody_is_handed_over_at_once(
    pool: PoolDirectory, daemon: Bockd
) -> None:
    """The daemon keeps a volume open for some seconds after its last client, unless it is asked."""
    with daemon.connected("disk1") as first:
        first.pwrite(KNOWN, 0)
    with (
        Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit,
        nbdkit.connected() as second,
    ):
        assert second.pread(4096, 0) == KNOWN
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        with daemon.connected("disk1") as third:
            third.pwrite(KNOWN, 4096)
        with nbdkit.connected("disk1") as fourth:
            assert fourth.pread(8192, 0) == KNOWN * 2


def test_a_volume_of_the_plugins_is_refused_by_the_daemon(
    pool: PoolDirectory, daemon: Bockd
) -> None:
    """The daemon refuses that volume to clients and to every operation that needs it; it serves the
    rest of the pool. When the plugin has ended, all goes on in the daemon."""
    with (
        Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit,
        nbdkit.connected() as client,
    ):
        client.pwrite(KNOWN, 0)
        assert f"volume 1 {ELSEWHERE}" in refused_by(daemon, "disk1")
        for command in (
            ("snapshot", "create", "disk1", "s"),
            ("volume", "delete", "disk1"),
            ("volume", "extend", "disk1", "--size", "16M"),
        ):
            said = daemon.refusal(*command)
            assert ELSEWHERE in said, command
            assert f"(process {nbdkit.process.pid})" in said
        with daemon.connected("disk2") as other:
            other.pwrite(KNOWN, 0)
        daemon.bock("snapshot", "create", "disk2", "s2")
        assert [v["name"] for v in daemon.bock("volume", "list")] == ["disk1", "disk2"]
        daemon.check()
        client.pwrite(KNOWN, 4096)
    with daemon.connected("disk1") as client:
        assert client.pread(8192, 0) == KNOWN * 2
    daemon.bock("snapshot", "create", "disk1", "s")


def test_reverting_what_the_plugin_has(pool: PoolDirectory, daemon: Bockd) -> None:
    daemon.bock("snapshot", "create", "disk1", "s")
    with (
        Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit,
        nbdkit.connected() as client,
    ):
        client.pwrite(KNOWN, 0)
        assert ELSEWHERE in daemon.refusal("snapshot", "revert", "s")
        assert client.pread(4096, 0) == KNOWN
    daemon.bock("snapshot", "revert", "s")
    with daemon.connected("disk1") as client:
        assert client.pread(4096, 0) == bytes(4096)


def test_the_daemon_starts_and_stops_beside_the_plugin(pool: PoolDirectory) -> None:
    """A volume that the plugin has open was not interrupted: it is left alone, and so is a journal
    segment that is just being made."""
    pool.create("disk1")
    pool.create("disk2")
    layout = Layout(pool.path)
    with (
        Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit,
        nbdkit.connected() as client,
    ):
        client.pwrite(KNOWN, 0)
        (segment,) = layout.journal_segments()
        layout.unfinished_segment(segment).write_bytes(b"being made")
        pool.daemon.start()
        assert f"volume 1 {ELSEWHERE}" in pool.daemon.log.read_text()
        assert layout.journal_segments() == [segment]
        assert layout.unfinished_segments() == [segment]
        client.pwrite(KNOWN, 4096)
        pool.daemon.check()
        pool.daemon.restart()
        client.pwrite(KNOWN, 8192)
        pool.daemon.kill()
        client.pwrite(KNOWN, 12288)
        pool.daemon.start()
    with pool.daemon.connected("disk1") as client:
        assert client.pread(16384, 0) == KNOWN * 4
    pool.daemon.restart()
    assert layout.unfinished_segments() == []
    pool.daemon.stop()


def test_two_plugins_share_snapshots_and_no_volume(pool: PoolDirectory) -> None:
    """One volume: the second is refused. Two volumes, or one snapshot: both serve."""
    pool.create("disk1")
    pool.create("disk2")
    snapshot = pool.snapshot("disk1", "s")
    work = pool.path.parent
    with Nbdkit(work, pool.parameter, "volume=disk1") as one, one.connected() as first:
        first.pwrite(KNOWN, 0)
        said = refusal(pool.parameter, "volume=disk1")
        assert ELSEWHERE in said
        assert f"(process {one.process.pid})" in said
        with (
            Nbdkit(work, pool.parameter, "volume=disk2", name="two") as two,
            two.connected() as second,
        ):
            second.pwrite(KNOWN, 0)
        with (
            Nbdkit(work, pool.parameter, snapshot, name="three") as three,
            Nbdkit(work, pool.parameter, snapshot, name="four") as four,
        ):
            for nbdkit in (three, four):
                with nbdkit.connected() as reader:
                    assert reader.pread(4096, 0) == bytes(4096)


def test_a_volume_is_free_after_its_last_client(pool: PoolDirectory, daemon: Bockd) -> None:
    """Where all of the pool is served, a volume goes back and forth with its clients."""
    with Nbdkit(pool.path.parent, pool.parameter) as nbdkit:
        for round_number in range(3):
            with nbdkit.connected("disk1") as client:
                client.pwrite(b"%08d" % round_number * 512, round_number * BLOCK)
            daemon.bock("snapshot", "create", "disk1", f"s{round_number}")
    with daemon.connected("disk1") as client:
        for round_number in range(3):
            assert client.pread(BLOCK, round_number * BLOCK) == b"%08d" % round_number * 512


# -- check -----------------------------------------------------------------------------------


def test_check_beside_the_plugin(pool: PoolDirectory) -> None:
    """It looks at what it can and finds nothing wrong; it repairs nothing."""
    pool.create("disk1")
    pool.create("disk2")
    with (
        Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit,
        nbdkit.connected() as client,
    ):
        client.pwrite(KNOWN * 8, 0)
        client.trim(BLOCK, 0)
        assert pool.daemon.check()["volumes"] == 2
        repair = pool.daemon.run(program("bockd"), "check", pool.path, "--repair")
        assert (repair.status, repair.out) == (1, "")
        assert "end it before --repair, or check without it" in repair.err
        client.pwrite(KNOWN, 0)
        assert client.pread(8 * BLOCK, 0) == KNOWN * 8
    repair = pool.daemon.run(program("bockd"), "check", pool.path, "--repair")
    assert repair.status == 0, repair


def test_check_after_a_plugin_died(pool: PoolDirectory) -> None:
    """Its journal is there and whole: nothing to repair, here or in a daemon that runs already."""
    pool.create("disk1")
    pool.create("disk2")
    pool.daemon.start()
    nbdkit = Nbdkit(pool.path.parent, pool.parameter, "volume=disk1")
    nbdkit.connect().pwrite(KNOWN, 0)
    nbdkit.kill()
    pool.daemon.check()
    with pool.daemon.connected("disk1") as client:
        assert client.pread(4096, 0) == KNOWN
    pool.daemon.stop()


def test_the_plugin_beside_check(pool: PoolDirectory) -> None:
    """While `check` has the pool nobody joins. (The test holds its lock; a check ends too soon.)"""
    pool.create("disk1")
    lock = FileLock.acquire(Layout(pool.path).co_openers_lock, shared=False, held_message="")
    said = refusal(pool.parameter, "volume=disk1")
    assert "is being checked: try again when 'bockd check' is done" in said
    lock.release()
    with Nbdkit(pool.path.parent, pool.parameter, "volume=disk1") as nbdkit, nbdkit.connected():
        pass


# -- what the daemon does behind the plugin's back ---------------------------------------------


def test_a_snapshot_that_is_read_is_not_deleted(pool: PoolDirectory, daemon: Bockd) -> None:
    with daemon.connected("disk1") as client:
        client.pwrite(KNOWN, 0)
    daemon.bock("snapshot", "create", "disk1", "s")
    with daemon.connected("disk1") as client:
        client.pwrite(KNOWN[::-1], 0)
    with (
        Nbdkit(pool.path.parent, pool.parameter, "snapshot=s") as nbdkit,
        nbdkit.connected() as reader,
    ):
        assert "is being read by another process" in daemon.refusal("snapshot", "delete", "s")
        assert reader.pread(4096, 0) == KNOWN
    daemon.bock("snapshot", "delete", "s")
    assert "there is no snapshot 's'" in refusal(pool.parameter, "snapshot=s")


def test_reclaim_and_merging_behind_open_volumes(pool: PoolDirectory, daemon: Bockd) -> None:
    """The daemon deletes the snapshots below a volume and a snapshot that plugins have open: maps
    are folded, blocks punched, layers merged and removed. Every block stays what it was, whether
    its leaf was in memory before or is read after; and what is then overwritten is given back."""
    size, layers = 64 * MIB, MAX_DEAD_LAYERS + 3
    daemon.bock("volume", "create", "deep", "--size", str(size))
    choose = random.Random(11)
    content: dict[int, bytes] = {}
    for number in range(layers):
        with daemon.connected("deep") as client:
            for block in choose.sample(range(size // BLOCK), 60):
                content[block] = b"%04d%04d" % (number, block % 9973) * 512
                client.pwrite(content[block], block * BLOCK)
        daemon.bock("snapshot", "create", "deep", f"deep-{number}")
    daemon.restart()  # nothing is open in it
    work, last = pool.path.parent, f"snapshot=deep-{layers - 1}"
    kept = dict(content)
    with (
        Nbdkit(work, pool.parameter, "volume=deep", name="volume") as one,
        Nbdkit(work, pool.parameter, last, name="snapshot") as two,
        one.connected() as client,
        two.connected() as reader,
    ):
        warm = choose.sample(sorted(content), 100)
        for block in warm:
            assert client.pread(BLOCK, block * BLOCK) == content[block]
        before = len(daemon.layer_files())
        for number in range(layers - 1):
            daemon.bock("snapshot", "delete", f"deep-{number}")
            for block in choose.sample(sorted(content), 20):
                assert client.pread(BLOCK, block * BLOCK) == content[block]
                assert reader.pread(BLOCK, block * BLOCK) == kept[block]
            for block in choose.sample(sorted(content), 10):
                content[block] = b"newer %2d" % number * 512
                client.pwrite(content[block], block * BLOCK)
        while daemon.check()["pending_reclaim"]:  # the daemon works in the background
            pass
        assert len(daemon.layer_files()) < before
        for block, data in content.items():
            assert client.pread(BLOCK, block * BLOCK) == data
        for block, data in kept.items():
            assert reader.pread(BLOCK, block * BLOCK) == data
    daemon.bock("snapshot", "delete", f"deep-{layers - 1}")
    daemon.restart()
    while daemon.check()["pending_reclaim"]:
        pass
    with daemon.connected("deep") as client:
        for block, data in content.items():
            assert client.pread(BLOCK, block * BLOCK) == data
    assert sum(daemon.layer_files().values()) == len(content) * BLOCK
    daemon.bock("volume", "delete", "deep")


def test_killed_plugins_leave_the_daemon_alone(pool: PoolDirectory, daemon: Bockd) -> None:
    """Plugins are killed while they open, write to and close a volume, thus also inside the index's
    transactions. The daemon's own go on, and what the plugins answered is there."""
    choose = random.Random(13)
    answered: dict[int, bytes] = {}
    for round_number in range(6):
        nbdkit = Nbdkit(pool.path.parent, pool.parameter)
        for _ in range(choose.randrange(1, 6)):
            with nbdkit.connected("disk1") as client:
                block = choose.randrange(8 * MIB // BLOCK)
                client.pwrite(b"%08d" % round_number * 512, block * BLOCK)
                answered[block] = b"%08d" % round_number * 512
        # Opening needs two commits, closing one: it dies in the middle of something.
        dying = nbd.NBD()
        dying.aio_connect_uri(nbdkit.uri("disk1"))
        daemon.bock("snapshot", "create", "disk2", f"s{round_number}")
        nbdkit.kill()
        daemon.bock("snapshot", "delete", f"s{round_number}")
    with daemon.connected("disk1") as client:
        for block, data in answered.items():
            assert client.pread(BLOCK, block * BLOCK) == data
