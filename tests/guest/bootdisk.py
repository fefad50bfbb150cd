"""A disk image that a PC boots from: a boot loader, the kernel, and the guest's user space."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .initramfs import KERNEL_ARGUMENTS, find_kernel, find_tool

MIB = 1 << 20

ROOM_BYTES = 4 * MIB
"""For the file system and the boot loader, besides the kernel and the files."""


def build_boot_disk(initramfs: Path, image: Path) -> None:
    """Make `image`, a raw one without partitions, which SeaBIOS boots by its first sector."""
    kernel = find_kernel()
    needed = kernel.stat().st_size + initramfs.stat().st_size + ROOM_BYTES
    with image.open("wb") as file:
        file.truncate(-(-needed // MIB) * MIB)
    configuration = image.with_suffix(".cfg")
    configuration.write_text(
        "default linux\n"
        "label linux\n"
        "  kernel vmlinuz\n"
        f"  append initrd=initrd {KERNEL_ARGUMENTS} booted=from-disk\n"
    )
    _run("mformat", "-i", image, "-T", str(image.stat().st_size // 512), "::")
    _run("syslinux", "--install", image)
    files = {kernel: "vmlinuz", initramfs: "initrd", configuration: "syslinux.cfg"}
    for source, name in files.items():
        _run("mcopy", "-i", image, source, f"::{name}")


def _run(tool: str, *arguments: str | Path) -> None:
    subprocess.run([find_tool(tool), *arguments], check=True)
