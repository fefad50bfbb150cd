"""What `check` says of an index that does not fit together."""

from __future__ import annotations

from pathlib import Path

from bockd.drivers.local.format.catalogue import LAYERS, Catalogue
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
