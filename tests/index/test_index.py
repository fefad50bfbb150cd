"""The index: checksums that cover keys, refusal of truncated files, all-or-nothing changes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import lmdb
import pytest

from bockd.drivers.local.format.catalogue import MAPS, META
from bockd.drivers.local.format.leaf import LEAVES
from bockd.errors import DamagedError, PoolFormatError
from bockd.index.ballast import BALLAST_BYTES, Ballast
from bockd.index.index import LmdbIndex
from bockd.index.transaction import LmdbTransaction, seal, unseal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "index"
    directory.mkdir()
    return directory


def open_index(directory: Path) -> LmdbIndex:
    return LmdbIndex.open(directory, Ballast(directory.parent / "ballast").release)


def test_a_value_comes_back_from_its_table_only(directory: Path) -> None:
    index = open_index(directory)
    index.update(lambda txn: txn.put(LEAVES, b"key", b"value"))
    with index.reading() as txn:
        assert txn.get(LEAVES, b"key") == b"value"
        assert txn.get(MAPS, b"key") is None
        assert list(txn.scan(LEAVES, b"", b"\xff")) == [(b"key", b"value")]
    index.close()


@pytest.mark.parametrize("bit", range(8 * 9))
def test_each_flipped_bit_is_noticed(bit: int) -> None:
    stored = bytearray(seal(LEAVES, b"key", b"value"))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedError, match="checksum"):
        unseal(LEAVES, b"key", bytes(stored))


def test_a_value_under_another_key_or_table_is_noticed() -> None:
    stored = seal(LEAVES, b"key", b"value")
    with pytest.raises(DamagedError):
        unseal(LEAVES, b"kez", stored)
    with pytest.raises(DamagedError):
        unseal(MAPS, b"key", stored)


def test_an_exception_undoes_its_transaction(directory: Path) -> None:
    index = open_index(directory)

    def change(txn: LmdbTransaction) -> None:
        txn.put(MAPS, b"a", b"1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        index.update(change)
    with index.reading() as txn:
        assert txn.get(MAPS, b"a") is None
    index.close()


def test_a_truncated_file_is_refused_before_it_is_mapped(directory: Path) -> None:
    index = open_index(directory)

    def fill(txn: LmdbTransaction) -> None:
        for i in range(500):
            txn.put(LEAVES, str(i).encode(), bytes(500))

    index.update(fill)
    index.close()
    data = directory / "data.mdb"
    os.truncate(data, 16 * 4096)
    with pytest.raises(DamagedError, match="truncated"):
        open_index(directory)


def test_the_file_is_never_shorter_than_its_meta_page_says(directory: Path) -> None:
    """Also after transactions that free what they allocated."""
    index = open_index(directory)
    for round_number in range(20):

        def change(txn: LmdbTransaction, n: int = round_number) -> None:
            for i in range(300):
                txn.put(LEAVES, f"{n}/{i}".encode(), bytes(900))
            for i in range(0, 300, 2):
                txn.delete(LEAVES, f"{n}/{i}".encode())

        index.update(change)
        index.close()
        index = open_index(directory)
    index.close()


def test_a_file_of_something_else_is_refused(directory: Path) -> None:
    (directory / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(PoolFormatError):
        open_index(directory)


def test_the_ballast_is_real_space_and_is_released_once(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast")
    assert ballast.ensure()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= BALLAST_BYTES
    assert ballast.release()
    assert not ballast.release()


def test_an_index_whose_first_sync_failed_is_begun_anew(tmp_path: Path) -> None:
    """LMDB has written its pages, and nothing of them has reached the disk but the length."""
    (tmp_path / "data.mdb").write_bytes(bytes(8 * 4096))
    index = LmdbIndex.open(tmp_path, Ballast(tmp_path / "ballast").release)
    index.update(lambda txn: txn.put(META, b"key", b"value"))
    index.close()
    again = LmdbIndex.open(tmp_path, Ballast(tmp_path / "ballast").release)
    with again.reading() as txn:
        assert txn.get(META, b"key") == b"value"
    again.close()


def leaf_offset(directory: Path, key: bytes) -> int:
    """Where an entry's key lies in data.mdb: in its only page, after one commit."""
    image = (directory / "data.mdb").read_bytes()
    at = image.index(key)
    assert image.find(key, at + 1) < 0
    return at


def damage(directory: Path, at: int, bits: int) -> None:
    with (directory / "data.mdb").open("r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ bits]))


def test_what_may_be_under_a_damaged_key_is_not_absent(directory: Path) -> None:
    """One key is damaged, and keeps its place: between its neighbours nothing is believed."""
    index = open_index(directory)
    names = (b"entry-10", b"entry-20", b"entry-30", b"entry-40")

    def fill(txn: LmdbTransaction) -> None:
        for name in names:
            txn.put(LEAVES, name, b"value")

    index.update(fill)
    index.close()
    damage(directory, leaf_offset(directory, b"entry-20") + 7, 0x02)
    index = open_index(directory)
    with index.reading() as txn:
        assert txn.get(LEAVES, b"entry-10") == b"value"
        assert txn.get(LEAVES, b"entry-40") == b"value"
        assert txn.get(LEAVES, b"entry-00") is None
        assert list(txn.keys(LEAVES, b"entry-30", b"entry-99")) == [b"entry-30", b"entry-40"]
        for missing in (b"entry-11", b"entry-20", b"entry-22", b"entry-29"):
            with pytest.raises(DamagedError, match="checksum"):
                txn.get(LEAVES, missing)
        for looking in (txn.keys, txn.scan):
            with pytest.raises(DamagedError, match="checksum"):
                list(looking(LEAVES, b"entry-12", b"entry-19"))
    with index.examining() as txn:
        assert txn.get(LEAVES, b"entry-20") is None
    index.close()


class _Between:
    """An environment in which something happens as soon as a reader has begun."""

    def __init__(self, env: lmdb.Environment, call: Callable[[], None]) -> None:
        self._env = env
        self._call = call

    def begin(self, *, write: bool) -> lmdb.Transaction:
        begun = self._env.begin(write=write)
        if not write:
            self._call()
        return begun

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)


@pytest.mark.parametrize("how", ["erase", "close_gaps"])
def test_a_gap_that_is_closed_when_a_reader_has_begun_is_there_for_it(
    directory: Path, how: str
) -> None:
    """It sees the index as it was, where what was lost is not absent."""
    index = open_index(directory)

    def fill(txn: LmdbTransaction) -> None:
        for name in (b"entry-10", b"entry-20", b"entry-30"):
            txn.put(LEAVES, name, b"value")

    def close(txn: LmdbTransaction) -> None:
        closing = txn.erase if how == "erase" else txn.close_gaps
        closing(LEAVES, b"entry-11", b"entry-30")

    index.update(fill)
    index.close()
    damage(directory, leaf_offset(directory, b"entry-20") + 7, 0x02)
    index = open_index(directory)
    opened = index._opened
    assert opened is not None
    between = cast(lmdb.Environment, _Between(opened.env, lambda: index.update(close)))
    index._opened = replace(opened, env=between)

    with index.reading() as txn, pytest.raises(DamagedError, match="checksum"):
        txn.get(LEAVES, b"entry-20")

    index._opened = opened
    assert not index.may_miss(LEAVES)
    with index.reading() as txn:
        assert txn.get(LEAVES, b"entry-20") is None
    index.close()


def test_a_page_that_is_not_what_it_should_be_is_refused(directory: Path) -> None:
    index = open_index(directory)
    index.update(lambda txn: txn.put(LEAVES, b"entry-10", b"value"))
    index.close()
    page = leaf_offset(directory, b"entry-10") // 4096 * 4096
    for offset, bits in ((0, 1), (10, 1), (12, 4), (14, 8), (16, 2)):
        damage(directory, page + offset, bits)
        with pytest.raises(DamagedError, match=r"is damaged: .*backup"):
            open_index(directory)
        damage(directory, page + offset, bits)
    open_index(directory).close()


def test_an_older_meta_page_is_not_taken_for_the_newest(directory: Path) -> None:
    """Damage to a transaction's number: what the transaction before it said is history. Not seen
    is a number that falls by two: LMDB leaves such a one when it can't write the meta page."""
    index = open_index(directory)
    index.update(lambda txn: txn.put(LEAVES, b"a", b"value"))
    index.close()
    image = (directory / "data.mdb").read_bytes()
    newest = max(int.from_bytes(image[at : at + 8], "little") for at in (144, 4096 + 144))
    for meta in (0, 4096):
        for bit in range(64):
            if meta == newest % 2 * 4096 and newest ^ 1 << bit == newest - 2:
                continue
            damage(directory, meta + 144 + bit // 8, 1 << bit % 8)
            with pytest.raises(DamagedError, match="transaction"):
                open_index(directory)
            damage(directory, meta + 144 + bit // 8, 1 << bit % 8)


def test_a_table_of_another_name_is_refused(directory: Path) -> None:
    index = open_index(directory)
    index.close()
    image = (directory / "data.mdb").read_bytes()
    for match in re.finditer(b"children", image):  # on pages of older transactions, too
        damage(directory, match.start() + 4, 1)
    with pytest.raises(DamagedError, match="table"):
        open_index(directory)
