"""What goes wrong when one rule of write-back is left out, for the world to notice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.writeback import directory, epochs, recovery, segment, writer
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.drivers.writeback.dirtymap import DirtyMap
from bockd.drivers.writeback.epochs import Epoch, Job
from bockd.drivers.writeback.log import BrokenLogError, Log
from bockd.drivers.writeback.logfiles import LogFiles
from bockd.drivers.writeback.progress import SLOT_BYTES, Progress, ProgressFile
from bockd.drivers.writeback.records import Header, Kind
from bockd.drivers.writeback.segment import Segment
from bockd.drivers.writeback.way import Way
from bockd.drivers.writeback.writer import Writer
from bockd.durable import sync_directory
from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE
from bockd.pool.caches import LogReach

Mutation = Callable[[pytest.MonkeyPatch], None]


def nothing(_patch: pytest.MonkeyPatch) -> None:
    """Leave no rule out."""


async def _at_once(*_arguments: object) -> None:
    """Wait for nothing."""


def _flush_without_sync(patch: pytest.MonkeyPatch) -> None:
    """A flush is answered though the log is not synced."""
    patch.setattr(Segment, "sync", lambda _self: None)


def _epochs_are_joined(patch: pytest.MonkeyPatch) -> None:
    """Two epochs are sent as if there were no barrier between them."""
    ready = Log.ready

    def joined(self: Log) -> Epoch | None:
        dirty = self.records
        if len(dirty.epochs) > 1 and dirty.epochs[1].barrier <= self.synced:
            first, second = dirty.epochs[0], dirty.epochs[1]
            dirty.pieces -= first.map.count + second.map.count
            records = {record.sequence: record for _, _, record in second.map.pieces()}
            for sequence in sorted(records):
                first.map.put(records[sequence])
            first.barrier, first.bytes = second.barrier, first.bytes + second.bytes
            dirty.pieces += first.map.count
            del dirty.epochs[1]
        return ready(self)

    patch.setattr(Log, "ready", joined)


def _no_flush_below(patch: pytest.MonkeyPatch) -> None:
    """An epoch counts as written below when its requests have ended."""

    async def write(self: Writer, epoch: Epoch) -> None:
        await writer._Sending(self, epoch, self._spawn).run()
        while not self.stopped and not self._log.settle(epoch):
            pass

    patch.setattr(Writer, "_write", write)


def _two_epochs_at_once(patch: pytest.MonkeyPatch) -> None:
    """The next epoch is sent together with this one."""
    jobs_of = epochs.jobs_of

    class Sending(writer._Sending):
        def __init__(self, one: Writer, epoch: Epoch, spawn: Any) -> None:
            super().__init__(one, epoch, spawn)
            others = list(one._log.records.epochs)[1:2]
            if others and others[0].barrier <= one._log.synced:
                self._jobs = self._chained(epoch, others[0])

        @staticmethod
        def _chained(one: Epoch, other: Epoch) -> Iterator[Job]:
            theirs = list(jobs_of(other))
            yield from theirs
            yield from jobs_of(one)
            yield from theirs

    patch.setattr(writer, "_Sending", Sending)


def _progress_comes_late(patch: pytest.MonkeyPatch) -> None:
    """Epochs are sent though the progress of the one before is not durable."""
    patch.setattr(Writer, "note", _at_once)


def _progress_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    """The progress is written, and what rests on it is done at once."""
    write = ProgressFile.write

    def unsynced(self: ProgressFile, progress: Progress) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(os, "fdatasync", lambda _fd: None)
            write(self, progress)

    patch.setattr(ProgressFile, "write", unsynced)


def _progress_has_one_slot(patch: pytest.MonkeyPatch) -> None:
    """Each progress is written over the one before."""
    write_all = segment.write_all

    def first_slot(fd: int, data: bytes, at: int) -> None:
        write_all(fd, data, at % SLOT_BYTES)

    patch.setattr("bockd.drivers.writeback.progress.write_all", first_slot)


def _no_checksum(patch: pytest.MonkeyPatch) -> None:
    """What looks like a record is taken for one."""

    def verifies(content: memoryview, at: int, header: Header, _seed: int) -> bool:
        return at + header.size_bytes <= len(content)

    patch.setattr(recovery, "verifies", verifies)
    patch.setattr(segment, "verifies", verifies)


def _answers_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """Writes are answered from a log that the driver does not know of yet."""
    begin = Way._begin

    async def early(self: Way) -> None:
        on_dirty = self._on_dirty

        async def commit(log_id: str) -> None:
            with suppress(BockdError):
                await on_dirty(log_id)

        async def later(log_id: str) -> None:
            self._spawn(commit(log_id))

        self._on_dirty = later
        try:
            await begin(self)
        finally:
            self._on_dirty = on_dirty

    patch.setattr(Way, "_begin", early)


def _tail_stays(patch: pytest.MonkeyPatch) -> None:
    """What a crash has left behind the end of the log is not made zeros."""
    patch.setattr(Segment, "clear_from", lambda _self, _at: None)


def _stale_log_counts(patch: pytest.MonkeyPatch) -> None:
    """A log is used though no record names it."""
    open_one = WriteBackDirectory.open

    async def anyhow(
        self: WriteBackDirectory, below: Any, image: str, dirty: LogReach | None, *more: Any
    ) -> Any:
        for path in self.path.glob(f"{image}.*"):
            if dirty is None and (path / "progress").exists():
                dirty = LogReach(path.name.rpartition(".")[2], 0, 0)
        return await open_one(self, below, image, dirty, *more)

    patch.setattr(WriteBackDirectory, "open", anyhow)


def _passes_a_dirty_log(patch: pytest.MonkeyPatch) -> None:
    """Writes go below while something is dirty."""
    patch.setattr(Log, "may_be_passed", True)


def _begins_beside_writes_below(patch: pytest.MonkeyPatch) -> None:
    """A log begins while writes are on their way below."""
    patch.setattr(Way, "_wait_for_passing", _at_once)


def _frees_first(patch: pytest.MonkeyPatch) -> None:
    """A segment is removed before the progress says that it is not needed."""
    settle = Log.settle

    def early(self: Log, epoch: Epoch) -> bool:
        settled = settle(self, epoch)
        for one in self.segments:
            if one.last_sequence <= self.done and one is not self.segments[-1]:
                one.path.unlink(missing_ok=True)
        return settled

    patch.setattr(Log, "settle", early)


def _segment_has_no_durable_name(patch: pytest.MonkeyPatch) -> None:
    """The directory is not synced when a segment has got its name."""
    patch.setattr(segment, "sync_directory", lambda _path: None)


def _forgets_what_is_newer(patch: pytest.MonkeyPatch) -> None:
    """What is below is read from there, though it was overwritten in the log."""
    forget = DirtyMap.forget

    def all_of(self: DirtyMap, other: DirtyMap, _sequence: int, most: int) -> int:
        return forget(self, other, 1 << 60, most)

    patch.setattr(DirtyMap, "forget", all_of)


def _trims_only(patch: pytest.MonkeyPatch) -> None:
    """Parts of blocks at the edges of a trim are left alone below."""

    def jobs(run: list[Any]) -> Iterator[Job]:
        start, end, kind = run[0][0], run[-1][1], run[0][2].kind
        yield Job(kind, start, end - start, run if kind is Kind.WRITE else [])

    patch.setattr(epochs, "_jobs", jobs)


def _failed_sync_counts(patch: pytest.MonkeyPatch) -> None:
    """A sync that has failed is taken for one that has not."""
    sync = Segment.sync

    def careless(self: Segment) -> None:
        try:
            sync(self)
        except OSError:
            return

    patch.setattr(Segment, "sync", careless)


def _flush_of_a_broken_log(patch: pytest.MonkeyPatch) -> None:
    """A flush is answered though the log could not be synced, and nothing is below."""
    flush = Log.flush

    async def careless(self: Log) -> None:
        try:
            await flush(self)
        except BrokenLogError:
            return

    patch.setattr(Log, "flush", careless)


def _clean_too_early(patch: pytest.MonkeyPatch) -> None:
    """The driver commits that nothing is dirty before that is so."""
    patch.setattr(Way, "_write_all", _at_once)


def _answers_after_the_record(patch: pytest.MonkeyPatch) -> None:
    """A log is used on after the driver was asked to commit that nothing is dirty."""

    class Sticky:
        def __get__(self, one: Log, _kind: type) -> bool:
            return bool(one.__dict__.get("announced"))

        def __set__(self, one: Log, value: bool) -> None:
            one.__dict__["announced"] = value or one.__dict__.get("announced", False)

    patch.setattr(Log, "announced", Sticky(), raising=False)


def _begins_with_an_ending_log(patch: pytest.MonkeyPatch) -> None:
    """A log is used again for which the driver could not commit that nothing is dirty."""
    patch.setattr(Way, "_end_before_another", _at_once)


def _recovery_without_sync(patch: pytest.MonkeyPatch) -> None:
    """What recovery has read counts as synced, and is not."""
    recover = recovery._recover

    def careless(path: Path, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Segment, "sync", lambda _self: None)
            return recover(path, *arguments)

    patch.setattr(recovery, "_recover", careless)


def _recovered_epoch_goes_on(patch: pytest.MonkeyPatch) -> None:
    """What was read back and what is written next are one epoch."""
    flush = Log.flush
    opened = set[Log]()

    async def careless(self: Log) -> None:
        if self.announced or self in opened:
            await flush(self)
        opened.add(self)

    patch.setattr(Log, "flush", careless)


def _writes_below_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """A flush does not flush what went below past the log."""

    def passed(self: Way) -> None:
        self._passing -= 1
        if not self._passing:
            self._turned.fire()

    patch.setattr(Way, "passed", passed)


def _holes_in_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """Neighbours are joined that are none."""

    def joins(run: list[Any], piece: Any) -> bool:
        near = piece[0] - run[-1][1] <= BLOCK_SIZE
        return near and piece[2].kind is run[-1][2].kind

    patch.setattr(epochs, "_joins", joins)


def _trusts_the_page_cache(patch: pytest.MonkeyPatch) -> None:
    """What recovery has read is synced, and not written again before."""
    patch.setattr(Segment, "write_again", lambda _self, _content, _at: None)


def _trusts_the_progress(patch: pytest.MonkeyPatch) -> None:
    """What the progress that was read calls needless is removed, though that may be in memory
    only."""
    write, read = ProgressFile.write, ProgressFile.open
    counts: dict[ProgressFile, int] = {}

    def opened(directory: Path) -> tuple[ProgressFile, Progress]:
        file, progress = read(directory)
        counts[file] = progress.count
        return file, progress

    def new_ones(self: ProgressFile, progress: Progress) -> None:
        if counts.get(self) != progress.count:
            write(self, progress)

    patch.setattr(ProgressFile, "open", staticmethod(opened))
    patch.setattr(ProgressFile, "write", new_ones)


def _removes_in_any_order(patch: pytest.MonkeyPatch) -> None:
    """Of the segments behind the end of a log, recovery removes all, then syncs that."""

    def remove_but(path: Path, needed: list[Segment]) -> None:
        for one in recovery._others(path, [one.path.name for one in needed]):
            one.unlink()
        sync_directory(path)

    patch.setattr(recovery, "_remove_but", remove_but)


def _flush_of_a_drained_log(patch: pytest.MonkeyPatch) -> None:
    """A flush is answered when all is below, though a broken log would be replayed over that."""
    flush = Way.flush

    async def early(self: Way) -> None:
        if self.log is not None and self.log.broken and self.log.clean:
            await self.flush_below()
        else:
            await flush(self)

    patch.setattr(Way, "flush", early)


def _closes_while_files_change(patch: pytest.MonkeyPatch) -> None:
    """A volume is closed while a log of it is made or removed."""

    async def close(_self: LogFiles, closing: Log | None) -> None:
        if closing is not None:
            with suppress(BrokenLogError):
                await closing.flush()
            await closing.close()

    patch.setattr(LogFiles, "close", close)


def _waits_for_another_log(patch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a sequence of a log waits for that of the next log."""

    async def until(self: Way, _current: Log, sequence: int) -> None:
        assert self._writer is not None
        await self._writer.until(sequence)

    patch.setattr(Way, "_until", until)


def flush_needs_the_record(patch: pytest.MonkeyPatch) -> None:
    """A flush that is held fails if the driver cannot commit that nothing is dirty."""
    flush = Way.flush

    async def strict(self: Way) -> None:
        if self.held and self.log is not None and not self.log.clean:
            with suppress(BrokenLogError):
                await self.log.flush()
            await self.become_clean()
        await flush(self)

    patch.setattr(Way, "flush", strict)


def _puts_aside_what_is_below(patch: pytest.MonkeyPatch) -> None:
    """A log that is void is taken for one that was given up."""
    patch.setattr(directory, "has_unwritten", lambda _path: True)


MUTATIONS: dict[str, Mutation] = {
    one.__name__.strip("_"): one
    for one in (
        _flush_without_sync,
        _epochs_are_joined,
        _no_flush_below,
        _two_epochs_at_once,
        _progress_comes_late,
        _progress_is_not_synced,
        _progress_has_one_slot,
        _no_checksum,
        _answers_before_the_record,
        _tail_stays,
        _stale_log_counts,
        _passes_a_dirty_log,
        _begins_beside_writes_below,
        _frees_first,
        _segment_has_no_durable_name,
        _forgets_what_is_newer,
        _trims_only,
        _failed_sync_counts,
        _flush_of_a_broken_log,
        _clean_too_early,
        _answers_after_the_record,
        _begins_with_an_ending_log,
        _recovery_without_sync,
        _recovered_epoch_goes_on,
        _writes_below_do_not_count,
        _holes_in_the_epoch,
        _trusts_the_page_cache,
        _trusts_the_progress,
        _removes_in_any_order,
        _flush_of_a_drained_log,
        _closes_while_files_change,
        _waits_for_another_log,
        _puts_aside_what_is_below,
    )
}

RARE = {
    "answers_after_the_record",
    "begins_with_an_ending_log",
    "begins_beside_writes_below",
    "closes_while_files_change",
    "flush_of_a_drained_log",
    "progress_comes_late",
    "progress_has_one_slot",
    "recovered_epoch_goes_on",
    "recovery_without_sync",
    "removes_in_any_order",
    "trims_only",
    "trusts_the_page_cache",
    "trusts_the_progress",
    "waits_for_another_log",
}
"""Those that do harm in one of dozens or hundreds of lives: `make soak-write-back` plays them."""
