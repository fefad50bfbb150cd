"""File systems on connected loop devices, and on clones of them beside (needs root)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from .host import Host

FILES = 2_000
LARGEST_BYTES = 16 << 10

CHECK = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n")}
BESIDE = {"ext4": "ro", "xfs": "ro,nouuid"}
"""A clone has its origin's UUID, of which xfs mounts one only."""


def write_tree(root: Path) -> dict[str, str]:
    """Files of all sizes in twenty directories, and the digest of each."""
    for number in range(FILES):
        file = root / f"directory {number % 20}" / f"file {number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(number * 217 % LARGEST_BYTES))
    return digests(root)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("file *")
    }


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_tree_and_its_clone(host: Host, kind: str) -> None:
    host.daemon.bock("volume", "create", "v", "--size", "400M")
    device = host.connect("v")
    host.daemon.tool(f"mkfs.{kind}", "-q", device)
    with host.mounted(device) as inside:
        written = write_tree(inside)
    assert len(written) == FILES
    host.daemon.tool(*CHECK[kind], device)
    host.daemon.bock("snapshot", "create", "v", "s")
    host.daemon.bock("volume", "create", "copy", "--from-snapshot", "s")
    copied = host.connect("copy")
    with host.mounted(device) as inside:
        (inside / "directory 0" / "file 0").write_bytes(b"changed since")
        beside = inside.with_name("beside")
        beside.mkdir()
        host.daemon.tool("mount", "-o", BESIDE[kind], copied, beside)
        try:
            assert digests(beside) == written
            assert digests(inside) != written
        finally:
            host.daemon.tool("umount", beside)
    host.daemon.bock("disconnect", "copy")
    host.daemon.bock("disconnect", "v")
    host.daemon.check()
