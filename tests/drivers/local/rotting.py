"""A value of the index that changes under LMDB, which does not see that, as on a disk that ages."""

from __future__ import annotations

from bockd.drivers.local.format.leaf import LEAVES
from bockd.index.tables import Table
from tests.drivers.local.bench_pool import Bench


def rot(bench: Bench, key: bytes, table: Table = LEAVES) -> None:
    """Change a bit of what is stored under `key`."""
    opened = bench.pool.index._opened
    assert opened is not None
    with opened.env.begin(write=True) as txn:
        value = txn.get(key, db=opened.tables[table])
        assert value is not None
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=opened.tables[table])
