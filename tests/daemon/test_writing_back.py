"""What a gateway does about logs at its start and in the background, without a cluster."""

from __future__ import annotations

import logging
import random
import re
import threading
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

import bockd.cli
from bockd.errors import UnavailableError
from bockd.model import VolumeId
from bockd.pool.caches import LogReach
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Signal, Steps, run_inline
from tests.drivers.local.schedule import Scheduler
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.daemon import writingback  # noqa: E402 - where there are the modules
from bockd.daemon.endwatch import END_SECONDS  # noqa: E402
from bockd.daemon.writingback import (  # noqa: E402
    DRAIN_LOOK_SECONDS,
    DRAIN_SECONDS,
    LAST_NOTE_SECONDS,
    MOST_DRAIN_SECONDS,
    NOTE_SECONDS,
    WritingBack,
)
from bockd.drivers.rbd.leftdirty import Found, drain_all, note_reach  # noqa: E402
from bockd.drivers.rbd.records import DirtyAt, RbdVolumeRecord  # noqa: E402

HERE = "here"
IMAGES = [f"{number:024x}" for number in range(5)]


def record(number: int, dirty_at: DirtyAt | None) -> RbdVolumeRecord:
    return RbdVolumeRecord(
        id=VolumeId(number),
        name=f"v{number}",
        size_bytes=1 << 20,
        created_at=0.0,
        from_snapshot=None,
        failed=None,
        image=IMAGES[number],
        dirty_at=dirty_at,
    )


class Nodes:
    """What is asked of `OpenNodes`, over records and the names of logs."""

    def __init__(self, *records: RbdVolumeRecord) -> None:
        self.records = {one.id: one for one in records}
        self.volumes: dict[VolumeId, Any] = {}
        self.left_dirty: dict[VolumeId, str] = {}
        self.damaged: tuple[VolumeId, ...] = ()
        self.refusals: dict[VolumeId, str] = {}
        self.discarded: list[str] = []
        self.kept: list[str | None] = []
        self.put_aside: list[Path] = []
        self.noted: list[list[tuple[VolumeId, int, LogReach]]] = []
        self.logs: list[str] = []
        self.threads: list[int] = []
        """In which the disk of the logs was asked."""
        self.known: list[LogReach] = []
        self.not_taken: set[VolumeId] = set()
        """Of which the index takes no note."""
        self.looks = 0
        self.ended = [0]
        """How many requests have got below, from look to look; the last for good."""
        self.fronts = SimpleNamespace(write_backs=self, discard_log=self.discard_log)
        self.session = SimpleNamespace(
            who=SimpleNamespace(gateway=HERE),
            tenures=SimpleNamespace(mark_reach=self.mark_reach),
        )

    def record(self, volume: VolumeId) -> RbdVolumeRecord:
        return self.records[volume]

    def mark_reach(self, found: list[tuple[VolumeId, int, LogReach]]) -> None:
        self.noted.append(found)
        for volume, _, reach in found:
            at = self.records[volume].dirty_at
            if at is not None and volume not in self.not_taken:
                at = at._replace(done=reach.done, synced=reach.synced)
                self.records[volume] = replace(self.records[volume], dirty_at=at)

    async def note_known(self, reach: LogReach) -> None:
        self.known.append(reach)

    def dirty_bytes(self) -> int:
        """One epoch, of which not all is below."""
        return 1 << 20

    def carried_out(self) -> int:
        return self.ended.pop(0) if len(self.ended) > 1 else self.ended[0]

    def images(self) -> list[str]:
        self.threads.append(threading.get_ident())
        return self.logs

    def has(self, image: str, log: str) -> bool:
        self.threads.append(threading.get_ident())
        return image in self.logs and log == "log"

    def look(self) -> None:
        self.looks += 1

    def aside(self) -> list[Path]:
        return self.put_aside

    async def discard_log(self, image: str, *, keep: bool) -> None:
        self.discarded.append(image)
        self.kept.append(image if keep else None)

    def open(self, number: int, epoch: int, reach: LogReach | None) -> None:
        log = SimpleNamespace(reach=lambda: reach, note_known=self.note_known)
        self.volumes[VolumeId(number)] = SimpleNamespace(
            front=SimpleNamespace(log=log), taken=SimpleNamespace(epoch=epoch)
        )


def found(nodes: Nodes, patch: pytest.MonkeyPatch) -> Any:
    """The records, as `find_dirty` returns them."""

    def find_dirty(_nodes: object) -> Found:
        records = nodes.records.values()
        return Found(
            {one.image: one for one in records if one.dirty_at is not None},
            frozenset(one.image for one in records if one.dirty_at is None),
            nodes.damaged,
        )

    patch.setattr(writingback, "find_dirty", find_dirty)
    return nodes


def test_only_logs_of_what_is_dirty_nowhere_are_removed_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what is dirty at another gateway, too: this one may have had its name."""
    nodes = Nodes(
        record(0, DirtyAt(HERE, "log", 1.0)),
        record(1, DirtyAt("other", "log", 1.0)),
        record(2, None),
        record(4, DirtyAt("third", "another log", 1.0)),
    )
    nodes.logs = [*IMAGES, "somebody else's", IMAGES[3] + ".moved"]

    async def main() -> None:
        work = WritingBack(found(nodes, monkeypatch), _spawn, StepRunner())
        await work.begin()
        (said,) = work.waiting()
        assert 'set rbd.gateway = "other" again' in said
        nodes.records[VolumeId(1)] = record(1, None)
        assert work.waiting() == (), "it was discarded"
        nodes.put_aside = [Path("/logs/one.discarded")]
        (said,) = work.waiting()
        assert "kept in /logs/one.discarded until you remove that" in said

    with caplog.at_level(logging.WARNING):
        trio.run(main)
    assert len(nodes.threads) == 3
    assert threading.get_ident() not in nodes.threads, "a disk that hangs stops the daemon's start"
    assert nodes.discarded == [IMAGES[2], IMAGES[3]]
    assert nodes.kept == [IMAGES[2], None], "the other one was deleted"
    assert "is dirty at gateway other, and its log is here" in caplog.text


@pytest.mark.parametrize("damaged", [(), (VolumeId(9),)])
def test_with_a_malformed_record_only_logs_of_what_is_known_to_be_clean_are_removed(
    monkeypatch: pytest.MonkeyPatch, damaged: tuple[VolumeId, ...]
) -> None:
    """It may name any other image."""
    nodes = Nodes(record(0, DirtyAt(HERE, "log", 1.0)), record(2, None))
    nodes.logs, nodes.damaged = [*IMAGES[:4]], damaged
    trio.run(WritingBack(found(nodes, monkeypatch), _spawn, StepRunner()).begin)
    unknown = [] if damaged else [IMAGES[1], IMAGES[3]]
    assert sorted(nodes.discarded) == sorted([IMAGES[2], *unknown])


def _spawn(steps: Steps[None]) -> None:
    run_inline(steps)


def test_how_far_logs_have_come_is_noted_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: Any = Nodes()
    noted: list[float] = []

    async def note(_nodes: object) -> None:
        noted.append(trio.current_time())
        if len(noted) == 2:
            raise UnavailableError("the cluster does not answer")
        if len(noted) == 4:
            scope.cancel()

    monkeypatch.setattr(writingback, "note_reach", note)
    scope = trio.CancelScope()

    async def main() -> None:
        with scope:
            await WritingBack(nodes, _spawn, StepRunner()).run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    between = [after - before for before, after in pairwise(noted)]
    assert between == pytest.approx([NOTE_SECONDS] * 3, abs=2.0)
    assert nodes.looks > 3 * NOTE_SECONDS / 2


@pytest.mark.parametrize("hangs", ["nothing", "draining", "noting", "both"])
def test_how_far_logs_have_come_is_noted_at_the_end(
    monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """Of what could not be written back in time; a cluster that hangs ends it, too."""
    nodes: Any = Nodes()
    came = list[str]()

    async def drain(_nodes: object) -> None:
        came.append("drained")
        if hangs in ("draining", "both"):
            await Signal()

    async def note(_nodes: object) -> None:
        came.append("noted")
        if hangs in ("noting", "both"):
            await Signal()

    monkeypatch.setattr(writingback, "drain_all", drain)
    monkeypatch.setattr(writingback, "note_reach", note)
    waited = {"nothing": 0.0, "draining": DRAIN_SECONDS, "noting": LAST_NOTE_SECONDS}
    waited["both"] = DRAIN_SECONDS + LAST_NOTE_SECONDS

    hanging: list[Steps[None]] = []

    def spawn(steps: Steps[None]) -> None:
        try:
            steps.send(None)
        except StopIteration:
            return
        hanging.append(steps)

    async def main() -> None:
        began = trio.current_time()
        await WritingBack(nodes, spawn, StepRunner()).end()
        assert trio.current_time() - began == pytest.approx(waited[hangs], abs=0.5)
        for one in hanging:
            one.close()

    trio.run(main, clock=trio.testing.MockClock(rate=0, autojump_threshold=0))
    assert came == ["drained", "noted"]


def test_the_end_goes_on_as_long_as_requests_get_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes: Any = Nodes()
    looks = int(10 * DRAIN_SECONDS / DRAIN_LOOK_SECONDS)
    nodes.ended = list(range(looks))
    hanging: list[Steps[None]] = []

    def spawn(steps: Steps[None]) -> None:
        with suppress(StopIteration):
            steps.send(None)
            hanging.append(steps)

    async def drain(_nodes: object) -> None:
        await Signal()

    monkeypatch.setattr(writingback, "drain_all", drain)

    async def main() -> None:
        began = trio.current_time()
        await WritingBack(nodes, spawn, StepRunner()).end()
        took = trio.current_time() - began
        assert took == pytest.approx(11 * DRAIN_SECONDS, abs=1.0)
        nodes.ended = list(range(100_000))
        began = trio.current_time()
        await WritingBack(nodes, spawn, StepRunner()).end()
        assert trio.current_time() - began == pytest.approx(MOST_DRAIN_SECONDS)
        for one in hanging:
            one.close()

    trio.run(main, clock=trio.testing.MockClock(rate=0, autojump_threshold=0))


def test_the_end_fits_its_limits() -> None:
    assert DRAIN_SECONDS + LAST_NOTE_SECONDS < END_SECONDS
    unit = (Path(bockd.cli.__file__).parent / "bockd.service").read_text()
    (limit,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(limit) > MOST_DRAIN_SECONDS + LAST_NOTE_SECONDS + 2 * END_SECONDS


def test_volumes_are_drained_together() -> None:
    """One that is slow, or whose placement group hangs, keeps no other from it."""
    drained: list[int] = []
    slow = Signal()

    async def drain(volume: VolumeId) -> None:
        if volume == 0:
            await slow
        drained.append(volume)

    scheduler = Scheduler(random.Random(0))
    nodes: Any = SimpleNamespace(
        volumes={VolumeId(number): None for number in range(20)},
        drain=drain,
        spawn=scheduler.spawn,
    )
    came: list[bool] = []

    async def all_of_them() -> None:
        await drain_all(nodes)
        came.append(True)

    scheduler.start(all_of_them(), lambda: None)

    def settle() -> None:
        while ready := [one for one in scheduler.tasks if one.resume is not None or one.call]:
            scheduler.advance(scheduler.choose(ready))

    settle()
    assert (sorted(drained), came) == (list(range(1, 20)), [])
    slow.fire()
    settle()
    assert (sorted(drained), came) == (list(range(20)), [True])


def test_what_has_not_changed_is_not_noted_again() -> None:
    nodes: Any = Nodes(
        record(0, DirtyAt(HERE, "log0", 1.0, 3, 9)),
        record(1, DirtyAt(HERE, "log1", 1.0, 3, 9)),
        record(2, None),
        record(3, DirtyAt(HERE, "log3", 1.0)),
        record(4, DirtyAt(HERE, "log4", 1.0)),
    )
    nodes.open(0, 10, LogReach("log0", 3, 9))
    nodes.open(1, 11, LogReach("log1", 4, 9))
    nodes.open(2, 12, None)
    nodes.volumes[VolumeId(3)] = SimpleNamespace(front=SimpleNamespace(log=None))
    run_inline(note_reach(nodes))
    assert nodes.noted == [[(VolumeId(1), 11, LogReach("log1", 4, 9))]]
    assert nodes.known == [LogReach("log1", 4, 9)]
    nodes.open(4, 14, LogReach("log4", 4, 9))
    nodes.not_taken.add(VolumeId(4))
    run_inline(note_reach(nodes))
    assert nodes.noted.pop() == [(VolumeId(4), 14, LogReach("log4", 4, 9))]
    assert nodes.known == [LogReach("log1", 4, 9)], "the index does not know of the other one"
    del nodes.volumes[VolumeId(4)]
    del nodes.volumes[VolumeId(1)]
    run_inline(note_reach(nodes))
    assert len(nodes.noted) == 1
