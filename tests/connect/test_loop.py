"""`bock connect --loop`: a volume as a loop device, from its connection to its end (needs root)."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.host.records import Records
from tests.daemon.process import program, serving
from tests.fuse.watchdog import watched

from .host import Host


def test_connected_used_disconnected_and_connected_again(host: Host) -> None:
    """The API shows each state; a device that is mounted is not taken away; the data stays."""
    host.daemon.bock("volume", "create", "v", "--size", "64M")
    device = host.connect("v")
    assert host.devices() == [device]
    assert host.volume("v")["status"] == "in-use"
    assert host.volume("v")["attachment"]["server"] == "host1"
    (listed,) = host.records()
    assert (listed["name"], listed["device"], listed["state"]) == ("v", device, "connected")
    host.daemon.tool("mkfs.ext4", "-q", device)
    with host.mounted(device) as inside:
        (inside / "file").write_bytes(b"data" * 1000)
        for option in ([], ["--force"]):
            refusal = host.daemon.refusal("disconnect", "v", *option)
            assert f"{device} is mounted at {inside}" in refusal
        assert host.volume("v")["status"] == "in-use"
    host.daemon.bock("disconnect", "v")
    assert (host.devices(), host.records()) == ([], [])
    assert host.volume("v")["status"] == "available"
    again = host.connect("v")
    with host.mounted(again) as inside:
        assert (inside / "file").read_bytes() == b"data" * 1000
    host.daemon.bock("disconnect", again)
    host.daemon.check()


def test_what_else_uses_a_device_is_named(host: Host) -> None:
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    device = host.connect("v")
    with open(device, "rb") as opened:
        reader = subprocess.Popen(["sleep", "600"], stdin=opened)
    with reader:
        refusal = host.daemon.refusal("disconnect", device)
        assert f"{device} is open in process" in refusal
        reader.kill()
    above = host.daemon.tool("losetup", "--find", "--show", "--read-only", device).strip()
    try:
        refusal = host.daemon.refusal("disconnect", device)
        assert f"{device} is behind {above}" in refusal
    finally:
        host.daemon.tool("losetup", "--detach", above)
    host.daemon.tool("mkswap", device)
    host.daemon.tool("swapon", device)
    try:
        assert f"{device} is swap space" in host.daemon.refusal("disconnect", device)
    finally:
        host.daemon.tool("swapoff", device)
    host.daemon.bock("disconnect", device)


def test_a_record_is_private_and_says_no_secret(host: Host) -> None:
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    host.connect("v")
    (record,) = host.state.glob("*.json")
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(host.state.stat().st_mode) == 0o700
    export = host.daemon.bock("attachment", "show", "v")["unix_uri"].split("/")[3].split("?")[0]
    assert len(export) == 32
    assert export not in record.read_text()
    host.daemon.bock("disconnect", "v")


def test_volumes_are_connected_again_after_a_reboot(host: Host) -> None:
    """The devices are gone, the records are not: one volume comes back as it was, one that was
    detached meanwhile is attached again, and one that is elsewhere now is told of."""
    for name in ("a", "b", "c"):
        host.daemon.bock("volume", "create", name, "--size", "16M")
        device = host.connect(name)
        host.daemon.tool("dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "conv=fsync")
        host.daemon.tool("losetup", "--detach", device)
    assert {one["state"] for one in host.records()} == {"gone"}
    host.daemon.restart()
    for name in ("b", "c"):
        host.daemon.bock("attachment", "delete", name)
    host.daemon.bock("attachment", "create", "c", "elsewhere")
    outcome = host.daemon.run(program("bock"), "connect", "--restore")
    assert outcome.status == 1
    assert "(c) is attached to elsewhere: " in outcome.err
    assert "1 of 3 volumes are not connected" in outcome.err
    states = {one["name"]: one["state"] for one in host.records()}
    assert states == {"a": "connected", "b": "connected", "c": "gone"}
    assert host.volume("b")["attachment"]["server"] == "host1"
    # What is there already stays as it is.
    before = host.devices()
    assert host.daemon.run(program("bock"), "connect", "--restore").status == 1
    assert sorted(host.devices()) == sorted(before)
    for name in ("a", "b", "c"):
        host.daemon.bock("disconnect", name)
    assert host.records() == []
    # It is another server's, which disconnecting here leaves alone.
    assert host.volume("c")["attachment"]["server"] == "elsewhere"


@pytest.mark.parametrize("left", ["attachment", "record", "both", "all but its device's name"])
def test_connecting_and_disconnecting_go_on_after_a_death(host: Host, left: str) -> None:
    """Whichever step was the last, connecting carries on from there, and so does disconnecting."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    for command in ("connect", "disconnect"):
        device = host.connect("v")
        records = Records(host.state)
        (record,) = records.list()
        if left != "all but its device's name":
            host.daemon.tool("losetup", "--detach", device)
        else:
            path = host.state / f"{record.key}.json"
            path.write_text(path.read_text().replace(f'"device": "{device}"', '"device": ""'))
            assert records.list()[0].device == ""
        if left == "attachment":
            records.remove(record)
        if left == "record":
            host.daemon.bock("attachment", "delete", "v")
        if left == "all but its device's name":
            assert f"is {device} already" in host.daemon.refusal("connect", "--loop", "v")
        elif command == "connect" or left == "attachment":
            host.connect("v")
            assert len(host.devices()) == len(host.records()) == 1
        host.daemon.bock("disconnect", "v")
        assert (host.devices(), host.records()) == ([], [])
        assert host.volume("v")["status"] == "available"


def test_a_daemon_that_is_gone(host: Host) -> None:
    """Without it nothing is torn apart; by force the device goes, and the rest later."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    device = host.connect("v")
    host.daemon.kill()
    assert "no daemon answers" in host.daemon.refusal("disconnect", "v")
    assert host.devices() == [device]
    refusal = host.daemon.refusal("disconnect", "--force", "v")
    assert f"{device} is gone, and the volume is still attached" in refusal
    assert host.devices() == []
    host.daemon.start()
    host.daemon.bock("disconnect", "v")
    assert host.records() == []
    assert host.volume("v")["status"] == "available"


def test_a_daemon_that_was_restarted(host: Host) -> None:
    """The kernel keeps the loop device on the view that is gone, and fails all that is asked of it:
    it is taken away once nobody uses it, and another one comes."""
    host.daemon.bock("volume", "create", "v", "--size", "64M")
    host.daemon.bock("volume", "create", "w", "--size", "16M")
    mounted = host.connect("v")
    host.connect("w")
    host.daemon.tool("mkfs.ext4", "-q", mounted)
    restore = (program("bock"), "connect", "--restore")
    with host.mounted(mounted):
        host.daemon.kill()
        host.daemon.start()
        outcome = host.daemon.run(*restore)
        assert outcome.status == 1
        assert f"(v): {mounted} is mounted at {host.mount_point}: end that first" in outcome.err
        assert {one["name"]: one["state"] for one in host.records()} == {
            "v": "dead",
            "w": "connected",
        }
    assert host.daemon.run(*restore).status == 0
    for device in [one["device"] for one in host.records()]:
        host.daemon.tool("dd", f"if={device}", "of=/dev/null", "bs=4k", "count=1")
    assert sorted(host.devices()) == sorted(one["device"] for one in host.records())
    for name in ("v", "w"):
        host.daemon.bock("disconnect", name)
    assert host.dead_devices() == []


def test_a_device_that_is_somebody_elses_by_now(host: Host, tmp_path: Path) -> None:
    """The number of a device that went was given to another daemon's, whose view is gone, too: of
    both the kernel says "/volumes/1". It is not taken for ours, and nothing happens to it."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    ours = host.connect("v")
    host.daemon.kill()
    host.daemon.tool("losetup", "--detach", ours)
    view = tmp_path / "their view"
    with watched(view), serving(tmp_path / "their pool", mount=view) as other:
        other.bock("volume", "create", "theirs", "--size", "16M")
        theirs = other.tool("losetup", "--find", "--show", str(view / "volumes" / "1")).strip()
        try:
            other.kill()
            other.tool("umount", "--lazy", view)
            (record,) = Records(host.state).list()
            Records(host.state).write(replace(record, device=theirs))
            assert [one["state"] for one in host.records()] == ["gone"]
            host.daemon.start()
            assert host.daemon.run(program("bock"), "connect", "--restore").status == 0
            assert host.records()[0]["device"] != theirs
            backing = Path(f"/sys/block/{theirs[5:]}/loop/backing_file")
            assert backing.read_text().strip() == "/volumes/1"
        finally:
            host.daemon.tool("losetup", "--detach", theirs)
    host.daemon.bock("disconnect", "v")


def test_a_view_behind_a_symbolic_link(tmp_path: Path, state: Path) -> None:
    """The kernel names files by their real paths; the device is ours all the same, and ends."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    with watched(real / "view"), serving(tmp_path / "pool", mount=link / "view") as daemon:
        host = Host(daemon, state, real / "view", tmp_path / "inside")
        try:
            daemon.bock("volume", "create", "v", "--size", "16M")
            host.connect("v")
            assert host.records()[0]["state"] == "connected"
            assert "already" in daemon.refusal("connect", "--loop", "v")
            daemon.bock("disconnect", "v")
            assert host.devices() == []
        finally:
            host.clean()


def test_other_peoples_loop_devices_may_be_on_anything(host: Host, tmp_path: Path) -> None:
    """File names are bytes."""
    other = os.fsencode(tmp_path) + b"/not \xff UTF-8"
    with open(other, "wb") as file:
        file.truncate(1 << 20)
    theirs = host.daemon.tool("losetup", "--find", "--show", os.fsdecode(other)).strip()
    try:
        host.daemon.bock("volume", "create", "v", "--size", "16M")
        device = host.connect("v")
        assert device != theirs
        host.daemon.bock("disconnect", "v")
    finally:
        host.daemon.tool("losetup", "--detach", theirs)
