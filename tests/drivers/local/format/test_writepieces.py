"""New blocks are written in pieces that suit the file system: small where large folios are dear."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format import writepieces
from bockd.drivers.local.format.writepieces import (
    LARGE_BYTES,
    SMALL_BYTES,
    choose_write_pieces,
)
from bockd.model import KIB, MIB
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die


@pytest.mark.parametrize(
    ("ratio", "size_bytes", "words"),
    [
        (1.0, LARGE_BYTES, "in pieces of 256 KiB: overwrites take no longer here in large folios"),
        (2.04, SMALL_BYTES, "in pieces of 16 KiB: overwrites take 2.0 times as long here in large"),
    ],
)
def test_pieces_are_small_where_large_folios_are_dear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, size_bytes: int, words: str
) -> None:
    monkeypatch.setattr(writepieces, "_measure", lambda _: ratio)
    chosen = choose_write_pieces(tmp_path)
    assert chosen.size_bytes == size_bytes
    assert str(chosen).startswith(words)


def test_measuring_compares_overwrites_in_two_regions_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = {0: iter(range(100, 200)), MIB: iter(range(300, 200, -1))}

    def overwrite(fd: int, base: int, number: int, block: memoryview) -> int:
        assert os.fstat(fd).st_size == 2 * MIB
        real(fd, base, number, block)
        return next(rounds[base])

    real = writepieces._overwrite
    monkeypatch.setattr(writepieces, "_overwrite", overwrite)
    assert writepieces._measure(tmp_path) == 2.95
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_what_cannot_be_measured_is_written_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    opened = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, call, fail)
    chosen = choose_write_pieces(tmp_path)
    monkeypatch.undo()
    assert str(chosen) == "in pieces of 16 KiB: not measured (No space left on device)"
    assert set(os.listdir("/proc/self/fd")) == opened
    assert os.listdir(tmp_path) == []


def test_a_file_system_that_is_slow_is_not_measured_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writepieces, "_MAX_SECONDS", -1.0)
    chosen = choose_write_pieces(tmp_path)
    assert str(chosen) == "in pieces of 16 KiB: not measured (it writes too slowly)"


@pytest.mark.parametrize(("ratio", "most"), [(1.0, 256 * KIB), (3.0, 16 * KIB)])
def test_a_volume_writes_new_blocks_in_the_pieces_of_its_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, most: int
) -> None:
    monkeypatch.setattr(writepieces, "_measure", lambda _: ratio)
    bench = Bench(tmp_path)
    bench.write(0, b"a")
    written: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        written.append(len(data))
        return real(fd, data, offset)

    with monkeypatch.context() as watched:
        watched.setattr(os, "pwrite", pwrite)
        run_inline(bench.device().write(MIB, memoryview(b"b" * MIB)))
    assert written[:-1] == [most] * (MIB // most)  # and the journal's record
    die(bench.pool)
