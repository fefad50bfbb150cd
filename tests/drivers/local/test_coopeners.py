"""What a process beside the daemon may meet: files that go and come while it looks. The other
process is played by calls that this one's devices are not told of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local import opening
from bockd.drivers.local.coopeners import elsewhere, without_co_openers
from bockd.drivers.local.format.layer import Layer, verify_layer
from bockd.drivers.local.format.layerfiles import unlink_layer
from bockd.drivers.local.format.layout import JournalName, Layout
from bockd.drivers.local.format.locks import FileLock
from bockd.drivers.local.maintenance import merging
from bockd.drivers.local.maintenance.merging import LayerMerger
from bockd.drivers.local.registry import Registry
from bockd.errors import CoOpenersError, DamagedError, InUseError, NotFoundError, PoolFormatError
from bockd.model import BLOCK_SIZE, LayerId, NodeKind, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def ready_to_merge(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """Nine dead layers at home in the volume's map; what the volume holds."""
    expected: dict[int, bytes] = {}
    with monkeypatch.context() as patch:
        patch.setattr(merging, "MAX_DEAD_LAYERS", 1000)
        for number in range(10):
            value = bytes([65 + number])
            bench.write(number * 8, value, 5)
            expected |= {number * 8 + i: value for i in range(5)}
            bench.delete(bench.snapshot(f"gone {number}"))
            bench.reclaim()
    return expected


def merge_elsewhere(bench: Bench) -> LayerId:
    """Merge as another process would: devices open here keep what they know."""
    merger = LayerMerger(bench.pool.registry)
    merge = merger.plan()
    assert merge is not None
    merger._copy(merge)
    merger._redirect(merge)
    merger._forget(merge)
    unlink_layer(bench.pool.registry.store.layout, merge.source.id)
    return merge.source.id


def test_a_layer_goes_while_its_leaves_are_loaded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leaves were read, and the layer that they name is merged into another one before its file
    is opened: they are read again."""
    expected = ready_to_merge(bench, monkeypatch)
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    device = bench.device()
    opened: list[LayerId] = []
    really_open = Layer.open

    def open_late(
        layout: Layout, layer: LayerId, size: int, *, writable: bool, packed: bool
    ) -> Layer:
        if not opened:
            opened.append(layer)
            with monkeypatch.context() as patch:
                patch.setattr(Layer, "open", really_open)
                opened.append(merge_elsewhere(bench))
        return really_open(layout, layer, size, writable=writable, packed=packed)

    monkeypatch.setattr(Layer, "open", open_late)
    buffer = bytearray(BLOCK_SIZE)
    for block, value in expected.items():
        run_inline(device.read(block * BLOCK_SIZE, memoryview(buffer)))
        assert buffer == value * BLOCK_SIZE
    assert opened
    bench.pool.registry.leave_volume(bench.volume)


def test_a_layer_goes_while_a_volume_is_opened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ready_to_merge(bench, monkeypatch)
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    merged: list[LayerId] = []

    def verify_late(layout: Layout, layer: LayerId, size: int) -> None:
        if not merged:
            merged.append(merge_elsewhere(bench))
            layer = merged[0]
        verify_layer(layout, layer, size)

    monkeypatch.setattr(opening, "verify_layer", verify_late)
    for block, value in expected.items():
        assert bench.block(bench.volume, block) == value
    assert merged


def test_a_missing_layer_is_damage_and_named(bench: Bench) -> None:
    bench.write(0, b"a")
    bench.snapshot("s")
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    os.unlink(bench.pool.registry.store.layout.layer_segment(LayerId(1), 0))
    with pytest.raises(DamagedError, match=r"layers/1\.0 is missing"):
        bench.device()


def test_the_index_is_never_cut_short(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our look and our change another process has made data.mdb longer than we would."""
    index, data = bench.pool.index, bench.pool.registry.store.layout.index_data
    longer = data.stat().st_size + (1 << 30)
    really_wants = index._wants_more
    looks: list[int] = []

    def wants_more(env: Any) -> int:
        if not looks:
            looks.append(really_wants(env))
            os.truncate(data, longer)
            return 1 << 20
        return really_wants(env)

    monkeypatch.setattr(index, "_wants_more", wants_more)
    bench.snapshot("s")
    assert looks
    assert data.stat().st_size == longer


def test_a_segment_being_made_elsewhere_is_left(tmp_path: Path) -> None:
    """At the start, what is unfinished goes, but not what the holder of a volume's lock makes."""
    bench = Bench(tmp_path)
    layout, volume = bench.pool.registry.store.layout, bench.volume
    die(bench.pool)
    segments = [JournalName(volume, 7, 0), JournalName(VolumeId(volume + 1), 7, 0)]
    for segment in segments:
        layout.unfinished_segment(segment).touch()
    lock = FileLock.acquire(layout.volume_lock(volume), shared=False, held_message="")
    pool = Registry.open(tmp_path, Background().spawn)
    assert layout.unfinished_segments() == segments[:1]
    pool.release()
    lock.release()
    pool = Registry.open(tmp_path, Background().spawn)
    assert layout.unfinished_segments() == []
    pool.release()


def test_what_another_process_has_open(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It is told from what a dead one left, neither recovered nor refused for good."""
    bench.write(0, b"a")
    store = bench.pool.registry.store
    assert elsewhere(store, {bench.volume}) == frozenset()
    # As if this process had not opened it: the lock is held, whoever holds it.
    opened = bench.pool.registry.volumes.pop(bench.volume)
    assert elsewhere(store, ()) == {bench.volume}
    with caplog.at_level("INFO"):
        run_inline(bench.pool.registry.recover_volumes())
    assert "it is left alone" in caplog.text
    assert bench.pool.registry.refusals == {}
    with pytest.raises(InUseError):
        bench.pool.registry.check_openable(NodeKind.VOLUME, bench.volume)
    opened.lock.release()
    assert elsewhere(store, ()) == frozenset()
    bench.pool.registry.check_openable(NodeKind.VOLUME, bench.volume)
    with without_co_openers(store, needed=True) as live:
        assert live == frozenset()
    guest = FileLock.acquire(store.layout.co_openers_lock, shared=True, held_message="")
    with (
        pytest.raises(CoOpenersError, match="before --repair"),
        without_co_openers(store, needed=True),
    ):
        pass
    with without_co_openers(store, needed=False) as live:
        assert live == frozenset()  # it was left open by a crash: now we hold it
        with pytest.raises(InUseError):
            bench.pool.registry.check_openable(NodeKind.VOLUME, bench.volume)
    guest.release()
    opened.lock = FileLock.acquire(
        store.layout.volume_lock(bench.volume), shared=False, held_message=""
    )
    bench.pool.registry.volumes[bench.volume] = opened


def test_joining_makes_no_pool(tmp_path: Path) -> None:
    with pytest.raises(PoolFormatError, match="there is no pool in"):
        Registry.join(tmp_path, Background().spawn)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_snapshot_cannot_be_opened(bench: Bench) -> None:
    with pytest.raises(NotFoundError):
        bench.pool.registry.check_openable(NodeKind.SNAPSHOT, 99)
