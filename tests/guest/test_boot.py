"""A machine that boots from a volume, as docs/vms.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..daemon.process import serving
from .bootdisk import build_boot_disk
from .vm import boot


def test_a_machine_boots_from_a_volume_made_from_an_image(
    initramfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Imported as qcow2; the firmware, the boot loader and the kernel read the volume; a clone
    boots as well."""
    room = tmp_path_factory.mktemp("boot")
    raw, image = room / "raw", room / "system.qcow2"
    build_boot_disk(initramfs, raw)
    with serving(room / "data") as daemon:
        daemon.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
        daemon.bock("volume", "import", image, "--name", "system")
        daemon.bock("snapshot", "create", "system", "golden")
        daemon.bock("volume", "create", "clone", "--from-snapshot", "golden")
        for volume in ("system", "clone"):
            disk = (
                "driver=nbd,node-name=root,server.type=unix,"
                f"server.path={daemon.nbd_socket},export={volume},reconnect-delay=60,discard=unmap"
            )
            device = "virtio-blk-pci,drive=root,serial=root,bootindex=0"
            console = room / f"{volume}.log"
            with boot(None, console, "-blockdev", disk, "-device", device) as guest:
                assert "booted=from-disk" in guest.run("cat /proc/cmdline")
                assert guest.run("cat /sys/block/vda/serial").strip() == "root"
                guest.run("dd if=/dev/vda of=/dev/null bs=1M count=1")
