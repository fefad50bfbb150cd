"""A bit that flips in a layer's file is found, reported, and never given as data: a running daemon,
its tools, and one that opens the pool later."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import nbd
import pytest

from ..nbdkit_plugin.nbdkit import Nbdkit
from .damaged_volume import BLOCK, DAMAGED, content, fill, flip, scrub
from .process import Bockd, program, serving

MIB = 1 << 20


def assert_eio(client: Any, block: int) -> None:
    for length, offset in ((BLOCK, 0), (100, 3000), (3 * BLOCK, -BLOCK)):
        with pytest.raises(nbd.Error) as refused:
            client.pread(length, block * BLOCK + offset)
        assert refused.value.errnum == errno.EIO


def test_a_flipped_bit_is_reported_and_never_served(daemon: Bockd) -> None:
    fill(daemon)
    assert scrub(daemon)["verified_bytes"] == 600 * BLOCK
    assert daemon.check()["checksums"] == 600
    flip(daemon)
    daemon.expect_in_log(
        "byte 20480 of layer 1 differs from what it held: it is at the same byte of volume disk, "
        "snapshot kept"
    )
    daemon.expect_in_log("volume .* failed with EIO: .* byte 2[0-9]{4} is damaged")
    daemon.expect_in_log("snapshot .* failed with EIO: .* byte 2[0-9]{4} is damaged")
    [found] = scrub(daemon, status=1)["damaged"]
    assert (found["offset_bytes"], found["volumes"]) == (DAMAGED * BLOCK, ["disk"])
    assert found["snapshots"] == ["kept"]
    said = daemon.run(program("bockd"), "scrub", "--status")
    assert said.status == 1
    assert said.out.startswith("damaged: byte 20480 of volume disk, snapshot kept (layer 1)\n")
    with daemon.connected("disk") as client, daemon.connected("snapshot/kept") as snapshot:
        for reader in (client, snapshot):
            assert_eio(reader, DAMAGED)
            assert reader.pread(BLOCK, 6 * BLOCK) == content(1, 7)[6 * BLOCK :]
        with pytest.raises(nbd.Error):
            client.pwrite(b"part of it", DAMAGED * BLOCK + 8)
        client.pwrite(content(3, 1), DAMAGED * BLOCK)
        assert client.pread(BLOCK, DAMAGED * BLOCK) == content(3, 1)
        assert_eio(snapshot, DAMAGED)
    copied = daemon.run(
        program("qemu-img"),
        "convert",
        "-O",
        "qcow2",
        daemon.uri("snapshot/kept"),
        daemon.data_dir.with_name("copy.qcow2"),
    )
    assert copied.status != 0
    result = daemon.run(program("bockd"), "check")
    assert result.status == 1
    assert "problem: layer 1 has 1 damaged blocks" in result.out
    flip(daemon)  # it is put right
    assert scrub(daemon)["damaged"] == []
    with daemon.connected("snapshot/kept") as client:
        assert client.pread(600 * BLOCK, 0) == content(1, 600)


def test_damage_is_eio_for_all_who_open_the_pool_later(daemon: Bockd) -> None:
    """A daemon after a death, a clone made then, nbdkit, and a scrub without a daemon."""
    fill(daemon)
    scrub(daemon)
    daemon.kill()
    flip(daemon)
    assert len(scrub(daemon, "--rate", "1000", status=1)["damaged"]) == 1
    daemon.expect_in_log("differs from what it held|failed with EIO: .* is damaged")
    daemon.start()
    daemon.bock("volume", "create", "clone", "--from-snapshot", "kept")
    exports = ("disk", "snapshot/kept", "clone")
    for export in exports:
        with daemon.connected(export) as client:
            assert_eio(client, DAMAGED)
    for export in ("disk", "clone"):
        daemon.wait_until_unused(export)
    daemon.stop()
    work = daemon.data_dir.parent
    for number, export in enumerate(exports):
        chosen = export.replace("/", "=") if "/" in export else f"volume={export}"
        pool = f"pool={daemon.data_dir}"
        with Nbdkit(work, pool, chosen, name=f"n{number}") as served, served.connected() as client:
            assert_eio(client, DAMAGED)
            assert client.pread(BLOCK, 6 * BLOCK) == content(1, 7)[6 * BLOCK :]


def test_damage_found_elsewhere_is_eio_in_a_running_nbdkit(daemon: Bockd) -> None:
    """It has the block in memory and its map loaded when a scrub elsewhere finds the damage."""
    fill(daemon)
    scrub(daemon)
    daemon.stop()
    work, pool = daemon.data_dir.parent, f"pool={daemon.data_dir}"
    with Nbdkit(work, pool, "snapshot=kept") as served, served.connected() as client:
        assert client.pread(600 * BLOCK, 0) == content(1, 600)
        flip(daemon)
        assert len(scrub(daemon, status=1)["damaged"]) == 1
        assert_eio(client, DAMAGED)


def test_frozen_layers_are_read_and_verified_in_the_background(pool: Path) -> None:
    """Nobody has asked: what was frozen when the daemon starts is read, and verified."""
    with serving(pool) as daemon:
        fill(daemon)
        daemon.restart()
        with daemon.control() as control:
            while (status := control.scrub_status()).unread_layers or not status.finished_at:
                pass
        assert daemon.check()["checksums"] == 600


def test_nothing_is_read_in_the_background_when_checksums_are_off(pool: Path) -> None:
    """Nothing is read in the background, and scrubbing works when asked for."""
    config = pool.with_name("off.toml")
    config.write_text("[checksums]\nenabled = false\n")
    with serving(pool, config=config) as daemon:
        fill(daemon)
        daemon.restart()
        with daemon.control() as control:
            before = control.scrub_status()
        assert (before.unread_layers, before.finished_at) == (1, None)
        assert scrub(daemon)["verified_bytes"] == 600 * BLOCK
