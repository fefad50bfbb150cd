"""libnbd's own interface: what several connections see of each other, and of snapshots."""

from __future__ import annotations

import random
import threading
from typing import Any

import nbd
import pytest

from ..daemon.process import Bockd

KIB = 1024
MIB = 1024 * KIB
TIB = 1 << 40
BLOCK = 4 * KIB


def refused(action: Any, *arguments: Any) -> str | None:
    """The name of the error (errno) that the server answers."""
    with pytest.raises(nbd.Error) as caught:
        action(*arguments)
    return str(caught.value.errno)


def test_a_write_is_seen_on_every_connection(daemon: Bockd) -> None:
    """CAN_MULTI_CONN: after a flush on one connection, and after a mere write too, every other
    connection reads what was written: into new blocks, into blocks under a snapshot, into parts of
    blocks, trimmed and zeroed."""
    daemon.bock("volume", "create", "coherent", "--size", "8M")
    choose = random.Random(50)
    print("seed 50")
    clients = [daemon.connect("coherent") for _ in range(4)]
    assert all(client.can_multi_conn() for client in clients)
    expected = bytearray(8 * MIB)
    for step in range(400):
        writer, reader, flusher = choose.choices(clients, k=3)
        offset = choose.randrange(8 * MIB - 20 * KIB)
        length = choose.randint(1, 20 * KIB)
        if step == 200:
            daemon.bock("snapshot", "create", "coherent", "coherent-1")
        if step % 5 == 0:
            writer.zero(length, offset)
            expected[offset : offset + length] = bytes(length)
        else:
            data = choose.randbytes(length)
            writer.pwrite(data, offset)
            expected[offset : offset + length] = data
        if step % 2:
            flusher.flush()
        assert reader.pread(length, offset) == expected[offset : offset + length]
    for client in clients:
        assert client.pread(8 * MIB, 0) == expected
        client.shutdown()


def test_a_snapshot_is_read_only_for_libnbd(daemon: Bockd) -> None:
    """Every changing command is refused with EPERM, and the connection goes on."""
    daemon.bock("volume", "create", "frozen", "--size", "1M")
    with daemon.connected("frozen") as client:
        client.pwrite(b"kept" * KIB, 0)
    daemon.bock("snapshot", "create", "frozen", "frozen-1")
    with daemon.connected("snapshot/frozen-1") as client:
        client.set_strict_mode(0)  # let it send what the export does not offer
        assert client.is_read_only()
        assert refused(client.pwrite, b"x" * BLOCK, 0) == "EPERM"
        assert refused(client.trim, BLOCK, 0) == "EPERM"
        assert refused(client.zero, BLOCK, 0) == "EPERM"
        assert client.pread(BLOCK, 0) == b"kept" * KIB
    daemon.wait_until_unused("frozen")


class Writer(threading.Thread):
    """Writes its number over and over into its own blocks, one value after the other, and says
    which were acknowledged. Block i of round r holds the value r * blocks + i."""

    def __init__(self, daemon: Bockd, export: str, first: int, blocks: int) -> None:
        super().__init__()
        self.acknowledged = 0
        self.sent = 0
        self.first = first
        self.blocks = blocks
        self.error: BaseException | None = None
        self._client = daemon.connect(export)
        self._ending = threading.Event()
        self._far = threading.Condition()

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                value = self.acknowledged + 1
                self.sent = value
                block = self.first + value % self.blocks
                self._client.pwrite(value.to_bytes(8) * (BLOCK // 8), block * BLOCK)
                with self._far:
                    self.acknowledged = value
                    self._far.notify_all()
            self._client.shutdown()
        except BaseException as error:
            self.error = error
            raise

    def wait_for(self, more: int) -> None:
        """Return when that many more writes were acknowledged."""
        with self._far:
            wanted = self.acknowledged + more
            assert self._far.wait_for(lambda: self.acknowledged >= wanted, timeout=60)

    def end(self) -> None:
        self._ending.set()
        self.join()
        assert self.error is None

    def values(self, content: bytes) -> list[int]:
        """The value of each of its blocks; every block is whole."""
        found = []
        for block in range(self.first, self.first + self.blocks):
            data = content[block * BLOCK : (block + 1) * BLOCK]
            assert data == data[:8] * (BLOCK // 8), f"block {block} is torn"
            found.append(int.from_bytes(data[:8]))
        return found


def test_a_snapshot_while_clients_write(daemon: Bockd) -> None:
    """Promise D4, five times: the snapshot holds all that was acknowledged before it was asked for
    and, of each client, a prefix of what it wrote; it never changes while they write on."""
    daemon.bock("volume", "create", "busy", "--size", "1M")
    writers = [Writer(daemon, "busy", first * 64, 64) for first in range(4)]
    for writer in writers:
        writer.start()
    taken: list[tuple[str, bytes]] = []
    with daemon.storage() as storage:
        volume = storage.find_volume("busy").id
        for number in range(5):
            for writer in writers:
                writer.wait_for(200)
            before = [writer.acknowledged for writer in writers]
            storage.create_snapshot(volume, f"busy-{number}")
            after = [writer.sent for writer in writers]
            with daemon.connected(f"snapshot/busy-{number}") as client:
                content = bytes(client.pread(1 * MIB, 0))
            taken.append((f"snapshot/busy-{number}", content))
            for writer, low, high in zip(writers, before, after, strict=True):
                latest = max(writer.values(content))
                assert low <= latest <= high
                # One client's writes are one after the other, so it holds a prefix of them.
                held = sorted(writer.values(content))
                assert held == list(range(latest - 63, latest + 1))
    for writer in writers:
        writer.end()
    for export, content in taken:
        with daemon.connected(export) as client:
            assert client.pread(1 * MIB, 0) == content


def test_clones_are_independent(daemon: Bockd) -> None:
    """A volume, its snapshot and two clones of it: what one is given, the others do not show."""
    daemon.bock("volume", "create", "parent", "--size", "4M")
    base = random.Random(51).randbytes(2 * MIB)
    with daemon.connected("parent") as client:
        client.pwrite(base, 0)
    daemon.bock("snapshot", "create", "parent", "parent-1")
    daemon.bock("volume", "create", "child-1", "--from-snapshot", "parent-1")
    daemon.bock("volume", "create", "child-2", "--from-snapshot", "parent-1", "--size", "8M")
    original = base + bytes(2 * MIB)
    changed = {name: bytearray(original) for name in ("parent", "child-1", "child-2")}
    for number, (name, content) in enumerate(changed.items()):
        with daemon.connected(name) as client:
            client.pwrite(b"%d" % number * (300 * KIB), 100 * KIB + 7)
            content[100 * KIB + 7 : 400 * KIB + 7] = b"%d" % number * (300 * KIB)
            client.trim(MIB, number * MIB + 500 * KIB)
            content[number * MIB + 500 * KIB : (number + 1) * MIB + 500 * KIB] = bytes(MIB)
    for name, content in changed.items():
        with daemon.connected(name) as client:
            assert client.pread(4 * MIB, 0) == content
    with daemon.connected("snapshot/parent-1") as client:
        assert client.pread(4 * MIB, 0) == original
    with daemon.connected("child-2") as client:
        assert client.get_size() == 8 * MIB
        assert client.pread(4 * MIB, 4 * MIB) == bytes(4 * MIB)

    # The clones outlive the snapshot and the volume they came from.
    daemon.wait_until_unused("parent")
    daemon.bock("volume", "delete", "parent", "--yes")
    daemon.bock("snapshot", "delete", "parent-1", "--yes")
    daemon.restart()
    for name in ("child-1", "child-2"):
        with daemon.connected(name) as client:
            assert client.pread(4 * MIB, 0) == changed[name]


def test_an_extended_volume_is_usable_to_its_end_on_every_connection(daemon: Bockd) -> None:
    """Who was connected was told the old size, and may use all of it: as a kernel's device does
    that was enlarged by ioctl. Who connects then is told the new one."""
    daemon.bock("volume", "create", "growing", "--size", "1M")
    with daemon.connected("growing") as old:
        old.pwrite(b"o" * BLOCK, 1 * MIB - BLOCK)
        daemon.bock("volume", "extend", "growing", "--size", "3M")
        assert old.get_size() == 1 * MIB
        with daemon.connected("growing") as new:
            assert new.get_size() == 3 * MIB
            new.pwrite(b"n" * (2 * BLOCK), 1 * MIB - BLOCK)
            assert old.pread(BLOCK, 1 * MIB - BLOCK) == b"n" * BLOCK
            old.set_strict_mode(0)  # libnbd would not send what lies past the size it knows
            assert old.pread(BLOCK, 1 * MIB) == b"n" * BLOCK
            old.pwrite(b"o" * BLOCK, 2 * MIB)
            old.pwrite(b"l" * (MIB - BLOCK), 2 * MIB + BLOCK)
            old.trim(BLOCK, 2 * MIB + BLOCK)
            old.zero(BLOCK, 2 * MIB + 2 * BLOCK)
            old.cache(MIB, 2 * MIB)
            assert new.pread(4 * BLOCK, 2 * MIB) == b"o" * BLOCK + bytes(2 * BLOCK) + b"l" * BLOCK
            found: list[int] = []
            # libnbd 1.22 takes extents past the size that it knows for a server's mistake.
            asking = old if old.get_version().startswith("1.14.") else new
            asking.block_status(MIB, 2 * MIB, lambda *status: found.extend(status[2]))
            assert found[:4] == [BLOCK, 0, 2 * BLOCK, nbd.STATE_HOLE | nbd.STATE_ZERO]
            assert refused(old.pread, BLOCK, 3 * MIB) == "EINVAL"
            assert refused(old.pwrite, b"x" * BLOCK, 3 * MIB - 512) == "ENOSPC"
            new.pwrite(b"e" * BLOCK, 3 * MIB - BLOCK)
            new.set_strict_mode(0)
            assert refused(new.pwrite, b"x" * BLOCK, 3 * MIB) == "ENOSPC"
    daemon.restart()
    with daemon.connected("growing") as client:
        assert client.pread(3 * BLOCK, 1 * MIB - 2 * BLOCK) == bytes(BLOCK) + b"n" * (2 * BLOCK)
        assert client.pread(BLOCK, 3 * MIB - BLOCK) == b"e" * BLOCK


def test_many_volumes_at_once(daemon: Bockd) -> None:
    """Twenty volumes with a client each, in turns: nobody sees what another one wrote."""
    names = [f"many-{number}" for number in range(20)]
    with daemon.storage() as storage:
        for name in names:
            storage.create_volume(name, 1 * MIB)
    clients = [daemon.connect(name) for name in names]
    for turn in range(16):
        cookies = [
            client.aio_pwrite(nbd.Buffer.from_bytearray(pattern(number, turn)), turn * 64 * KIB)
            for number, client in enumerate(clients)
        ]
        for client, cookie in zip(clients, cookies, strict=True):
            while not client.aio_command_completed(cookie):
                client.poll(-1)
    for number, client in enumerate(clients):
        expected = b"".join(pattern(number, turn) for turn in range(16))
        assert client.pread(1 * MIB, 0) == expected
        client.shutdown()


def pattern(number: int, turn: int) -> bytearray:
    return bytearray(b"%04d-%010d\n" % (number, turn)) * (4 * KIB)


def test_sixteen_tebibytes(daemon: Bockd) -> None:
    """The largest volume takes nothing until it is written; it works at its last block, at its
    last byte and across 8 TiB, where the second file of its layer begins; as do its snapshot and
    a clone."""
    before = daemon.layer_files()
    daemon.bock("volume", "create", "huge", "--size", "16T")
    new = daemon.layer_files().keys() - before.keys()
    assert sum((daemon.data_dir / "layers" / name).stat().st_blocks for name in new) == 0
    space = daemon.bock("volume", "show", "huge")["space"]
    assert space == {"exclusive_bytes": 0, "shared_bytes": 0}

    data = random.Random(52).randbytes(64 * KIB)
    middle, end = 8 * TIB - 32 * KIB - 5, 16 * TIB - 64 * KIB
    with daemon.connected("huge") as client:
        assert client.get_size() == 16 * TIB
        client.pwrite(data, middle)
        client.pwrite(data, end, nbd.CMD_FLAG_FUA)
        client.pwrite(b"!", 16 * TIB - 1)
        client.set_strict_mode(0)
        assert refused(client.pwrite, b"x", 16 * TIB) == "ENOSPC"
        assert refused(client.pread, 2, 16 * TIB - 1) == "EINVAL"
        assert client.pread(64 * KIB, middle) == data
        assert client.pread(64 * KIB, end) == data[:-1] + b"!"
        assert client.pread(BLOCK, 5 * TIB) == bytes(BLOCK)
    written = 17 * BLOCK + 16 * BLOCK
    space = daemon.bock("volume", "show", "huge")["space"]
    assert space == {"exclusive_bytes": written, "shared_bytes": 0}

    daemon.bock("snapshot", "create", "huge", "huge-1")
    with daemon.connected("huge") as client:
        client.trim(128 * KIB, 8 * TIB - 64 * KIB)
        assert client.pread(64 * KIB, middle) == bytes(64 * KIB)
        client.pwrite(b"new", 16 * TIB - BLOCK)
    daemon.bock("volume", "create", "huge-clone", "--from-snapshot", "huge-1")
    daemon.restart()
    with daemon.connected("huge-clone") as client:
        assert client.pread(64 * KIB, middle) == data
        assert client.pread(64 * KIB, end) == data[:-1] + b"!"
    with daemon.connected("huge") as client:
        assert client.pread(64 * KIB, middle) == bytes(64 * KIB)
        tail = bytearray(data[:-1] + b"!")
        tail[60 * KIB : 60 * KIB + 3] = b"new"
        assert client.pread(64 * KIB, end) == tail
