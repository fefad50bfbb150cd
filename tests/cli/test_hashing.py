"""The SHA-256 of a file with holes: the right one, and nothing is read of the holes."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from bockd.cli.sources import hash_file
from bockd.model import MIB

LENGTH = 8 * MIB + 4096 + 77


def bytes_read() -> int:
    """What this process has read so far, from files and pipes."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize(
    "places", [(), (0,), (2 * MIB, 5 * MIB), (LENGTH - 3,), (0, 4096, MIB, LENGTH - 1)]
)
def test_holes_are_hashed_and_not_read(tmp_path: Path, places: tuple[int, ...]) -> None:
    path = tmp_path / "sparse"
    chance = random.Random(len(places))
    with path.open("wb") as file:
        for place in places:
            file.seek(place)
            file.write(chance.randbytes(min(10_000, LENGTH - place)))
        file.truncate(LENGTH)
    before = bytes_read()
    found = hash_file(path, LENGTH, "sparse")
    assert bytes_read() - before < MIB
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
