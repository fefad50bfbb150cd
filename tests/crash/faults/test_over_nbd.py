"""What a client of the NBD server meets when the disk below an open volume fails."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import run_inline
from tests.crash.faults.engine import faulty_laboratory
from tests.crash.faults.mounted import Fault, FaultyDisk, How, faulty_disk
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die
from tests.nbd.server.serving import FixedExports, served


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    with faulty_laboratory(), faulty_disk(tmp_path_factory.mktemp("faults")) as mounted:
        yield mounted


@pytest.fixture
def life(disk: FaultyDisk) -> str:
    return disk.new()


@pytest.fixture
def bench(disk: FaultyDisk, life: str) -> Iterator[Bench]:
    bench = Bench(disk.path(life))
    yield bench
    die(bench.pool)


@contextmanager
def connected(socket_path: Path, **devices: BlockDevice) -> Iterator[dict[str, Any]]:
    """A libnbd handle for each device."""
    with served(FixedExports(dict(devices)), socket_path) as path:
        handles = {}
        for name in devices:
            handles[name] = nbd.NBD()
            handles[name].set_export_name(name)
            handles[name].connect_unix(path)
        yield handles
        for handle in handles.values():
            handle.shutdown()


def refused(call: Callable[[], object]) -> nbd.Error:
    """The client's error; there must be one."""
    with pytest.raises(nbd.Error) as caught:
        call()
    error: nbd.Error = caught.value
    return error


def test_a_read_error_in_one_layer(
    disk: FaultyDisk, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads of the block that the disk does not give fail with EIO, in the volume and in the
    snapshot; the log says where. Everything else is served, and a new write heals the volume."""
    bench.write(0, b"f", 8)
    shot = bench.snapshot("s")
    bench.write(2, b"h")
    snapshot = run_inline(bench.pool.registry.use_snapshot(shot)).snapshot
    run_inline(bench.device().flush())
    frozen = bench.pool.registry.store.layout.layer_segment(snapshot_layer(bench), 0)
    disk.unreadable(frozen, 5 * BLOCK_SIZE, BLOCK_SIZE)
    with connected(tmp_path / "nbd", v=bench.device(), s=snapshot) as clients:
        v, s = clients["v"], clients["s"]
        for number in (0, 1, 3, 4, 6, 7):
            assert v.pread(BLOCK_SIZE, number * BLOCK_SIZE) == b"f" * BLOCK_SIZE
            assert s.pread(BLOCK_SIZE, number * BLOCK_SIZE) == b"f" * BLOCK_SIZE
        assert v.pread(BLOCK_SIZE, 2 * BLOCK_SIZE) == b"h" * BLOCK_SIZE
        for client, called in ((v, "volume 1"), (s, "snapshot 2")):  # as they are served here
            caplog.clear()
            for length, offset in ((BLOCK_SIZE, 5), (512, 5), (3 * BLOCK_SIZE, 4)):
                error = refused(lambda c=client, n=length, at=offset: c.pread(n, at * BLOCK_SIZE))  # type: ignore[misc]
                assert error.errnum == errno.EIO
            said = [record.getMessage() for record in caplog.records]
            assert len(said) == 1, "more than once a minute"
            assert said[0].startswith(f"{called}: a read failed with EIO: reading layer")
            assert str(5 * BLOCK_SIZE) in said[0]
            assert "kernel's log" in said[0]
        # Half a block would have to be completed from what cannot be read.
        assert refused(lambda: v.pwrite(b"n" * 512, 5 * BLOCK_SIZE)).errnum == errno.EIO
        v.pwrite(b"n" * BLOCK_SIZE, 5 * BLOCK_SIZE)
        assert v.pread(3 * BLOCK_SIZE, 4 * BLOCK_SIZE) == b"".join(
            value * BLOCK_SIZE for value in (b"f", b"n", b"f")
        )
        assert refused(lambda: s.pread(BLOCK_SIZE, 5 * BLOCK_SIZE)).errnum == errno.EIO
        disk.unreadable(frozen, 0, 0)
        assert s.pread(8 * BLOCK_SIZE, 0) == b"f" * BLOCK_SIZE * 8


def snapshot_layer(bench: Bench) -> Any:
    """The one layer that is no volume's head."""
    with bench.pool.registry.catalogue() as catalogue:
        heads = {volume.head for volume in catalogue.volumes()}
        (layer,) = (layer.id for layer in catalogue.layers() if layer.id not in heads)
    return layer


@pytest.mark.parametrize("which", ["sync layers", "sync journal"])
def test_the_flush_after_a_failed_sync_is_refused(
    disk: FaultyDisk,
    life: str,
    bench: Bench,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    which: str,
) -> None:
    """The second sync would succeed, for Linux forgets what the first could not write. Other
    volumes go on; reopening serves what was flushed."""
    other = bench.pool.create_volume("other", 1 << 20)
    neighbour = run_inline(bench.pool.registry.use_volume(run_inline(other).id)).volume
    bench.write(0, b"a", 4)
    run_inline(bench.device().flush())
    with connected(tmp_path / "nbd", v=bench.device(), other=neighbour) as clients:
        v, o = clients["v"], clients["other"]
        o.pwrite(b"o" * BLOCK_SIZE, 0)
        v.pwrite(b"b" * BLOCK_SIZE, 0)
        v.pwrite(b"b" * BLOCK_SIZE, 10 * BLOCK_SIZE)
        disk.inject(life, Fault(1 if which == "sync layers" else 3, How.EIO_ONCE))
        assert refused(v.flush).errnum == errno.EIO
        assert disk.positions()[-1] == which
        disk.inject(life, None)
        for call in (
            v.flush,
            lambda: v.pwrite(b"c" * BLOCK_SIZE, 0),
            lambda: v.pwrite(b"c" * BLOCK_SIZE, 0, nbd.CMD_FLAG_FUA),
            lambda: v.trim(BLOCK_SIZE, 0),
            v.flush,
        ):
            error = refused(call)
            assert error.errnum == errno.EIO
        assert "sync" not in disk.positions()
        o.flush()
        assert o.pread(BLOCK_SIZE, 0) == b"o" * BLOCK_SIZE
    assert any("failed: syncing" in record.getMessage() for record in caplog.records)
    reopen(bench)
    assert bench.block(bench.volume, 1) == b"a"
    assert bench.block(bench.volume, 0) in (b"a", b"b")
    device: Volume = bench.device()
    run_inline(device.write(0, memoryview(b"d" * BLOCK_SIZE)))
    run_inline(device.flush())


def reopen(bench: Bench) -> None:
    bench.background.run()
    while bench.pool.registry.volumes[bench.volume].users:
        bench.pool.registry.leave_volume(bench.volume)
    run_inline(bench.pool.reopen_volume(bench.volume))
