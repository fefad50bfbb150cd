"""What `bock connect` refuses: each time the volume stays as it was, and the message helps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bockd.host.kernelnbd import MODULE
from tests.daemon.process import program, serving

from .host import Host


def refused(host: Host, volume: str, *arguments: str) -> str:
    """The refusal, after which the volume is `available` and this host has nothing."""
    refusal = host.daemon.refusal("connect", volume, *arguments)
    assert (host.volume("v")["status"], host.records(), host.devices()) == ("available", [], [])
    return refusal


@pytest.mark.skipif(MODULE.exists(), reason="this kernel has NBD devices; tests/guest has the rest")
def test_without_the_kernels_module(host: Host) -> None:
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    refusal = refused(host, "v")
    assert "this machine's kernel has no NBD devices" in refusal
    assert "bock connect --loop VOLUME" in refusal


def test_unknown_volumes_and_wrong_options_are_refused(host: Host) -> None:
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    assert "there is no volume 'w'" in refused(host, "w", "--loop")
    for wrong, reason in (
        (("--device", "/dev/nbd0"), "leave it out with --loop"),
        (("--server", "(host)"), "'--server': '(host)' is no server"),
    ):
        assert reason in host.daemon.misuse("connect", "v", "--loop", *wrong)
        assert (host.records(), host.devices()) == ([], [])
    assert "'v' is not connected here" in host.daemon.refusal("disconnect", "v")
    told = host.daemon.misuse("connect")
    assert "give one of VOLUME, --restore, --refresh and --print-unit" in told


def test_a_volume_that_is_taken(host: Host) -> None:
    """By another server, by a client of this one, as a loop device that bock has not made."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    host.daemon.bock("attachment", "create", "v", "elsewhere")
    refusal = host.daemon.refusal("connect", "--loop", "v")
    assert "is attached to elsewhere: 'bock disconnect' it there" in refusal
    host.daemon.bock("attachment", "delete", "v")
    made = host.daemon.bock("attachment", "create", "v", "host1")
    export = made["unix_uri"].split("/")[3].split("?")[0]
    with host.daemon.connected(export):
        refusal = host.daemon.refusal("connect", "--loop", "--server", "host1", "v")
        assert "has 1 NBD connections that bock has not made" in refusal
    host.daemon.bock("attachment", "delete", "v")
    volume = host.volume("v")["id"]
    path = host.view / "volumes" / str(volume)
    theirs = host.daemon.tool("losetup", "--find", "--show", path).strip()
    refusal = host.daemon.refusal("connect", "--loop", "v")
    assert f"is behind {theirs} already" in refusal
    assert host.devices() == [theirs]
    host.daemon.tool("losetup", "--detach", theirs)
    assert host.volume("v")["status"] == "available"


def test_a_virtual_machine_is_no_host(host: Host, tmp_path: Path) -> None:
    """It is told before anything is attached, which would plug a disk into the machine."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    host.daemon.bock("server", "add", "vm1", "--kind", "vm", "--qmp", tmp_path / "none")
    refusal = refused(host, "v", "--loop", "--server", "vm1")
    assert "server vm1 is a virtual machine" in refusal
    assert "--server" in refusal
    assert host.volume("v")["last_error"] is None


def test_a_failure_undoes_the_attachment(host: Host, tmp_path: Path) -> None:
    """losetup fails, the daemon's view being unmounted."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    host.daemon.tool("umount", host.view)
    assert "is the daemon's file view still mounted?" in refused(host, "v", "--loop")


def test_without_a_file_view(tmp_path: Path, state: Path) -> None:
    with serving(tmp_path / "pool") as daemon:
        daemon.bock("volume", "create", "v", "--size", "16M")
        assert "bockd serve --mount" in daemon.refusal("connect", "--loop", "v")
        assert daemon.bock("info")["mount"] is None


def test_another_daemons_volume(host: Host, tmp_path: Path) -> None:
    """Ids mean something at their own daemon only: its connections are left alone by others."""
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    device = host.connect("v")
    with serving(tmp_path / "other") as other:
        other.bock("volume", "create", "v", "--size", "16M")
        other.bock("attachment", "create", "v", "host1")
        refusal = other.refusal("disconnect", device)
        assert f"a volume of the daemon at {host.daemon.data_dir}/api.sock" in refusal
        assert other.bock("connect", "--restore") == []
        assert other.bock("attachment", "show", "v")["server"] == "host1"
    host.daemon.bock("disconnect", device)


def test_a_damaged_record(host: Host) -> None:
    host.daemon.bock("volume", "create", "v", "--size", "16M")
    host.state.mkdir(parents=True)
    (host.state / "x.json").write_text("{")
    for command in ("connections", "connect --loop v", "disconnect v"):
        refusal = host.daemon.refusal(*command.split())
        assert f"{host.state}/x.json is not a record of bock" in refusal
    assert host.volume("v")["status"] == "available"


def test_a_user_who_is_not_root() -> None:
    # Who may not read this environment cannot run its programs: so within the process.
    code = (
        "import os; os.setresuid(65534, 65534, 65534)\n"
        "from bockd.cli.connecting import require_root\n"
        "from bockd.errors import DeniedError\n"
        "try: require_root('connect')\n"
        "except DeniedError as error: print(error)\n"
    )
    said = subprocess.run(
        [program("python"), "-c", "import bockd.cli.connecting;" + code],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "block devices need root" in said


def test_the_printed_unit_is_taken_by_systemd(tmp_path: Path) -> None:
    """systemd takes it, and it runs this `bock`."""
    printed = subprocess.run(
        [program("bock"), "connect", "--print-unit"], capture_output=True, text=True, check=True
    ).stdout
    assert f"ExecStart={program('bock')} connect --restore\n" in printed
    unit = tmp_path / "bock-connect@.service"
    unit.write_text(printed)
    verified = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")
