"""The server's part above one volume with the fast lane, and above an equal volume without it."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.replies import encoder_for
from bockd.nbd.protocol.transmission import Request, RequestLimits, RequestParser
from bockd.nbd.server import fastlane
from bockd.nbd.server.batch import Batch
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.work import Work, failed
from bockd.runtime.steps import Background, Blocking, Signal, Step, Steps, run_inline
from tests import pagecache
from tests.drivers.local.process import die

SIZE_BYTES = 4 * MIB
PLACES = 16
PLACE_BYTES = SIZE_BYTES // PLACES
WRITTEN = 11
"""Places that are in the head or frozen; the rest were never written."""


_MAP_BYTES = 1 << 30
"""Of the index: sanitizers leave less address space than it takes otherwise."""


ROUND_NS = 1 << 30
"""What everything took that the lane has not answered, as far as statistics know."""


class Line:
    """A connection to the client, whose end of it takes what comes."""

    def __init__(self, send_buffer_bytes: int) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        self._theirs.setblocking(False)

    def heard(self) -> bytes:
        """What has come."""
        parts = []
        with suppress(BlockingIOError):
            while part := self._theirs.recv(1 << 20):
                parts.append(part)
        return b"".join(parts)

    def say(self, data: bytes) -> None:
        self._theirs.sendall(data)

    def hang_up(self) -> None:
        self._theirs.close()

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


class Side:
    """A volume with something in its head, something frozen and something never written, and the
    server's part above it, with the fast lane or without."""

    def __init__(
        self,
        root: Path,
        *,
        compiled: bool,
        structured: bool,
        extended: bool,
        packed: bool | None = None,
    ) -> None:
        self._root = root
        self._background = Background()
        self.pool = LocalPool.open(root, self._background.spawn, map_size_bytes=_MAP_BYTES)
        if packed is not None:
            self.pool.registry.pack = lambda: packed
        record = run_inline(self.pool.create_volume("v", SIZE_BYTES, None))
        self.volume: Volume = run_inline(self.pool.registry.use_volume(record.id)).volume
        self._write(b"f", [0, 1, 2, 3, 4, 5, 6, 7])
        run_inline(self.pool.create_snapshot(record.id, "s"))
        self._write(b"h", list(range(4, WRITTEN)))
        self.content()  # brings the map into memory
        self.statistics = ExportStatistics()
        self.extended = extended
        self._encoder = encoder = encoder_for(structured=structured, extended=extended)
        limits = RequestLimits(
            read_only=False,
            extended=extended,
            chunked=structured,
            allocation=structured,
        )
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(fastlane, "compiled", None)
            self.batch = Batch(self.volume, encoder, limits, self.statistics)
        self.in_lane = 0
        """Requests that the fast lane has served."""

    def _write(self, data: bytes, places: list[int]) -> None:
        for place in places:
            whole = memoryview(data * PLACE_BYTES)
            run_inline(self.volume.write(place * PLACE_BYTES, whole))
            self._background.run()

    def layer(self, place: int) -> Layer:
        """Where a place's blocks are."""
        number, block = divmod(place * PLACE_BYTES // BLOCK_SIZE, LEAF_BLOCKS)
        layer = self.volume.layers.slots[self.volume.map.leaves[number][block]]
        assert layer is not None
        return layer

    def content(self) -> bytes:
        into = bytearray(SIZE_BYTES)
        run_inline(self.volume.read(0, memoryview(into)))
        return bytes(into)

    def content_after_death(self) -> bytes:
        """What the volume holds once the process has died. Nothing is served after it."""
        record = self.volume.durability.record
        die(self.pool)
        self._background = Background()
        self.pool = LocalPool.open(self._root, self._background.spawn)
        self.volume = run_inline(self.pool.registry.use_volume(record.id)).volume
        return self.content()

    def serve(self, stream: bytes, line: Line | None = None) -> tuple[list[bytes], int]:
        """As `Connection` does: the replies, and where what was not served begins. A stream that
        breaks the protocol ends where it does. With a line, the fast lane answers on it."""
        received, replies = memoryview(bytearray(stream)), list[bytes]()
        parser, position, end = RequestParser(extended=self.extended), 0, len(stream)
        while position < end and not self.batch.disconnect:
            turn = fastlane.Turn() if line is None else fastlane.Turn(line.ours.fileno())
            done = self.batch.serve_plain(received, position, end, turn, 128)
            requests, stop = [], position
            if done is not None:
                requests, stop = done.rest, done.position
                self.in_lane += done.reads + done.writes + done.trims
            if line is not None:
                replies.append(line.heard())
            if stop == position:
                try:
                    requests, stop = parser.parse(received, position, end)
                except ProtocolError:
                    break
                if stop == position:
                    break
            position = stop
            missed = self._taken()
            replies += self.serve_requests(requests, received)
            replies += self._complete(missed)
            if parser.large is not None:
                break
        self._background.run()
        return replies, position

    def _taken(self) -> list[Work]:
        """What is in the background, which is the caller's now."""
        works = list(self.batch.background)
        self.batch.background.clear()
        return works

    def serve_requests(self, requests: list[Request], received: memoryview) -> list[bytes]:
        """Serve what the fast lane has left, in as many batches as that takes: one ends with its
        turn, and a slow machine needs more of them. Return the replies."""
        replies, index = list[bytes](), 0
        while True:
            first = index
            index = self.batch.serve(requests, index, received, 128)
            if parts := self.batch.finish():
                replies += [bytes(part) for part in parts]
                self.batch.enter(requests[first:index], 0, ROUND_NS)
            replies += self._complete(self._taken())
            self.batch.large_reads.clear()
            if index == len(requests):
                return replies

    def _complete(self, works: list[Work]) -> list[bytes]:
        """Finish operations side by side: a flush may wait for one that runs."""
        replies = list[bytes]()
        waiting = [(work.steps, work.step) for work in works]
        for work in works:
            self.statistics.answered(work.requests, 0, ROUND_NS)
        while waiting:
            still = list[tuple[Steps[bytes | memoryview], Step]]()
            for steps, step in waiting:
                try:
                    if isinstance(step, Blocking):
                        still.append((steps, _stepped(steps, step)))
                    elif not isinstance(step, Signal) or step.fired:
                        still.append((steps, steps.send(None)))
                    else:
                        still.append((steps, step))
                except StopIteration as done:
                    replies.append(bytes(done.value))
                except BockdError as error:
                    replies.append(failed(self._encoder, self.statistics, works[0].requests, error))
            if all(isinstance(step, Signal) and not step.fired for _, step in still):
                # Not before: a checkpoint waits for reads that are under way.
                self._background.run()
            waiting = still
        return replies

    def close(self) -> None:
        run_inline(self.pool.close_all())
        self.pool.release()


def drop(side: Side) -> None:
    """Have none of a side's data in the page cache. What was written is flushed."""
    for layer in side.volume.layers.slots[2:]:  # 0 is the hole, 1 what is damaged
        assert layer is not None
        layer.evict(0)  # also what is mapped
        for fd in layer.descriptors:
            pagecache.drop(fd)


def _stepped(steps: Steps[bytes | memoryview], step: Blocking[Any]) -> Step:
    """As a driver does."""
    try:
        result = step.call()
    except Exception as error:  # noqa: BLE001 - handed to its rightful owner
        return steps.throw(error)
    return steps.send(result)


@contextmanager
def two_sides(
    *, structured: bool, extended: bool, packed: bool | None = None
) -> Iterator[tuple[Side, Side]]:
    """With the fast lane, and without. Heads that snapshots make are `packed` or raw; what None
    means is the pool's affair."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        with_it, without = [
            Side(
                Path(root),
                compiled=compiled,
                structured=structured,
                extended=extended,
                packed=packed,
            )
            for root, compiled in ((one, True), (other, False))
        ]
        try:
            yield with_it, without
        finally:
            with_it.close()
            without.close()
