"""The record of a packed layer: what code from before packed layers makes of it, and ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import msgspec
import pytest

from bockd.drivers.local.format.catalogue import LAYERS, Catalogue, LayerRecord
from bockd.drivers.local.format.layer import SEGMENT_BYTES, Layer, verify_layer
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.errors import DamagedError
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, MAX_VOLUME_BYTES, LayerId, MapId
from bockd.pool.nodes import decode_record
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.packing import pack_layer
from tests.drivers.local.process import die


@dataclass(frozen=True)
class Format3:
    """All that code of format 3 and older knows of a layer. It drops other keys."""

    id: LayerId
    size_bytes: int
    home: MapId


class Frozen:
    """A pool whose volume has a packed layer that is frozen, `id`, with a block in each cell."""

    def __init__(self, root: Path) -> None:
        self.bench = Bench(root)
        self.bench.pool.registry.pack = lambda: False
        self.store = self.bench.pool.registry.store
        for block in range(SIZE // BLOCK_SIZE):
            self.bench.write(block, bytes([1 + block % 250]))
        self.snapshot = self.bench.snapshot("s")
        run_inline(self.bench.pool.close_all())
        with self.bench.pool.registry.catalogue() as catalogue:
            [self.id] = catalogue.layers_of(catalogue.snapshot(self.snapshot).map)
        pack_layer(self.store, self.id, Random(3))
        self.path = self.store.layout.layer_segment(self.id, 0)

    def stored(self) -> bytes:
        with self.store.index.reading() as txn:
            payload = txn.get(LAYERS, id_key(self.id))
        assert payload is not None
        return bytes(payload)

    def store_as(self, payload: bytes) -> None:
        self.store.index.update(lambda txn: txn.put(LAYERS, id_key(self.id), payload))

    def problems(self) -> tuple[str, ...]:
        return check_open_pool(self.store, live=frozenset(), repair=False).problems


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Frozen]:
    made = Frozen(tmp_path / "pool")
    yield made
    die(made.bench.pool)


@pytest.mark.parametrize("length", [0, SIZE, MAX_VOLUME_BYTES // 2 - BLOCK_SIZE, SEGMENT_BYTES])
def test_older_code_finds_a_packed_layer_truncated_whatever_its_length(
    frozen: Frozen, length: int
) -> None:
    """By the rule that it opens, verifies and measures layers by."""
    os.truncate(frozen.path, length)
    old = decode_record(Format3, frozen.stored())
    assert old.id == frozen.id
    with pytest.raises(DamagedError, match=r"is truncated|is missing"):
        Layer.open(frozen.store.layout, old.id, old.size_bytes, writable=False)
    with pytest.raises(DamagedError, match=r"is truncated|is missing"):
        verify_layer(frozen.store.layout, old.id, old.size_bytes)


def test_our_code_goes_by_the_size_of_what_a_packed_layer_is_for(frozen: Frozen) -> None:
    with frozen.bench.pool.registry.catalogue() as catalogue:
        record = catalogue.layer(frozen.id)
        home = catalogue.map(record.home)
    assert record.packed
    assert record.size_bytes == home.size_bytes == SIZE
    assert record.file_bytes == frozen.path.stat().st_size > SIZE
    assert frozen.problems() == ()
    for block in range(0, SIZE // BLOCK_SIZE, 7):
        assert frozen.bench.block(frozen.snapshot, block) == bytes([1 + block % 250])


def test_raw_layer_is_stored_with_its_size(frozen: Frozen) -> None:
    with frozen.bench.pool.registry.catalogue() as catalogue:
        head = catalogue.volume(frozen.bench.volume).head
        record = catalogue.layer(head)
    assert not record.packed
    assert decode_record(Format3, record.encode()).size_bytes == SIZE
    verify_layer(frozen.store.layout, head, SIZE)


def test_record_is_read_as_it_was_stored() -> None:
    raw = LayerRecord(LayerId(7), SIZE, MapId(3))
    for record in (raw, replace(raw, packed=True), replace(raw, packed=True, cells=12)):
        assert LayerRecord.decode(record.encode()) == record


@pytest.mark.parametrize(
    "wrong", [{"size_bytes": SIZE}, {"packed_bytes": 0}, {"packed_bytes": -SIZE}]
)
def test_packed_record_that_older_code_might_read_is_damage(
    frozen: Frozen, wrong: dict[str, int]
) -> None:
    payload = msgspec.json.decode(frozen.stored())
    frozen.store_as(msgspec.json.encode(payload | wrong))
    with (
        frozen.bench.pool.registry.catalogue() as catalogue,
        pytest.raises(DamagedError, match=f"record of the packed layer {frozen.id} is malformed"),
    ):
        catalogue.layer(frozen.id)
    assert any("is malformed" in problem for problem in frozen.problems())


def test_extended_volume_has_its_size_in_the_record_of_its_packed_head(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "pool")
    bench.pool.registry.pack = lambda: True
    bench.snapshot("s")
    run_inline(bench.pool.extend_volume(bench.volume, 2 * SIZE))
    with bench.pool.registry.catalogue() as catalogue:
        head = catalogue.layer(catalogue.volume(bench.volume).head)
        frozen = [x for x in Catalogue(catalogue.txn).layers() if x.id != head.id]
    assert head.packed
    assert head.size_bytes == 2 * SIZE
    assert [x.size_bytes for x in frozen] == [SIZE]
    die(bench.pool)
