"""What `check` says of an index that does not fit together."""

from __future__ import annotations

from pathlib import Path

from bockd.drivers.local.format.catalogue import LAYERS, Catalogue
from bockd.drivers.local.format.leaf import LEAVES
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.pool import LocalPool
from bockd.index.keys import id_key
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die


def test_an_unclosed_volume_whose_head_is_in_no_record(tmp_path: Path) -> None:
    """Its journal has two segments, so that the head is asked whether its pages are there still."""
    bench = Bench(tmp_path)
    device = bench.device()
    bench.write(0, b"a")
    run_inline(device.durability._seal())
    bench.write(1, b"b")
    die(bench.pool)
    pool = LocalPool.open(tmp_path, Background().spawn)
    with pool.index.reading() as txn:
        head = Catalogue(txn).volume(bench.volume).head
    pool.index.update(lambda txn: txn.delete(LAYERS, id_key(head)))
    report = check_open_pool(pool.registry.store, live=frozenset(), repair=False)
    assert f"volume {bench.volume} writes to layer {head}, which is missing" in report.problems
    die(pool)


def test_nothing_is_punched_while_a_leaf_cannot_be_read(tmp_path: Path) -> None:
    """What it shows may be all that is left of the volume. When it is gone the rest is strays."""
    bench = Bench(tmp_path)
    bench.write(0, b"a", count=3)
    run_inline(bench.pool.close_all())
    store = bench.pool.registry.store
    with store.index.reading() as txn:
        [(key, sound)] = txn.scan(LEAVES, b"", b"\xff" * 13)
    store.index.update(lambda txn: txn.put(LEAVES, key, b"\x07malformed"))
    report = check_open_pool(store, live=frozenset(), repair=True)
    assert not report.clean
    assert report.stray_blocks == 0
    assert [line.split(":")[0] for line in report.repaired] == ["strays were not punched"]

    store.index.update(lambda txn: txn.put(LEAVES, key, sound))
    assert bench.block(bench.volume, 2) == b"a"
    run_inline(bench.pool.close_all())
    store.index.update(lambda txn: txn.delete(LEAVES, key))
    report = check_open_pool(store, live=frozenset(), repair=True)
    assert report.repaired == ("returned 3 stray blocks to the file system",)
    bench.pool.release()


def test_what_only_a_broken_journal_names_outlives_the_repair(tmp_path: Path) -> None:
    """The loss is accepted, but for those who know better the data is there until the next one."""
    bench = Bench(tmp_path)
    bench.write(0, b"a", count=3)
    die(bench.pool)
    layout = bench.pool.registry.store.layout
    with layout.journal_segment(next(iter(layout.journal_segments()))).open("r+b") as segment:
        segment.write(b"\0" * 8)
    pool = LocalPool.open(tmp_path, Background().spawn)
    repaired = check_open_pool(pool.registry.store, live=frozenset(), repair=True).repaired
    lost = "opened without its journal; its latest writes are lost"
    assert repaired == (f"volume {bench.volume}: {lost}",)
    again = check_open_pool(pool.registry.store, live=frozenset(), repair=True).repaired
    assert "returned 3 stray blocks to the file system" in again
    die(pool)
