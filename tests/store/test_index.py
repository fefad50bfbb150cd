"""The index: checksums that cover keys, refusal of truncated files, all-or-nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.errors import DamagedError, PoolFormatError
from bockd.store.ballast import BALLAST_BYTES, Ballast
from bockd.store.index import Index, Table, Transaction, seal, unseal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "index"
    directory.mkdir()
    return directory


def open_index(directory: Path) -> Index:
    return Index.open(directory, Ballast(directory.parent / "ballast"))


def test_values_come_back(directory: Path) -> None:
    index = open_index(directory)
    index.update(lambda txn: txn.put(Table.LEAVES, b"key", b"value"))
    with index.reading() as txn:
        assert txn.get(Table.LEAVES, b"key") == b"value"
        assert txn.get(Table.MAPS, b"key") is None
        assert list(txn.scan(Table.LEAVES, b"", b"\xff")) == [(b"key", b"value")]
    index.close()


@pytest.mark.parametrize("bit", range(8 * 9))
def test_each_flipped_bit_is_noticed(bit: int) -> None:
    stored = bytearray(seal(Table.LEAVES, b"key", b"value"))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedError, match="checksum"):
        unseal(Table.LEAVES, b"key", bytes(stored))


def test_a_value_under_another_key_or_table_is_noticed() -> None:
    stored = seal(Table.LEAVES, b"key", b"value")
    with pytest.raises(DamagedError):
        unseal(Table.LEAVES, b"kez", stored)
    with pytest.raises(DamagedError):
        unseal(Table.MAPS, b"key", stored)


def test_an_exception_changes_nothing(directory: Path) -> None:
    index = open_index(directory)

    def change(txn: Transaction) -> None:
        txn.put(Table.MAPS, b"a", b"1")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        index.update(change)
    with index.reading() as txn:
        assert txn.get(Table.MAPS, b"a") is None
    index.close()


def test_a_truncated_file_is_refused_before_it_is_mapped(directory: Path) -> None:
    index = open_index(directory)

    def fill(txn: Transaction) -> None:
        for i in range(500):
            txn.put(Table.LEAVES, str(i).encode(), bytes(500))

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

        def change(txn: Transaction, n: int = round_number) -> None:
            for i in range(300):
                txn.put(Table.LEAVES, f"{n}/{i}".encode(), bytes(900))
            for i in range(0, 300, 2):
                txn.delete(Table.LEAVES, f"{n}/{i}".encode())

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
    index = Index.open(tmp_path, Ballast(tmp_path / "ballast"))
    index.update(lambda txn: txn.put(Table.META, b"key", b"value"))
    index.close()
    again = Index.open(tmp_path, Ballast(tmp_path / "ballast"))
    with again.reading() as txn:
        assert txn.get(Table.META, b"key") == b"value"
    again.close()
