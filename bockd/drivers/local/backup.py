"""A backup of a pool: a directory that is a pool itself, complete or not one at all.

Frozen layers never change but for what nothing shows, so they are copied while volumes are in use.
For a pool that a daemon serves, the daemon freezes each volume first (bockd.daemon.backups); in
the copy of the index each volume then shows what was frozen, and has an empty head.

Order, each step durable before the next:

    1. the index is copied and edited beside its place; data.mdb of an earlier backup goes
    2. layer files are made like their originals; of what did not change since, nothing is read
    3. data.mdb gets its place: the backup is complete

Without data.mdb the directory is refused as a pool. `backup.json` says which files are like which
originals: a stamp of inode, size and time of change of both. It only saves work.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from bockd.directories import FILE_SYSTEMS_OWN, make_durable, make_private
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import cells
from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import Catalogue, LocalVolumeRecord
from bockd.drivers.local.format.fileranges import punch_range
from bockd.drivers.local.format.forgetting import forget_layer, forget_node
from bockd.drivers.local.format.layer import segment_sizes
from bockd.drivers.local.format.layout import Layout, unlink_if_present
from bockd.drivers.local.format.leaf import LEAF_BYTES, LEAVES, leaf_key
from bockd.drivers.local.format.locks import FileLock
from bockd.durable import replace_file, sync_directory, unfinished
from bockd.errors import ConflictError, DamagedError, InvalidRequestError, from_os_error
from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.index.mapsize import read_map_size, write_map_size
from bockd.model import MIB, LayerId, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.records import name_of

STAMPS = "backup.json"
CREDENTIALS_FILE = "credentials.json"
"""What the first start has written (bockd.identity.accounts); it goes with the pool."""

_COPY_BYTES = 1 * MIB

_YOUNG_NS = 2_000_000_000
"""A file that was changed so shortly before it is looked at may be changed again without getting
another time; its stamp is not kept."""

_FICLONE = 0x40049409
"""_IOW(0x94, 9, int) (linux/fs.h)."""

Stamp = tuple[int, int, int]
"""Inode, size and time of change (ns)."""

NOTHING_LEFT_OUT: Mapping[VolumeId, str] = MappingProxyType({})

Show = Callable[[int, int], None]
"""Told how many bytes of how many are done."""


@dataclass
class Stamps:
    """What `backup.json` holds: of which pool it is a backup, and by file name the stamps of the
    original and of the copy when they were alike."""

    pool_created_at: float
    files: dict[str, tuple[Stamp, Stamp]]


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup has done, in layer files and bytes."""

    files: int
    copied_files: int
    """Of them, those that were read; the others had not changed since the last backup."""
    written_bytes: int
    shared_files: int
    """Of those that were read, the ones that the file system shares with the pool (reflinks)."""
    left_out: tuple[str, ...] = ()
    """Names of the volumes in the trash that had failed: what they held is not in the backup."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    layer: LayerId
    file_bytes: int
    blank: bool
    """A head, of which nothing is shown."""


class Backup:
    """One run into the directory `target`, whose lock is held from `begin` to `end`."""

    def __init__(self, store: StoreAccess, target: Path, show: Show) -> None:
        self._store = store
        self._source = store.layout
        self._target = Layout(target)
        self._show = show
        self._done = self._total = self._written = self._copied = self._shared = 0
        self._files = 0
        self._left_out: tuple[str, ...] = ()
        self._lock: FileLock | None = None

    def begin(
        self,
        frozen: Mapping[VolumeId, SnapshotId] | None,
        left_out: Mapping[VolumeId, str] = NOTHING_LEFT_OUT,
        on_unfinished: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over the target, and copy the index. `frozen` has the snapshots that were taken of
        volumes for this backup; None for a pool whose volumes are all closed. `left_out` has
        volumes in the trash of which none could be taken, and why: they show there what their last
        snapshot or their origin shows, and have failed. `on_unfinished` is called before an earlier
        backup in the target is none any more.

        Raises ConflictError, InvalidRequestError (the target), InUseError, NoSpaceError.
        """
        root = self._target.root
        self._refuse_target(root)
        try:
            make_durable(root)
            if not (root / STAMPS).exists():
                # First of all: whoever is interrupted from here on finds a backup to go on with.
                self._stamps = Stamps(self._pool_created_at(), {})
                self._write_stamps()
            for directory in (self._target.locks, self._target.layers, self._target.index):
                make_private(directory)
            make_private(self._target.discarded)
            self._lock = FileLock.acquire(
                self._target.pool_lock, shared=False, held_message=f"the backup {root} is in use"
            )
            self._stamps = self._read_stamps()
            self._wanted = self._copy_index(frozen, left_out)
            on_unfinished()
            unlink_if_present(self._target.index_data)
            unlink_if_present(self._target.index / "lock.mdb")
            sync_directory(self._target.index)
            self._write_stamps()
        except OSError as error:
            raise from_os_error(error, f"writing the backup {root}") from error

    def copy(self) -> None:
        """Make the layer files like their originals. May be interrupted, and begun again later."""
        try:
            self._copy_layers()
            with suppress(FileNotFoundError):
                copied = self._target.root / CREDENTIALS_FILE
                shutil.copy2(self._source.root / CREDENTIALS_FILE, copied)
                _sync_file(copied)
            for directory in (self._target.layers, self._target.journal, self._target.root):
                sync_directory(directory)
        except OSError as error:
            raise from_os_error(error, f"writing the backup {self._target.root}") from error

    def complete(self) -> BackupReport:
        """Make the target a whole pool."""
        fresh = self._target.unfinished_index
        try:
            for name in self._target.journal_segments():
                unlink_if_present(self._target.journal_segment(name))
            os.rename(fresh / "data.mdb", self._target.index_data)
            sync_directory(self._target.index)
            shutil.rmtree(fresh)
            self._write_stamps()
        except OSError as error:
            raise from_os_error(error, f"writing the backup {self._target.root}") from error
        return BackupReport(
            files=self._files,
            copied_files=self._copied,
            written_bytes=self._written,
            shared_files=self._shared,
            left_out=self._left_out,
        )

    def end(self) -> None:
        """Give the target's lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # -- the target --------------------------------------------------------------------------

    def _refuse_target(self, root: Path) -> None:
        source = self._source.root.resolve()
        if root.resolve().is_relative_to(source) or source.is_relative_to(root.resolve()):
            raise InvalidRequestError(f"{root} and the pool {source} lie in one another")
        marks = root / STAMPS
        found = set(root.iterdir()) if root.exists() else set()
        if found - {unfinished(marks), root / FILE_SYSTEMS_OWN} and marks not in found:
            raise ConflictError(f"{root} is not empty and is no backup: choose another directory")

    def _read_stamps(self) -> Stamps:
        try:
            known = msgspec.json.decode((self._target.root / STAMPS).read_bytes(), type=Stamps)
        except (msgspec.DecodeError, msgspec.ValidationError):
            raise ConflictError(
                f"{self._target.root / STAMPS} is damaged: choose another directory, or remove "
                "this one"
            ) from None
        if known.pool_created_at != self._pool_created_at():
            raise ConflictError(
                f"{self._target.root} is a backup of another pool: choose another directory"
            )
        return known

    def _pool_created_at(self) -> float:
        with self._store.index.reading() as txn:
            record = Catalogue(txn).pool()
        assert record is not None
        return record.created_at

    def _write_stamps(self) -> None:
        replace_file(self._target.root / STAMPS, msgspec.json.encode(self._stamps))

    # -- the index ---------------------------------------------------------------------------

    def _copy_index(
        self, frozen: Mapping[VolumeId, SnapshotId] | None, left_out: Mapping[VolumeId, str]
    ) -> list[_Wanted]:
        """Copy the index next to its final place. Return the layers that it names."""
        directory = self._target.unfinished_index
        shutil.rmtree(directory, ignore_errors=True)
        make_private(directory)
        # As large a map as the pool's: who has limited its address space has limited ours.
        map_size = read_map_size(self._source.index)
        for place in (directory, self._target.index):
            write_map_size(place, map_size)
        self._store.index.copy_to(directory / "data.mdb")
        index = LmdbIndex.open(directory, Ballast(self._target.ballast).release)
        try:
            if frozen is None:
                left_out = index.update(_leave_out_trashed)
            else:
                snapshots = dict(frozen)
                index.update(lambda txn: _show_frozen(txn, snapshots, left_out))
            with index.reading() as txn:
                catalogue = Catalogue(txn)
                left_open = [name_of(v) for v in catalogue.volumes() if v.opened]
                if left_open:
                    raise DamagedError(
                        f"volumes cannot be recovered: {', '.join(left_open)}; 'bockd check' says "
                        "why"
                    )
                volumes = list(catalogue.volumes())
                heads = {v.head for v in volumes if frozen is not None or v.id in left_out}
                self._left_out = tuple(name_of(v) for v in volumes if v.id in left_out)
                wanted = [_Wanted(x.id, x.file_bytes, x.id in heads) for x in catalogue.layers()]
        finally:
            index.close()
        unlink_if_present(directory / "lock.mdb")
        _sync_file(directory / "data.mdb")
        sync_directory(directory)
        return wanted

    # -- layers ------------------------------------------------------------------------------

    def _copy_layers(self) -> None:
        files: list[tuple[Path, Path, int, bool]] = []
        for wanted in self._wanted:
            for number, size in enumerate(segment_sizes(wanted.file_bytes)):
                source = self._source.layer_segment(wanted.layer, number)
                target = self._target.layer_segment(wanted.layer, number)
                files.append((source, target, size, wanted.blank))
        self._files = len(files)
        names = {target.name for _, target, _, _ in files}
        for stray in self._target.layers.iterdir():
            if stray.name not in names:
                stray.unlink()
        self._stamps.files = {k: v for k, v in self._stamps.files.items() if k in names}
        sizes = [0 if blank else os.stat(source).st_blocks * 512 for source, _, _, blank in files]
        self._total = sum(sizes)
        saved = time.monotonic()
        for (source, target, size, blank), allocated in zip(files, sizes, strict=True):
            begun_at = self._done
            if blank:
                self._blank(target, size)
            else:
                self._copy_file(source, target)
            self._done = begun_at + allocated
            self._show(self._done, self._total)
            if time.monotonic() - saved > 5:
                self._write_stamps()
                saved = time.monotonic()

    def _blank(self, target: Path, size: int) -> None:
        self._stamps.files.pop(target.name, None)
        unlink_if_present(target)
        with open(target, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.truncate(size)
            os.fsync(file.fileno())

    def _copy_file(self, source: Path, target: Path) -> None:
        name = target.name
        looked_at = time.time_ns()
        before = _stamp(source)
        known = self._stamps.files.pop(name, None)
        if known is not None and known == (before, _stamp_or_none(target)):
            self._stamps.files[name] = known
            return
        self._copied += 1
        reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        writer = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fresh = os.fstat(writer).st_size == 0
            if fresh and _share(reader, writer):
                self._shared += 1
            else:
                os.ftruncate(writer, before[1])
                self._make_alike(reader, writer, before[1], fresh=fresh)
            os.fsync(writer)
        finally:
            os.close(reader)
            os.close(writer)
        if looked_at - before[2] > _YOUNG_NS:
            self._stamps.files[name] = before, _stamp(target)

    def _make_alike(self, reader: int, writer: int, size: int, *, fresh: bool) -> None:
        """Write what differs. Where the original has a hole, so has the copy."""
        at, done = 0, self._done
        while at < size:
            start = _seek(reader, at, os.SEEK_DATA, size)
            if not fresh and start > at and _seek(writer, at, os.SEEK_DATA, size) < start:
                punch_range(writer, at, start - at)
            stop = _seek(reader, start, os.SEEK_HOLE, size)
            while start < stop:
                data = os.pread(reader, min(_COPY_BYTES, stop - start), start)
                if not data:
                    raise DamagedError("a layer became shorter while it was copied")
                if fresh or os.pread(writer, len(data), start) != data:
                    written = 0
                    while written < len(data):
                        written += os.pwrite(writer, data[written:], start + written)
                    self._written += len(data)
                start += len(data)
                done += len(data)
                self._show(done, self._total)
            at = stop


def _show_frozen(
    txn: Transaction, snapshots: Mapping[VolumeId, SnapshotId], left_out: Mapping[VolumeId, str]
) -> None:
    """Let each volume show what its map's parent shows, and forget the snapshots that were taken
    for the backup."""
    catalogue = Catalogue(txn)
    for volume in list(catalogue.volumes()):
        _show_parent(catalogue, volume, left_out.get(volume.id))
    for number in snapshots.values():
        forget_node(txn, catalogue.snapshot(number))


def _leave_out_trashed(txn: Transaction) -> dict[VolumeId, str]:
    """Empty the heads of the volumes in the trash that could not be recovered. Return which, and
    why: nobody can reopen them there, and they need not keep the others from being copied."""
    catalogue = Catalogue(txn)
    left_out: dict[VolumeId, str] = {}
    for volume in list(catalogue.volumes()):
        if volume.opened and volume.trashed is not None:
            left_out[volume.id] = volume.failed or "it could not be recovered"
            _show_parent(catalogue, volume, left_out[volume.id])
    return left_out


def _show_parent(catalogue: Catalogue, volume: LocalVolumeRecord, left_out: str | None) -> None:
    """Let a volume show what its map's parent shows, as if it had just been opened and closed. One
    that was left out, for some reason, has failed as well: nobody is to take that for its data."""
    txn = catalogue.txn
    for number in [number for number, _ in own_leaves(txn, volume.map)]:
        txn.delete(LEAVES, leaf_key(volume.map, number))
    # Heads that a rotation has replaced. No map but this one can lead to them.
    for layer in set(catalogue.layers_of(volume.map)) - {volume.head}:
        forget_layer(txn, layer)
    head = catalogue.layer(volume.head)
    if head.packed:
        catalogue.put_layer(replace(head, cells=0))
        cells.erase_leaves(txn, head.id, 0, -(-head.size_bytes // LEAF_BYTES))
    failed = volume.failed
    if left_out is not None:
        failed = f"a backup of the pool does not have what it held, for it had failed: {left_out}"
    catalogue.put_volume(
        replace(
            volume,
            generation=volume.generation + 1,
            segment=0,
            opened=False,
            failed=failed,
        )
    )


def _share(reader: int, writer: int) -> bool:
    """Let an empty file share the blocks of another one; False where the file system cannot."""
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True


def _seek(fd: int, at: int, whence: int, end: int) -> int:
    try:
        return min(os.lseek(fd, at, whence), end)
    except OSError:  # nothing but a hole up to the end
        return end


def _stamp(path: Path) -> Stamp:
    status: Any = os.stat(path)
    return status.st_ino, status.st_size, status.st_ctime_ns


def _stamp_or_none(path: Path) -> Stamp | None:
    try:
        return _stamp(path)
    except FileNotFoundError:
        return None


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
