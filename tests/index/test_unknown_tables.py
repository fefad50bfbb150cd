"""Pools of older code, and damaged names of tables, before processes that know only some tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

import bockd.cli.checking  # noqa: F401 - declares all tables
from bockd.blockstorage.records import IMAGES, TENANTS
from bockd.drivers.local.format.catalogue import META
from bockd.drivers.local.format.checksums import CHECKSUMS
from bockd.errors import DamagedError
from bockd.index import index as index_module
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.index.tables import Table, declared_tables

Opener = Callable[..., LmdbIndex]


@pytest.fixture
def open_knowing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Open the same index as a process does that knows these tables only."""
    directory = tmp_path / "index"
    directory.mkdir()

    def opened(*known: Table) -> LmdbIndex:
        with monkeypatch.context() as patch:
            patch.setattr(index_module, "declared_tables", lambda: {t.name: t for t in known})
            return LmdbIndex.open(directory, Ballast(tmp_path / "ballast").release)

    return opened


def test_no_name_is_one_byte_from_another() -> None:
    """Or an empty table could be taken for another one whose name is damaged."""
    declared = [name for name in declared_tables() if not name.startswith(b"test-")]
    for one, other in combinations(declared, 2):
        assert len(one) != len(other) or sum(a != b for a, b in zip(one, other, strict=True)) > 1


@pytest.mark.parametrize("used", [False, True])
def test_a_pool_of_older_code_is_opened_by_who_knows_fewer_tables(
    open_knowing: Opener, *, used: bool
) -> None:
    """It lacks a table of ours, and has some that we do not know: empty ones, or not."""
    index = open_knowing(META, TENANTS, IMAGES)
    if used:
        index.update(lambda txn: txn.put(TENANTS, b"k", b"v"))
    index.close()
    index = open_knowing(META, CHECKSUMS)
    with index.reading() as txn:
        assert txn.count(CHECKSUMS) == 0
    index.close()
    index = open_knowing(META, TENANTS, IMAGES, CHECKSUMS)
    with index.reading() as txn:
        assert txn.get(TENANTS, b"k") == (b"v" if used else None)
    index.close()


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("known", [(META, CHECKSUMS), (META, CHECKSUMS, TENANTS, IMAGES)])
def test_a_damaged_name_of_our_own_table_is_noticed(
    open_knowing: Opener, tmp_path: Path, known: tuple[Table, ...], *, used: bool
) -> None:
    index = open_knowing(META, CHECKSUMS, TENANTS, IMAGES)
    if used:
        index.update(lambda txn: txn.put(CHECKSUMS, b"k", b"v"))
    index.close()
    rename(tmp_path / "index" / "data.mdb", CHECKSUMS.name, b"checksuns")
    with pytest.raises(DamagedError, match="has a table b'checksuns', and none named b'checksums'"):
        open_knowing(*known)


def test_a_name_that_is_garbage_is_noticed_by_its_entries(
    open_knowing: Opener, tmp_path: Path
) -> None:
    index = open_knowing(META, CHECKSUMS)
    index.update(lambda txn: txn.put(CHECKSUMS, b"k", b"v"))
    index.close()
    rename(tmp_path / "index" / "data.mdb", CHECKSUMS.name, b"c\xff\xff\xff\xff\xff\xff\xff\xff")
    with pytest.raises(DamagedError, match="and none named b'checksums'"):
        open_knowing(META, CHECKSUMS)


def rename(data: Path, name: bytes, to: bytes) -> None:
    """Also on the pages of older transactions."""
    image = data.read_bytes()
    with data.open("r+b") as file:
        for match in re.finditer(name, image):
            file.seek(match.start())
            file.write(to)
