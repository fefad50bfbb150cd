"""The size of a connected device, which follows its volume's, and the sectors that it counts in."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bockd.host.devices import sector_bytes
from bockd.host.records import Records
from tests.daemon.process import program

from .host import Host


def size_of(device: str) -> int:
    return int(Path(f"/sys/block/{device[5:]}/size").read_text()) * 512


def sectors_of(device: str) -> int:
    return int(Path(f"/sys/block/{device[5:]}/queue/logical_block_size").read_text())


def test_a_device_grows_with_its_volume_under_a_mounted_file_system(host: Host) -> None:
    """By the `bock volume extend` of this machine, and by --refresh after one of another."""
    for name in ("v", "other"):
        host.daemon.bock("volume", "create", name, "--size", "320M")
    device, other = host.connect("v"), host.connect("other")
    host.daemon.tool("mkfs.xfs", "-q", device)
    with host.mounted(device) as inside:
        (inside / "file").write_text("before")
        host.daemon.bock("volume", "extend", "v", "--size", "384M")
        assert size_of(device) == 384 << 20
        with host.daemon.storage() as elsewhere:
            elsewhere.extend_volume(elsewhere.find_volume("v").id, 512 << 20)
        assert size_of(device) == 384 << 20
        refreshed = host.daemon.bock("connect", "--refresh")
        assert [one["name"] for one in refreshed] == ["v"]
        assert host.daemon.bock("connect", "--refresh", device) == []
        assert (size_of(device), size_of(other)) == (512 << 20, 320 << 20)
        host.daemon.tool("xfs_growfs", inside)
        found = os.statvfs(inside)
        assert found.f_blocks * found.f_frsize > 400 << 20
        assert (inside / "file").read_text() == "before"
    host.daemon.tool("xfs_repair", "-n", device)
    assert "'w' is not connected here" in host.daemon.refusal("connect", "--refresh", "w")


def test_a_device_that_is_gone_is_not_refreshed(host: Host) -> None:
    """It is named, and the volume has grown all the same."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    device = host.connect("v")
    host.daemon.tool("losetup", "--detach", device)
    extended = host.daemon.run(program("bock"), "volume", "extend", "v", "--size", "32M")
    assert (extended.status, extended.out) == (0, "volume 1 (v) now has 32 MiB\n")
    assert "not connected now; 'bock connect --restore' does that" in extended.err
    assert host.daemon.run(program("bock"), "connect", "--refresh").status == 1
    host.daemon.bock("connect", "--restore")
    assert size_of(host.records()[0]["device"]) == 32 << 20
    host.daemon.bock("disconnect", "v")


def test_a_partition_table_for_other_sectors_is_named(host: Host) -> None:
    """As of volumes that were partitioned on devices of an older bock. The record keeps what was
    asked for, so that a reboot changes nothing."""
    host.daemon.bock("volume", "create", "v", "--size", "64M")
    device = host.connect("v", "--sector-size", "4096")
    assert sectors_of(device) == 4096
    host.daemon.tool("sh", "-c", f"echo 'label: gpt' | {program('sfdisk')} -q {device}")
    host.daemon.tool("losetup", "--detach", device)
    host.daemon.bock("connect", "--restore")
    (record,) = host.records()
    assert (record["sector_bytes"], sectors_of(record["device"])) == (4096, 4096)
    host.daemon.bock("disconnect", "v")
    connected = host.daemon.run(
        program("bock"), "connect", "--loop", "--server", "host1", "v", "--json"
    )
    device = json.loads(connected.out)["device"]
    assert (connected.status, sectors_of(device)) == (0, 512)
    assert "made for sectors of 4096 bytes" in connected.err
    assert "'bock connect --sector-size 4096 1'" in connected.err
    host.daemon.bock("disconnect", "v")


def test_records_of_an_older_bock_keep_their_sectors(tmp_path: Path) -> None:
    record = {
        "volume": 1,
        "pid": 1,
        "connected_at": 1.0,
        **dict.fromkeys(("key", "daemon", "tenant_id", "name", "server", "boot"), "x"),
    }
    for file, sectors in ((None, 4096), ("/view/volumes/1", 512)):
        text = json.dumps({**record, "device": "/dev/x", "file": file})
        (tmp_path / "k.json").write_text(text)
        (known,) = Records(tmp_path).list()
        assert sector_bytes(known) == sectors
