"""The pool's format: an older one is taken over at once, a newer one is refused and left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bockd.drivers.local.format import catalogue
from bockd.drivers.local.format.catalogue import (
    FORMAT,
    FORMAT_WITH_TRASH,
    LAYERS,
    NEWEST_FORMAT,
    OLDEST_FORMAT,
    Catalogue,
    LayerRecord,
    PoolRecord,
)
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.poolfiles import join_store
from bockd.errors import PoolFormatError
from bockd.index.keys import id_key
from bockd.model import MIB, NodeKind
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps, run_inline
from tests.drivers.local.named import volume_named


def nothing(_steps: Steps[None]) -> None:
    raise AssertionError("nothing runs in the background here")


@contextmanager
def opened(root: Path) -> Iterator[LocalPool]:
    pool = LocalPool.open(root, nothing)
    try:
        yield pool
        run_inline(pool.close_all())
    finally:
        pool.release()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A pool with a volume in it."""
    with opened(tmp_path / "pool") as pool:
        run_inline(pool.create_volume("kept", MIB))
    return tmp_path / "pool"


def record_of(root: Path) -> PoolRecord:
    """As a process that joins the pool reads it."""
    store = join_store(Layout(root))
    try:
        with store.index.reading() as txn:
            record = Catalogue(txn).pool()
    finally:
        store.index.close()
    assert record is not None
    return record


def put_format(root: Path, number: int) -> PoolRecord:
    """Make it one of another format; its record."""

    def change(txn: Transaction) -> PoolRecord:
        record = Catalogue(txn).pool()
        assert record is not None
        changed = replace(record, format=number)
        Catalogue(txn).put_pool(changed)
        return changed

    store = join_store(Layout(root))
    try:
        return store.index.update(change)
    finally:
        store.index.close()


@pytest.mark.parametrize("older", range(OLDEST_FORMAT, FORMAT))
def test_a_pool_of_an_older_format_becomes_ours(root: Path, older: int) -> None:
    before = put_format(root, older)
    assert record_of(root) == before  # who only joins it changes nothing
    with opened(root) as pool:
        assert volume_named(pool, "kept")
    assert record_of(root) == replace(before, format=FORMAT)


@pytest.mark.parametrize("older", range(OLDEST_FORMAT, FORMAT))
def test_older_code_refuses_ours(root: Path, monkeypatch: pytest.MonkeyPatch, older: int) -> None:
    refuses(root, monkeypatch, ours=older, found=FORMAT)


def test_a_layer_recorded_by_older_code_is_raw(root: Path) -> None:
    """Its record has neither of the keys that packed layers brought."""

    def as_format_3(txn: Transaction) -> LayerRecord:
        record = next(Catalogue(txn).layers())
        old = {"id": record.id, "size_bytes": record.size_bytes, "home": record.home}
        txn.put(LAYERS, id_key(record.id), msgspec.json.encode(old))
        return record

    store = join_store(Layout(root))
    try:
        written = store.index.update(as_format_3)
    finally:
        store.index.close()
    with opened(root) as pool, pool.registry.catalogue() as known:
        assert known.layer(written.id) == written
        assert not written.packed
        assert written.file_bytes == written.size_bytes == MIB


def test_a_newer_pool_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_format(root, NEWEST_FORMAT + 1)
    refuses(root, monkeypatch, ours=NEWEST_FORMAT, found=NEWEST_FORMAT + 1)


def test_a_pool_without_a_trash_can_still_go_to_older_code(root: Path) -> None:
    """Until something is moved to the trash; and then for good."""
    with opened(root) as pool:
        volume = volume_named(pool, "kept")
    assert record_of(root).format == FORMAT < FORMAT_WITH_TRASH
    with opened(root) as pool:
        run_inline(pool.trash(NodeKind.VOLUME, volume))
    assert record_of(root).format == FORMAT_WITH_TRASH
    with opened(root) as pool:
        run_inline(pool.restore(NodeKind.VOLUME, volume, lambda _nodes, _node: "kept"))
    assert record_of(root).format == FORMAT_WITH_TRASH


def test_older_code_refuses_a_pool_with_a_trash(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(root) as pool:
        run_inline(pool.trash(NodeKind.VOLUME, volume_named(pool, "kept")))
    refuses(root, monkeypatch, ours=FORMAT, found=FORMAT_WITH_TRASH)


def refuses(root: Path, monkeypatch: pytest.MonkeyPatch, *, ours: int, found: int) -> None:
    """By name, and without touching it."""
    monkeypatch.setattr(catalogue, "NEWEST_FORMAT", ours)
    data = Layout(root).index_data
    before = data.read_bytes()
    said = f"^the pool has format {found}, this bockd reads format {ours} and older; use the"
    with pytest.raises(PoolFormatError, match=said):
        LocalPool.open(root, nothing)
    with pytest.raises(PoolFormatError, match=said):
        join_store(Layout(root))
    assert data.read_bytes() == before
