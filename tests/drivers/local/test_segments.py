"""Volumes beyond 8 TiB, whose layers have several files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bockd.drivers.local.format.layer import SEGMENT_BYTES
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.pool import LocalPool
from bockd.model import BLOCK_SIZE, KIB, TIB, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.process import die


@pytest.mark.parametrize("before", [BLOCK_SIZE, 512, 12 * KIB])
@pytest.mark.parametrize("length", [2 * BLOCK_SIZE, 16 * KIB, 64 * KIB])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_write_across_the_end_of_a_segment_is_in_both(
    tmp_path: Path, before: int, length: int, at_once: bool
) -> None:
    """A file takes what is written behind its end: the second part was in the first file, and read
    as what the second one had."""
    pool = LocalPool.open(tmp_path, Background().spawn)
    volume = run_inline(pool.create_volume("v", 9 * TIB)).id
    device = run_inline(pool.registry.use_volume(volume)).volume
    run_inline(device.write(0, memoryview(b"x" * BLOCK_SIZE)))
    offset = SEGMENT_BYTES - before
    read = bytearray(length)
    for value in (b"n", b"p"):  # new blocks, then in place
        data = memoryview(value * length)
        if not (at_once and device.try_write(offset, data)):
            run_inline(device.write(offset, data))
        device.commit()
        run_inline(device.read(offset, memoryview(read)))
        assert read == data
    near = tmp_path / "layers"
    assert max(path.stat().st_size for path in near.iterdir()) == SEGMENT_BYTES
    die(pool)


def test_what_an_older_bockd_wrote_behind_a_segment_is_a_problem(tmp_path: Path) -> None:
    pool = LocalPool.open(tmp_path, Background().spawn)
    volume = VolumeId(run_inline(pool.create_volume("v", 9 * TIB)).id)
    device = run_inline(pool.registry.use_volume(volume)).volume
    run_inline(device.write(SEGMENT_BYTES, memoryview(b"x" * BLOCK_SIZE)))
    pool.registry.leave_volume(volume)
    run_inline(pool.registry.close_idle_volume(volume))
    [near] = (tmp_path / "layers").glob("*.0")
    assert check_open_pool(pool.registry.store, live=frozenset(), repair=False).clean
    with open(near, "r+b") as file:
        file.seek(SEGMENT_BYTES)
        file.write(b"n" * BLOCK_SIZE)

    [problem] = check_open_pool(pool.registry.store, live=frozenset(), repair=True).problems

    assert f"{near} has {BLOCK_SIZE} bytes beyond {SEGMENT_BYTES}" in problem
    assert near.stat().st_size == SEGMENT_BYTES + BLOCK_SIZE
    command = problem[problem.index("'truncate") :].strip("'")
    subprocess.run(command.split(), check=True)
    assert check_open_pool(pool.registry.store, live=frozenset(), repair=False).clean
    die(pool)
