"""Small file systems to fill. They are mounted, so the tests that use them need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .process import program

MIB = 1 << 20


@contextmanager
def mounted(
    kind: str, work: Path, size_bytes: int, *how: str, options: str = "defaults"
) -> Iterator[Path]:
    """A new file system (ext4, made with `how`, or tmpfs) of about that size, for the duration."""
    assert os.geteuid() == 0, "mounting a file system to fill needs root"
    mount_point = work / kind
    mount_point.mkdir()
    if kind == "tmpfs":
        what = ["-t", "tmpfs", "-o", f"size={size_bytes}", "none"]
    else:
        image = work / f"{kind}.image"
        with image.open("wb") as file:
            file.truncate(size_bytes)
        # No blocks kept for root, who these tests are.
        subprocess.run([program("mkfs.ext4"), "-q", "-m", "0", *how, image], check=True)
        what = ["-o", f"loop,{options}", str(image)]
    subprocess.run([program("mount"), *what, str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run([program("umount"), str(mount_point)], check=True)
