"""The wall clock is set back: times are only for people, and order is by id."""

from __future__ import annotations

from pathlib import Path

from bockd.drivers.local.pool import LocalPool
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.named import snapshot_named
from tests.drivers.local.process import die


def test_a_pool_whose_clock_is_set_back(tmp_path: Path) -> None:
    """Between two snapshots by years, and to before 1970; all of it is as it was, before a death
    and after it."""
    bench = Bench(tmp_path)
    for number, now in enumerate((2e9, 1e9, 0.0, -5e8)):
        bench.pool.registry.clock = lambda now=now: now  # type: ignore[misc]
        bench.write(0, b"%d" % number)
        shot = bench.snapshot(f"s{number}")
        with bench.pool.registry.catalogue() as catalogue:
            assert catalogue.snapshot(shot).created_at == now
    bench.write(0, b"n")
    with bench.pool.registry.catalogue() as catalogue:
        shots = [shot.name for shot in catalogue.snapshots()]
    assert shots == ["s0", "s1", "s2", "s3"]
    die(bench.pool)
    bench.background = Background()
    bench.pool = LocalPool.open(tmp_path, bench.background.spawn)
    for number in range(4):
        shot = snapshot_named(bench.pool, f"s{number}")
        assert bench.block(shot, 0) == b"%d" % number
    assert bench.block(bench.volume, 0) == b"n"
    bench.delete(snapshot_named(bench.pool, "s1"))
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    die(bench.pool)
