"""Raw images in and out, which `bock` copies itself: what arrives, and what an end in the middle
leaves."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from bockd.cli.copying import PIECE_BYTES, data_runs
from bockd.model import BLOCK_SIZE, KIB, MIB

from ..daemon.driver import features
from ..daemon.process import serving
from .daemon import Daemon, Terminal
from .images import path_with_changed_bock, path_with_stopping_copy, same, tool

LARGE_BYTES = 12 * MIB
"""More than is on its way at once."""


def noise(path: Path, length: int = LARGE_BYTES) -> Path:
    """A raw image without a zero block."""
    path.write_bytes(random.Random(length).randbytes(length))
    return path


def scattered(path: Path, seed: int) -> Path:
    """A raw image with data, zeros and holes of all sizes, which end within blocks and pieces."""
    chosen = random.Random(seed)
    with path.open("wb") as file:
        while file.tell() < 3 * PIECE_BYTES:
            length = chosen.choice([1, 511, BLOCK_SIZE, 5000, 64 * KIB, 100 * KIB, MIB])
            kind = chosen.choice(["data", "zeros", "hole", "starts with zeros"])
            if kind == "hole":
                file.seek(length, os.SEEK_CUR)
            elif kind == "data":
                file.write(chosen.randbytes(length))
            else:
                file.write(bytes(length - 1) + bytes([kind != "zeros"]))
        file.truncate(file.tell() + chosen.choice([0, 1, 3 * MIB]))
    return path


@pytest.mark.parametrize("seed", range(8))
def test_runs_are_what_is_not_zeros(tmp_path: Path, seed: int) -> None:
    content = bytearray(scattered(tmp_path / "x", seed).read_bytes())
    runs = list(data_runs(content, len(content)))
    blocks = range(0, len(content), BLOCK_SIZE)
    expected = {at for at in blocks if any(content[at : at + BLOCK_SIZE])}
    assert {at for at in blocks if any(begin <= at < end for begin, end in runs)} == expected
    assert all(begin % BLOCK_SIZE == 0 and begin < end <= len(content) for begin, end in runs)
    assert all(before[1] < after[0] for before, after in pairwise(runs))


@pytest.mark.parametrize("seed", range(4))
def test_scattered_data_comes_back(daemon: Daemon, tmp_path: Path, seed: int) -> None:
    image, out = scattered(tmp_path / f"scattered-{seed}.img", seed), tmp_path / "out.raw"
    made = daemon.bock_json("volume", "import", image, "--format", "raw")
    daemon.bock("volume", "export", made["name"], out)
    assert out.read_bytes() == image.read_bytes()
    data_blocks = sum(map(any, blocks_of(image.read_bytes())))
    assert out.stat().st_blocks * 512 <= (data_blocks + 1) * BLOCK_SIZE
    unit = features().hole_bytes
    space = daemon.bock_json("volume", "show", made["name"])["space"]
    taken = sum(map(len, filter(any, blocks_of(image.read_bytes(), unit))))
    assert taken <= space["exclusive_bytes"] < taken + unit  # the last one may be cut


def blocks_of(content: bytes, unit: int = BLOCK_SIZE) -> Iterator[bytes]:
    """Its blocks, or pieces of another size."""
    return (content[at : at + unit] for at in range(0, len(content), unit))


def test_holes_are_not_read(daemon: Daemon, tmp_path: Path) -> None:
    volume = daemon.bock_json("volume", "create", "sparse", "--size", "1T")
    tool(
        "qemu-io", "-f", "raw", "-c", "write -P 5 700G 4k", "-c", "write -P 0 3M 1M", volume["uri"]
    )
    out = tmp_path / "out.raw"
    daemon.bock("volume", "export", "sparse", out)
    assert out.stat().st_size == 1 << 40
    assert out.stat().st_blocks * 512 <= 16 * KIB
    with out.open("rb") as file:
        file.seek(700 << 30)
        assert file.read(BLOCK_SIZE + 1) == b"\x05" * BLOCK_SIZE + b"\0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_export_that_ends_in_the_middle_leaves_the_old_file(
    daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    name = f"cut-{number.name.lower()}"
    daemon.bock("volume", "import", noise(tmp_path / f"{name}.img"))
    target = tmp_path / "target" / "disk.raw"
    target.parent.mkdir()
    target.write_text("mine")
    ending = Terminal(
        daemon,
        *("bock", "volume", "export", name, target, "--force"),
        PATH=path_with_stopping_copy(daemon, tmp_path, 5),
    )
    ending.wait_for("4.0/12.0 MiB")
    ending.signal(number)
    killed = number is signal.SIGKILL
    assert ending.end() == (-signal.SIGKILL if killed else 130)
    assert target.read_text() == "mine"
    assert killed or "interrupted" in ending.seen
    assert killed or list(target.parent.iterdir()) == [target]
    daemon.bock("volume", "export", name, target, "--force")
    same(tmp_path / f"{name}.img", "raw", target)


@pytest.mark.parametrize("kind", ["volume", "image"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_import_of_a_raw_image_leaves_nothing(
    daemon: Daemon, tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    image = noise(tmp_path / f"in-{number.name.lower()}.img")
    importing = Terminal(
        daemon,
        *("bock", kind, "import", image),
        PATH=path_with_stopping_copy(daemon, tmp_path, 0),
    )
    importing.wait_for("8.0/12.0 MiB")
    importing.signal(number)
    assert importing.end() == 130
    assert "interrupted" in importing.seen
    listed = daemon.bock_json(kind, "list")
    assert image.stem not in {one["name"] for one in listed}


def test_file_that_is_cut_short_while_it_is_imported(daemon: Daemon, tmp_path: Path) -> None:
    image = noise(tmp_path / "shorter.img")
    change = (
        "import os\n"
        "from bockd.cli import transfer\n"
        "copy_in = transfer.copy_in\n"
        "def late(path, *more):\n"
        f"    os.truncate(path, {5 * MIB})\n"
        "    copy_in(path, *more)\n"
        "transfer.copy_in = late\n"
    )
    path = path_with_changed_bock(daemon, tmp_path, change)
    told = daemon.refusal("volume", "import", image, PATH=path)
    assert f"{image} changed while it was imported" in told
    assert "shorter" not in daemon.names()


def test_daemon_that_dies_under_an_export(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as bockd:
        daemon = Daemon(bockd.data_dir)
        daemon.bock("volume", "import", noise(tmp_path / "kept.img"))
        target = tmp_path / "out" / "disk.raw"
        target.parent.mkdir()
        path = path_with_stopping_copy(daemon, tmp_path, 3)
        ending = Terminal(daemon, "bock", "volume", "export", "kept", target, PATH=path)
        ending.wait_for("2.0/12.0 MiB")
        bockd.kill()
        ending.signal(signal.SIGUSR1)
        assert ending.end() == 1
        assert "bock: the daemon has closed the connection" in ending.seen
        assert list(target.parent.iterdir()) == []
        bockd.start()


def test_block_that_cannot_be_read_ends_an_export(daemon: Daemon, tmp_path: Path) -> None:
    """The error is told once, with the daemon's words."""
    daemon.bock("volume", "import", noise(tmp_path / "unread.img", 2 * MIB))
    change = (
        "from bockd.nbd.client import Export\n"
        "read = Export.read\n"
        "Export.read = lambda export, at, length: read(export, at or 1 << 40, length)\n"
    )
    target = tmp_path / "out.raw"
    path = path_with_changed_bock(daemon, tmp_path, change)
    told = daemon.refusal("volume", "export", "unread", target, PATH=path)
    assert f"reading at byte {1 << 40} failed" in told
    assert not target.exists()
