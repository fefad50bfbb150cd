"""Two daemons that serve a pool in a Ceph cluster, with `[write_back]`: docs/ceph.md.

Where a test needs data that is dirty, the daemon dies when it writes it back: a failpoint.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.config.rbd import RbdSettings
from bockd.drivers.writeback.records import Kind, parse
from bockd.drivers.writeback.segment import FIRST_RECORD, SEGMENT_BYTES
from bockd.failpoints import Failpoint
from tests.daemon.metrics.scraping import Scrape
from tests.daemon.moving import MovingClient
from tests.daemon.process import Bockd, program, serving
from tests.dashboard.visitor import link_of, secret_of, visiting
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.pooldriver import RbdDriver
from tests.drivers.rbd.running import configuration

BLOCK = 4096
PATIENCE_SECONDS = 60.0
SERVER = "web1"


class Gateway(Bockd):
    """A daemon, and the directory of its logs."""

    logs: Path

    def cache(self, volume: str = "disk") -> dict[str, Any]:
        found: dict[str, Any] = self.bock("volume", "show", volume)["cache"]
        return found

    def wait_until(self, holds: Callable[[dict[str, Any]], bool], volume: str = "disk") -> None:
        """Look at a volume's cache until something holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self.storage() as storage:
            found = storage.find_volume(volume).id
            while not holds(cache := _as_dict(storage.show_volume(found).cache)):
                assert time.monotonic() < deadline, cache

    def wait_until_clean(self) -> None:
        self.wait_until(lambda cache: cache["dirty_at"] is None)

    def wait_for_death(self) -> None:
        """A failpoint kills it."""
        assert self._process is not None
        self._process.wait(PATIENCE_SECONDS)
        self._forget()

    def log_directories(self) -> list[Path]:
        return [one for one in self.logs.iterdir() if one.is_dir()]


def _as_dict(cache: Any) -> dict[str, Any]:
    return {name: getattr(cache, name) for name in ("mode", "dirty_at", "dirty_bytes")}


Make = Callable[[str], Gateway]


@pytest.fixture
def gateway(rbd_namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes a gateway of one pool, by its name; it is not started."""
    made: list[Gateway] = []

    def make(name: str) -> Gateway:
        directory = tmp_path_factory.mktemp(name)
        config = directory / "bockd.toml"
        text = configuration(replace(rbd_namespace, gateway=name), directory / "data")
        config.write_text(
            f'{text}\n[write_back]\ndirectory = "{directory / "logs"}"\nsize_gib = 1\n'
            'tenants = ["demo"]\n'
            f'[cache]\ndirectory = "{directory / "cache"}"\nsize_gib = 1\n'
        )
        one = Gateway(
            directory / "data",
            directory / "log",
            nbd_listen="127.0.0.1:0",
            api_listen="127.0.0.1:0",
            config=config,
        )
        one.logs = directory / "logs"
        one.expect_in_log("whether it has an active manager")
        one.expect_in_log("gateway gw[12] does not answer; what it has begun is resolved here")
        if made:
            one.data_dir.mkdir(mode=0o700, exist_ok=True)
            given = (made[0].data_dir / "credentials.json").read_text()
            (one.data_dir / "credentials.json").write_text(given)
        made.append(one)
        return one

    yield make
    for one in made:
        one.end()


def reconfigure(one: Gateway, old: str, new: str) -> None:
    """Change a value in the configuration of a gateway that does not run."""
    config = one.data_dir.parent / "bockd.toml"
    text = config.read_text()
    assert text.count(f' = "{old}"') == 1, text
    config.write_text(text.replace(f' = "{old}"', f' = "{new}"'))


@pytest.fixture
def first(gateway: Make) -> Gateway:
    """`gw1`, with a volume `disk` that is written back."""
    one = gateway("gw1")
    one.start()
    one.bock("volume", "create", "disk", "--size", "8MiB")
    one.bock("volume", "set-cache", "disk", "--write-back")
    return one


@pytest.fixture
def second(first: Gateway, gateway: Make) -> Gateway:
    """`gw2`."""
    one = gateway("gw2")
    one.start()
    return one


def block(number: int) -> bytes:
    return number.to_bytes(4, "big") * (BLOCK // 4)


def read(daemon: Bockd, first_block: int, count: int, export: str = "disk") -> list[int]:
    """What the blocks have, each in full."""
    with daemon.connected(export) as client:
        data = bytes(client.pread(count * BLOCK, first_block * BLOCK))
    pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    assert all(piece == piece[:4] * (BLOCK // 4) for piece in pieces)
    return [int.from_bytes(piece[:4], "big") for piece in pieces]


def write_until_death(daemon: Gateway, first_block: int = 0) -> list[int]:
    """Write blocks, each with its number, flushing now and then, until the daemon dies. Return
    those that were answered."""
    answered = list[int]()
    client = daemon.connect("disk")
    with suppress(nbd.Error):
        for number in range(first_block, first_block + 1000):
            client.pwrite(block(number + 1), number * BLOCK)
            answered.append(number)
            if number % 5 == 4:
                client.flush()
    daemon.wait_for_death()
    return answered


def die_dirty(daemon: Gateway) -> list[int]:
    """Have the daemon die with writes that are in its log only."""
    daemon.stop()
    daemon.dies_at(Failpoint.WRITEBACK_REQUEST)
    daemon.start()
    answered = write_until_death(daemon)
    assert answered
    daemon.dies_at(None)
    return answered


def refused(daemon: Bockd) -> None:
    with pytest.raises(nbd.Error):
        daemon.connect("disk")


def test_what_was_answered_is_there_after_a_kill(first: Gateway, second: Gateway) -> None:
    first.bock("snapshot", "create", "disk", "early")
    answered = die_dirty(first)
    shown = second.cache()
    assert (shown["mode"], shown["dirty_at"], shown["dirty_bytes"]) == ("write-back", "gw1", None)
    # No other gateway opens, changes or deletes it.
    second.expect_in_log("cannot be opened: gateway gw1 has answered writes")
    refused(second)
    for command in (
        ("snapshot", "create", "disk", "s"),
        ("snapshot", "revert", "early", "--yes"),
        ("volume", "delete", "disk", "--yes"),
        ("volume", "extend", "disk", "--size", "16MiB"),
        ("volume", "set-cache", "disk", "--none"),
    ):
        said = second.refusal(*command)
        assert "gateway gw1 has answered writes" in said, said
        assert "discard-cache" in said, said
    # It is written back without a client, and then anybody's.
    first.start()
    second.wait_until_clean()
    numbers = read(second, 0, len(answered))
    assert numbers == [number + 1 for number in answered]
    assert not first.log_directories()
    second.stop()
    first.stop()


def test_a_client_finds_what_was_answered_at_the_gateway_itself(first: Gateway) -> None:
    answered = die_dirty(first)
    first.start()
    assert read(first, 0, len(answered)) == [number + 1 for number in answered]
    first.wait_until_clean()
    first.stop()


def test_a_volume_that_was_left_moves(first: Gateway, second: Gateway) -> None:
    for number in range(1, 5):
        here, there = (first, second) if number % 2 else (second, first)
        with here.connected("disk") as client:
            client.pwrite(block(number), 0)
            assert here.cache()["dirty_at"] in (here_name(here), None)
        here.wait_until_unused("disk")
        assert read(there, 0, 1) == [number]
        there.wait_until_unused("disk")
    first.stop()
    second.stop()


def here_name(daemon: Gateway) -> str:
    name: str = daemon.bock("info")["cluster"]["gateway"]
    return name


def on_the_dashboard(daemon: Gateway) -> dict[str, Any]:
    """Return what the dashboard has of the volume's cache."""
    url = link_of(daemon)
    with visiting(url) as operator:
        operator.enter(secret_of(url))
        (volume,) = operator.data("overview?fresh=true")["volumes"]
    cache: dict[str, Any] = volume["cache"]
    return cache


def test_shown_while_it_is_dirty(first: Gateway, second: Gateway) -> None:
    with first.connected("disk") as client:
        client.pwrite(block(1), 0)
        client.flush()
        first.wait_until(lambda cache: cache["dirty_at"] in ("gw1", None))
        shown = on_the_dashboard(first)
        assert (shown["mode"], shown["dirty_at"], shown["trouble"]) == ("write-back", "gw1", None)
        scrape = Scrape.fresh(first)
        assert scrape.value("bockd_write_back_used_bytes") == SEGMENT_BYTES
        assert scrape.value("bockd_write_back_troubled_volumes") == 0
        # Clients there keep it.
        second.expect_in_log("cannot be opened: gateway gw1 has volume")
        refused(second)
        said = second.refusal("snapshot", "create", "disk", "s")
        assert "gateway gw1 has volume" in said, said
        assert "written back" in said, said
    first.stop()
    second.stop()


def test_a_server_that_comes_to_the_other_gateway_takes_it(first: Gateway, second: Gateway) -> None:
    """No error in a reply, and all that was answered is there."""
    for one in (first, second):
        one.expect_in_log("another gateway has taken|cannot be opened: gateway gw")
    first.bock("attachment", "create", "disk", SERVER)
    uris = first.bock("attachment", "show", "disk")["uris"]
    client = MovingClient(uris)
    with client.writing():
        other = nbd.NBD()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                other.connect_uri(uris[1])
            except nbd.Error:
                assert time.monotonic() < deadline
                other = nbd.NBD()
            else:
                break
        client.wait_for_writes()
        other.shutdown()
    for one in (first, second):
        one.wait_until_unused("disk")
    with first.connected("disk") as reader:
        client.check(reader)
    first.stop()
    second.stop()


def test_a_snapshot_has_all_that_was_answered(first: Gateway) -> None:
    client = first.connect("disk")
    answered, stop, more = [0], threading.Event(), threading.Condition()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            client.pwrite(block(number), (number % 64) * BLOCK)
            if number % 16 == 0:
                client.flush()
            with more:
                answered[0] = number
                more.notify_all()

    writer = threading.Thread(target=write)
    writer.start()
    before = list[int]()
    try:
        for name in ("s1", "s2", "s3"):
            with more:
                goal = answered[0] + 100
                while answered[0] < goal:
                    assert more.wait(PATIENCE_SECONDS)
                before.append(answered[0])
            first.bock("snapshot", "create", "disk", name)
    finally:
        stop.set()
        writer.join()
    client.shutdown()
    for name, number in zip(("s1", "s2", "s3"), before, strict=True):
        with first.connected(f"snapshot/{name}") as snapshot:
            data = bytes(snapshot.pread(64 * BLOCK, 0))
        newest = max(int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), BLOCK))
        assert newest >= number
        for at in range(64):
            found = int.from_bytes(data[at * BLOCK : at * BLOCK + 4], "big")
            assert data[at * BLOCK : (at + 1) * BLOCK] == block(found)
            least = number - (number - at) % 64
            assert least <= found <= answered[0], (name, at)
    first.stop()


def test_a_snapshot_has_what_nobody_has_flushed(first: Gateway) -> None:
    """An idle client: nothing of it is in the cluster yet."""
    with first.connected("disk") as client:
        for number in range(40):
            client.pwrite(block(number + 1), number * BLOCK)
        first.bock("snapshot", "create", "disk", "s")
        client.pwrite(block(99), 0)
        assert read(first, 0, 40, "snapshot/s") == [number + 1 for number in range(40)]
    first.bock("volume", "create", "clone", "--from-snapshot", "s")
    assert read(first, 0, 40, "clone") == [number + 1 for number in range(40)]
    first.stop()


def test_what_is_done_to_a_dirty_volume_minds_what_is_dirty(first: Gateway, tmp_path: Path) -> None:
    with first.connected("disk") as client:
        client.pwrite(block(1), 0)
        first.bock("snapshot", "create", "disk", "s")
        client.pwrite(block(2), 0)
        client.pwrite(block(3), BLOCK)
        first.bock("volume", "extend", "disk", "--size", "16MiB")
    assert read(first, 0, 2) == [2, 3]
    with first.connected("disk") as client:
        assert client.get_size() == 16 << 20
        client.pwrite(block(4), (16 << 20) - BLOCK)
    first.bock("volume", "export", "disk", tmp_path / "disk.raw")
    exported = (tmp_path / "disk.raw").read_bytes()
    assert exported[: 2 * BLOCK] == block(2) + block(3)
    assert exported[-BLOCK:] == block(4)
    with first.connected("disk") as client:
        client.pwrite(block(5), 0)
    first.wait_until_unused("disk")
    first.bock("snapshot", "revert", "s", "--yes")
    assert read(first, 0, 2) == [1, 0], "what was dirty is not written over the snapshot's"
    first.wait_until_clean()
    assert not first.log_directories()
    first.stop()


def test_a_dirty_volume_migrates_from_its_gateway_alone(
    first: Gateway, second: Gateway, tmp_path: Path
) -> None:
    with serving(tmp_path / "local") as local:
        answered = die_dirty(first)
        second.expect_in_log("cannot be opened: gateway gw1 has answered writes")
        said = second.refusal("volume", "migrate", "disk", "--to", local.data_dir)
        assert "gateway gw1" in said, said
        assert second.bock("volume", "show", "disk")["status"] == "available"
        first.start()
        first.bock("volume", "migrate", "disk", "--to", local.data_dir, "--delete-source", "--yes")
        assert read(local, 0, len(answered)) == [number + 1 for number in answered]
    assert first.bock("volume", "list") == []
    assert not first.log_directories()
    first.stop()
    second.stop()


def test_an_orderly_stop_writes_back(first: Gateway, second: Gateway) -> None:
    client = first.connect("disk")
    for number in range(64):
        client.pwrite(block(number + 1), number * BLOCK)
    first.stop()
    assert second.cache()["dirty_at"] is None
    assert read(second, 0, 64) == [number + 1 for number in range(64)]
    second.stop()


def lose_the_disk(first: Gateway) -> int:
    """Write block 0 and have it in the cluster; then others, of which only the log has all, and
    lose that. Return how many of those were answered."""
    first.stop()
    first.dies_at(f"{Failpoint.WRITEBACK_REQUEST}:2")
    first.start()
    with first.connected("disk") as client:
        client.pwrite(block(77), 1000 * BLOCK)
        client.flush()
        first.wait_until(lambda cache: not cache["dirty_bytes"])
    answered = write_until_death(first)
    for one in first.log_directories():
        shutil.rmtree(one)
    first.dies_at(None)
    return len(answered)


def test_a_lost_log_is_discarded_at_its_gateway(first: Gateway, second: Gateway) -> None:
    count = lose_the_disk(first)
    first.expect_in_log("which is missing|was discarded|is not written back|cannot be written back")
    first.start()
    refused(first)
    shown = first.bock("volume", "show", "disk")
    assert shown["status"] == "error"
    assert "discard-cache" in shown["error"]
    with first.control() as control:
        (problem,) = control.check().problems
    assert "(disk): what was answered and is not in the cluster" in problem
    assert "missing here" in problem
    scrape = Scrape.fresh(first)
    assert scrape.value("bockd_write_back_troubled_volumes") == 1
    assert scrape.value("bockd_write_back_oldest_seconds") > 0
    second.check()  # the log is not to be there
    assert "gateway gw1, which has answered writes" in second.refusal(
        "volume", "discard-cache", "disk", "--yes"
    )
    shown = first.bock("volume", "discard-cache", "disk", "--yes")
    assert (shown["status"], shown["cache"]["dirty_at"]) == ("available", None)
    assert shown["cache"]["discarded_at"] is not None
    # As after a power cut: what was flushed before is there, of later epochs some of one.
    assert read(first, 1000, 1) == [77]
    blocks = read(first, 0, max(count, 8))
    assert all(found in (0, number + 1) for number, found in enumerate(blocks))
    assert not any(blocks[5:])
    assert "nothing to discard" in first.refusal("volume", "discard-cache", "disk", "--yes")
    first.wait_until_unused("disk")
    assert read(second, 1000, 1) == [77]
    first.stop()
    second.stop()


def test_while_the_disk_of_the_logs_is_not_mounted_nothing_is_lost(first: Gateway) -> None:
    """Nor is it taken for lost."""
    answered = die_dirty(first)
    disk = first.logs.rename(first.logs.with_name("disk"))
    first.expect_in_log("its disk (is )?mounted")
    first.start()
    refused(first)
    assert first.bock("volume", "show", "disk")["status"] == "available"
    assert any("mounted" in one for one in first.bock("info")["waiting"])
    first.stop()
    shutil.rmtree(first.logs)
    disk.rename(first.logs)
    first.start()
    assert read(first, 0, len(answered)) == [number + 1 for number in answered]
    first.stop()


def flushed_parts(log: Path) -> tuple[list[list[int]], list[tuple[Path, int]]]:
    """Return which blocks each part of a log has up to a barrier, and where it begins."""
    parts, begins = list[list[int]](), list[tuple[Path, int]]()
    blocks = list[int]()
    for path in sorted(log.glob("*.seg")):
        content, at = memoryview(path.read_bytes()), FIRST_RECORD
        while (header := parse(content, at)) is not None:
            if not blocks and header.kind is Kind.WRITE:
                begins.append((path, at))
            if header.kind is Kind.WRITE:
                assert header.length == BLOCK
                blocks.append(header.offset // BLOCK)
            elif blocks:
                parts.append(blocks)
                blocks = []
            at += header.size_bytes
    return parts, begins


def test_what_is_before_the_damage_is_written_back(first: Gateway, second: Gateway) -> None:
    """Many requests of one epoch are on their way to the cluster when the daemon dies, and the next
    ones are in its log, of which the last one is damaged."""
    first.stop()
    first.dies_at(f"{Failpoint.WRITEBACK_REQUEST}:700")
    first.start()
    scattered = range(300, 2000, 2)
    with suppress(nbd.Error):
        client = first.connect("disk")
        for number in scattered:
            client.pwrite(block(number + 1), number * BLOCK)
        client.flush()
    write_until_death(first)
    first.dies_at(None)
    (log,) = first.log_directories()
    parts, begins = flushed_parts(log)
    assert len(parts) >= 2, "nothing was flushed while the first epoch was written back"
    path, at = begins[len(parts) - 1]
    with path.open("r+b") as file:
        file.seek(at + 100)
        found = file.read(1)
        file.seek(at + 100)
        file.write(bytes([found[0] ^ 0x55]))

    first.expect_in_log("fails its checksum|is missing or damaged|is damaged: there are others")
    first.expect_in_log("was discarded|was given up|is not written back")
    first.expect_in_log("cannot be (written back|opened)")
    first.start()
    refused(first)
    assert first.bock("volume", "show", "disk")["status"] == "error"
    shown = first.bock("volume", "discard-cache", "disk", "--yes")
    cache = shown["cache"]
    assert (shown["status"], cache["dirty_at"]) == ("available", None)
    assert cache["salvaged_bytes"] > len(scattered) * BLOCK // 2
    assert cache["given_up_bytes"] > BLOCK
    (aside,) = first.log_directories()
    assert aside.name.endswith(".discarded")
    written = {number for part in parts[:-1] for number in part}
    assert written >= set(scattered)
    for daemon in (first, second):
        numbers = read(daemon, 0, 2048)
        assert numbers == [number + 1 if number in written else 0 for number in range(2048)]
        daemon.wait_until_unused("disk")
    told = first.run(program("bock"), "volume", "show", "disk")
    assert "the last attempt wrote back" in told.out
    assert "nothing to discard" in first.refusal("volume", "discard-cache", "disk", "--yes")
    first.stop()
    second.stop()


def test_a_lost_gateway_is_discarded_at_another_one(first: Gateway, second: Gateway) -> None:
    count = lose_the_disk(first)
    second.expect_in_log("was discarded")
    shown = second.bock("volume", "discard-cache", "disk", "--yes")
    assert shown["cache"]["dirty_at"] is None
    assert read(second, 1000, 1) == [77]
    assert not any(read(second, 5, max(count, 8)))
    with second.connected("disk") as client:
        client.pwrite(block(78), 1000 * BLOCK)
    second.wait_until_unused("disk")
    first.start()
    assert read(first, 1000, 1) == [78]
    first.stop()
    second.stop()


def test_the_log_of_what_was_discarded_elsewhere_is_put_aside(
    first: Gateway, second: Gateway
) -> None:
    answered = die_dirty(first)
    second.expect_in_log("was discarded")
    second.bock("volume", "discard-cache", "disk", "--yes")
    with second.connected("disk") as client:
        client.pwrite(bytes(len(answered) * BLOCK), 0)
    second.wait_until_unused("disk")
    first.expect_in_log("was given up")
    first.start()
    assert not any(read(first, 0, len(answered)))
    (aside,) = first.log_directories()
    assert aside.name.endswith(".discarded")
    assert any(f"kept in {aside} until" in one for one in first.bock("info")["waiting"])
    first.stop()
    second.stop()


def test_what_is_discarded_while_its_gateway_hangs_leaves_no_log(
    first: Gateway, second: Gateway
) -> None:
    second.expect_in_log("was discarded")
    first.expect_in_log(
        "has taken volume|is void|was given up|closing volume|taken by another one|bus is watched"
    )
    first.expect_in_log("the cluster has not answered for some time|the cluster answers")
    client = first.connect("disk")
    client.pwrite(block(1), 0)
    os.kill(first.pid, signal.SIGSTOP)
    (log,) = first.log_directories()
    assert second.cache()["dirty_at"] == "gw1"
    second.bock("volume", "discard-cache", "disk", "--yes")
    os.kill(first.pid, signal.SIGCONT)
    first.wait_until(lambda _cache: not log.exists())
    with pytest.raises(nbd.Error):
        client.pread(BLOCK, 0)
    assert not any(read(first, 0, 1))
    first.stop()
    second.stop()


def test_a_dirty_volume_is_deleted_at_its_gateway(first: Gateway) -> None:
    die_dirty(first)
    # It may be on its way to the cluster just now.
    first.expect_in_log("volume is closed|is not written back")
    first.start()
    first.bock("volume", "delete", "disk", "--yes")
    assert first.bock("volume", "list") == []
    first.stop()
    assert not first.log_directories()


def test_what_was_deleted_while_it_was_dirty_comes_back_with_all_that_was_answered(
    first: Gateway, second: Gateway
) -> None:
    for one in (first, second):
        one.stop()
        config = one.data_dir.parent / "bockd.toml"
        config.write_text(config.read_text() + "[trash]\nkeep_hours = 1\n")
        one.start()
    answered = die_dirty(first)
    second.expect_in_log("cannot be opened: gateway gw1 has answered writes")
    assert "gateway gw1 has answered writes" in second.refusal("volume", "delete", "disk", "--yes")
    assert second.bock("trash", "list") == []
    first.expect_in_log("volume is closed|is not written back")
    first.start()
    first.bock("volume", "delete", "disk", "--yes")
    first.stop()
    assert not first.log_directories()
    second.bock("trash", "restore", "disk")
    assert read(second, 0, len(answered)) == [number + 1 for number in answered]
    second.stop()


# -- whose logs they are -------------------------------------------------------------------------


def test_a_gateway_with_another_name_keeps_what_is_dirty(first: Gateway) -> None:
    answered = die_dirty(first)
    kept = first.log_directories()
    assert kept
    reconfigure(first, "gw1", "other")
    first.expect_in_log("is dirty at gateway gw1, and its log is here")
    first.expect_in_log("cannot be opened: gateway gw1 has answered writes")
    first.start()
    assert any('set rbd.gateway = "gw1" again' in one for one in first.bock("info")["waiting"])
    refused(first)
    first.stop()
    assert first.log_directories() == kept
    reconfigure(first, "other", "gw1")
    first.start()
    assert read(first, 0, len(answered)) == [number + 1 for number in answered]
    first.wait_until_clean()
    first.stop()


def test_the_logs_of_another_pool_are_refused_and_stay(
    first: Gateway, ceph: Cluster, tmp_path: Path
) -> None:
    answered = die_dirty(first)
    kept = first.log_directories()
    other = ceph.namespace()
    RbdDriver(other, tmp_path).close()  # makes the pool
    config = first.data_dir.parent / "bockd.toml"
    text = config.read_text()
    logs = text[text.index("[write_back]") :]
    config.write_text(configuration(replace(other, gateway="gw1"), first.data_dir) + logs)
    said = first.refusal_to_start()
    assert "are of another pool" in said, said
    assert f"serves namespace '{other.namespace}'" in said, said
    assert "write_back.directory" in said, said
    assert first.log_directories() == kept
    config.write_text(text)
    first.start()
    assert read(first, 0, len(answered)) == [number + 1 for number in answered]
    first.wait_until_clean()
    first.stop()
