"""QEMU's block layer as the client: images in and out, maps, and patterns at odd places."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..daemon.process import Bockd, data_bytes
from .images import BLOCK, KIB, MIB, same_bytes, write_sparse_image

SIZE_BYTES = 32 * MIB
LEAF_BYTES = 1 * MIB
"""What a leaf of the block map covers."""


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_convert_in_and_out(daemon: Bockd, tmp_path: Path, image_format: str) -> None:
    """Through an image of the format into a volume, and through another one out of it: the same
    bytes, holes still holes, and `qemu-img compare` agrees at both ends."""
    raw, image, out = tmp_path / "raw", tmp_path / "image", tmp_path / "out"
    written = write_sparse_image(raw, SIZE_BYTES, seed=30)
    name = f"convert-{image_format}"
    daemon.tool("qemu-img", "convert", "-f", "raw", "-O", image_format, raw, image)
    daemon.bock("volume", "create", name, "--size", str(SIZE_BYTES))

    # -n: the target exists; --target-is-zero: it is new.
    convert = ("qemu-img", "convert", "-n", "--target-is-zero", "-W", "-m", "16")
    daemon.tool(*convert, "-f", image_format, "-O", "raw", image, daemon.uri(name))
    compare = ("qemu-img", "compare", "-f", image_format, "-F", "raw")
    assert "Images are identical" in daemon.tool(*compare, image, daemon.uri(name))
    assert daemon.bock("volume", "show", name)["space"]["exclusive_bytes"] == written

    daemon.tool("qemu-img", "convert", "-f", "raw", "-O", image_format, daemon.uri(name), out)
    assert "Images are identical" in daemon.tool(*compare, out, daemon.uri(name))
    back = tmp_path / "back"
    daemon.tool("qemu-img", "convert", "-f", image_format, "-O", "raw", out, back)
    assert same_bytes(raw, back)
    assert data_bytes(back) <= written + SIZE_BYTES // 20  # qemu-img rounds its holes

    with daemon.connected(name) as client:
        client.pwrite(b"other", SIZE_BYTES - 5)
    assert (
        daemon.run(
            "qemu-img", "compare", "-f", image_format, "-F", "raw", out, daemon.uri(name)
        ).status
        == 1
    )


def test_qemu_img_map_shows_exactly_what_was_written(daemon: Bockd) -> None:
    """qemu-img map shows exactly what was written, in a volume and in a clone over a snapshot."""
    daemon.bock("volume", "create", "qmap", "--size", str(SIZE_BYTES))
    with daemon.connected("qmap") as client:
        client.pwrite(b"x" * BLOCK, 5 * BLOCK)
        client.pwrite(b"y" * (2 * MIB), 10 * MIB - BLOCK)
    expected = [
        (0, 5 * BLOCK, False),
        (5 * BLOCK, BLOCK, True),
        (6 * BLOCK, 10 * MIB - 7 * BLOCK, False),
        (10 * MIB - BLOCK, 2 * MIB, True),
        (12 * MIB - BLOCK, SIZE_BYTES - 12 * MIB + BLOCK, False),
    ]
    daemon.bock("snapshot", "create", "qmap", "qmap-1")
    daemon.bock("volume", "create", "qmap-clone", "--from-snapshot", "qmap-1")
    for export in ("qmap", "snapshot/qmap-1", "qmap-clone"):
        text = daemon.tool("qemu-img", "map", "-f", "raw", "--output=json", daemon.uri(export))
        found = [(e["start"], e["length"], e["data"], e["zero"]) for e in json.loads(text)]
        assert found == [(at, length, data, not data) for at, length, data in expected]


@dataclass
class Oracle:
    """What a volume must hold, and the qemu-io commands that make it so."""

    content: bytearray
    choose: random.Random

    def place(self) -> tuple[int, int]:
        """An offset and a length that often straddle the end of a block or of a leaf."""
        size = len(self.content)
        unit = self.choose.choice((512, BLOCK, LEAF_BYTES))
        edge = self.choose.randrange(unit, size, unit)
        reach = self.choose.choice((1, 511, 513, BLOCK - 1, BLOCK + 1, 3 * BLOCK, 70 * KIB + 3))
        offset = max(0, edge - self.choose.randint(0, reach))
        return offset, min(self.choose.randint(1, 2 * reach), size - offset)

    def command(self) -> str:
        """The next command, its effect applied."""
        offset, length = self.place()
        end = offset + length
        kind = self.choose.choice(("write", "write", "write", "zero", "unmap", "discard", "flush"))
        if kind == "write":
            pattern = self.choose.randint(1, 255)
            fua = self.choose.choice(("", "-f "))
            self.content[offset:end] = bytes((pattern,)) * length
            return f"write {fua}-P {pattern} {offset} {length}"
        if kind in ("zero", "unmap"):
            self.content[offset:end] = bytes(length)
            return f"write -z {'-u ' if kind == 'unmap' else ''}{offset} {length}"
        if kind == "discard":
            # Whole blocks are given back and read as zeros; the edges stay as they are.
            first, last = -(-offset // BLOCK) * BLOCK, end // BLOCK * BLOCK
            if last > first:
                self.content[first:last] = bytes(last - first)
            return f"discard {offset} {length}"
        return "flush"

    def readings(self, count: int) -> list[str]:
        """Reads of places that hold one value throughout, which qemu-io verifies itself."""
        found: list[str] = []
        while len(found) < count:
            offset, length = self.place()
            value = self.content[offset]
            if self.content.count(value, offset, offset + length) == length:
                found.append(f"read -P {value} {offset} {length}")
        return found


def qemu_io(daemon: Bockd, export: str, commands: list[str]) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    out = daemon.tool("qemu-io", "-f", "raw", "-d", "unmap", daemon.uri(export), *arguments)
    assert "verification failed" not in out
    assert "failed" not in out


def contents(daemon: Bockd, export: str, target: Path) -> bytes:
    """All of an export, by nbdcopy."""
    daemon.tool("nbdcopy", daemon.uri(export), target)
    return target.read_bytes()


@pytest.mark.parametrize("seed", [40, 41, 42])
def test_patterns_at_odd_places(daemon: Bockd, tmp_path: Path, seed: int) -> None:
    """Writes, zeroes and discards of any offset and length, straddling blocks and leaves, over a
    snapshot and without one: reads verify as they go, every byte at the end, and the snapshot is
    what it was."""
    print(f"seed {seed}")
    name = f"odd-{seed}"
    oracle = Oracle(bytearray(8 * MIB), random.Random(seed))
    daemon.bock("volume", "create", name, "--size", str(len(oracle.content)))
    for round_number in range(3):
        qemu_io(daemon, name, [oracle.command() for _ in range(100)] + oracle.readings(20))
        assert contents(daemon, name, tmp_path / "now") == oracle.content
        frozen = bytes(oracle.content)
        snapshot = f"{name}-{round_number}"
        daemon.bock("snapshot", "create", name, snapshot)
        qemu_io(daemon, name, [oracle.command() for _ in range(30)])
        assert contents(daemon, name, tmp_path / "now") == oracle.content
        assert contents(daemon, f"snapshot/{snapshot}", tmp_path / "then") == frozen
