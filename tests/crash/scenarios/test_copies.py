"""A pool whose daemon was killed is copied, and the copy is served in the same boot: what was
acknowledged comes back from it, whatever the tool made of the zeros in its files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.drivers.local.format.journalreading import SegmentContents
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import recovery
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Steps, run_inline
from tests.crash.scenarios.serving import BLOCKS, SIZE, Serving, block_of
from tests.crash.storm.mutations import Replacements, break_for_good
from tests.daemon.process import program

ZERO = bytes(BLOCK_SIZE)
NEW = block_of(b"new")


def run(*words: object) -> None:
    subprocess.run([program(str(words[0])), *map(str, words[1:])], check=True)


def cp(*options: str) -> Callable[[Path, Path], None]:
    return lambda pool, copy: run("cp", "-a", *options, pool, copy)


def dug(pool: Path, copy: Path) -> None:
    run("cp", "-a", "--sparse=never", pool, copy)
    for folder in ("layers", "journal"):
        for path in (copy / folder).iterdir():
            if path.is_file():
                run("fallocate", "--dig-holes", path)


def synced(pool: Path, copy: Path) -> None:
    run("rsync", "-aS", f"{pool}/", copy)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "cp -a": cp(),
    "cp --sparse=always": cp("--sparse=always"),
    "cp --sparse=never": cp("--sparse=never"),
    "rsync -S": synced,
    "fallocate -d": dug,
}


class Writer:
    """Writes to a volume all of whose blocks hold "old" in a snapshot's layer, and knows what it
    holds then."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.content = bytearray(block_of(b"old") * BLOCKS)

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self._handle.pwrite(data, offset)

    def run(self) -> None:
        """Blocks become zeros in every way there is."""
        at = BLOCK_SIZE
        self.write(0 * at, ZERO)  # a block that was frozen
        self.write(2 * at, NEW)  # a fresh one: all of it at once, and in parts
        self.write(2 * at, ZERO)
        self.write(4 * at, NEW)
        for sector in range(0, BLOCK_SIZE, 512):
            self.write(4 * at + sector, bytes(512))
        self.write(6 * at, NEW + ZERO + NEW + ZERO * 3 + NEW * 2)  # among others
        self.write(16 * at + 512, ZERO * 2)  # with edges that hold something
        self.write(20 * at, NEW * 3)
        self.write(20 * at + 512, bytes(len(NEW) * 3 - 1024))
        self.write(30 * at, NEW)  # zeros, and then data again
        self.write(30 * at, ZERO)
        self.write(30 * at + 100, b"x")
        self.write(40 * at, (ZERO + NEW) * 128)  # as many records as a write can need
        self.content[320 * at : 330 * at] = ZERO * 10
        self._handle.zero(10 * at, 320 * at, nbd.CMD_FLAG_NO_HOLE)
        self.write(1000 * at, NEW * 20)  # many, where the head has blocks and where it has none
        self.content[990 * at : 1090 * at] = ZERO * 100
        self._handle.zero(100 * at, 990 * at, nbd.CMD_FLAG_NO_HOLE)
        for block in range(400, 410):  # neither are most of these zeros, nor do they look like it
            self.write(block * at, b"\0" + NEW[1:])

    def overwrite_flushed(self) -> None:
        """What was flushed with data becomes zeros: no record is needed, and the head has it."""
        self.write(2 * BLOCK_SIZE, NEW)
        self.write(40 * BLOCK_SIZE, NEW * 16)
        self._handle.flush()
        self.write(2 * BLOCK_SIZE, ZERO)
        self.write(40 * BLOCK_SIZE, ZERO * 8)


Killed = tuple[Path, dict[str, bytes]]
"""A pool whose daemon was killed, and what each of its volumes must hold."""


def write_and_kill(work: Path, prepare: Callable[[], None] | None = None) -> Killed:
    serving = Serving(work / "pool", work / "log", prepare)
    try:
        client = serving.prepared("flushed", "unflushed", "overwritten")
        expected: dict[str, bytes] = {}
        handles = []  # an idle volume would be closed
        for name in ("flushed", "unflushed", "overwritten"):
            handle = client.connect(name)
            handles.append(handle)
            writer = Writer(handle)
            writer.run()
            if name == "flushed":
                handle.flush()
            if name == "overwritten":
                writer.overwrite_flushed()
            expected[name] = bytes(writer.content)
    finally:
        serving.end()
    return serving.pool, expected


def contents(pool_path: Path) -> dict[str, bytes]:
    """Recover all volumes of a pool, and read them."""
    background: list[Steps[None]] = []
    pool = LocalPool.open(pool_path, background.append)
    found: dict[str, bytes] = {}
    try:
        with pool.registry.catalogue() as catalogue:
            volumes = {record.name: record.id for record in catalogue.volumes()}
        for name, number in volumes.items():
            buffer = bytearray(SIZE)
            volume = run_inline(pool.registry.use_volume(number)).volume
            run_inline(volume.read(0, memoryview(buffer)))
            found[name] = bytes(buffer)
        run_inline(pool.close_all())
        for steps in background:
            run_inline(steps)
    finally:
        pool.release()
    return found


def test_what_was_acknowledged_comes_back_from_any_copy(tmp_path: Path) -> None:
    pool, expected = write_and_kill(tmp_path)
    for number, copy_pool in enumerate(TOOLS.values()):
        copy_pool(pool, tmp_path / f"copy-{number}")
    assert {
        tool: differing(contents(tmp_path / f"copy-{number}"), expected)
        for number, tool in enumerate(TOOLS)
    } == {tool: {} for tool in TOOLS}
    assert not differing(contents(pool), expected)


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> dict[str, list[int]]:
    """Blocks that are not what they must be, by volume."""
    assert found.keys() == expected.keys()
    blocks = {
        name: [
            at // BLOCK_SIZE
            for at in range(0, SIZE, BLOCK_SIZE)
            if found[name][at : at + BLOCK_SIZE] != expected[name][at : at + BLOCK_SIZE]
        ]
        for name in expected
    }
    return {name: wrong for name, wrong in blocks.items() if wrong}


def test_files_that_stayed_in_memory_are_not_searched_for_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, expected = write_and_kill(tmp_path)

    def searched(_segments: list[SegmentContents], _head: Layer) -> bool:
        raise AssertionError("searched")

    monkeypatch.setattr(recovery, "find_lost_pages", searched)
    assert not differing(contents(pool), expected)
    run("cp", "-a", pool, tmp_path / "copy")  # closed by now: there is nothing to recover
    assert not differing(contents(tmp_path / "copy"), expected)


def redirects_do_not_say_zeros() -> Replacements:
    real = JournalTail.stage_zeros

    def stage(self: JournalTail, blocks: Sequence[int]) -> None:
        if sys._getframe(1).f_code.co_name == "foretell_zeros":
            real(self, blocks)

    return [(JournalTail, "stage_zeros", stage)]


def overwrites_do_not_say_zeros() -> Replacements:
    return [(Volume, "foretell_zeros", lambda _self, _blocks: None)]


@pytest.mark.parametrize("mutation", [redirects_do_not_say_zeros, overwrites_do_not_say_zeros])
def test_a_copy_needs_the_word_of_the_journal(
    tmp_path: Path, mutation: Callable[[], Replacements]
) -> None:
    """It fails when redirects, or writes in place, leave zeros without a record."""
    pool, expected = write_and_kill(tmp_path, partial(break_for_good, mutation))
    run("cp", "-a", pool, tmp_path / "copy")
    assert differing(contents(tmp_path / "copy"), expected)
    assert not differing(contents(pool), expected)
