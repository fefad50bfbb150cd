"""Volumes of a pool in Ceph that an earlier run of this gateway left dirty, or that it lost while
they were: they are opened and written back in the background, without a client (docs/ceph.md).

A log is removed only if the index says that its volume is dirty nowhere, or gone; one that was
given up with something in it is put aside. One that is of another gateway, because this one had
another name, is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

from bockd.drivers.rbd.leftdirty import drain_all, find_dirty, note_reach, write_back_left
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.drivers.rbd.records import RbdVolumeRecord, same_log
from bockd.drivers.rbd.sweep import is_made_by_bockd
from bockd.drivers.rbd.writebacks import WriteBacks
from bockd.drivers.writeback.segment import log_call
from bockd.errors import BockdError, DamagedError
from bockd.model import VolumeId
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn, Steps, try_spawn

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at what is due; a device makes a barrier of what has waited for so long."""

AGAIN_SECONDS = 10.0
"""Between two attempts to write a volume back."""

NOTE_SECONDS = 60.0
"""From one commit of how far the logs have come to the next: an older log that takes the place of
one is recognized by it."""

DRAIN_SECONDS = 5.0
"""How long the end of the daemon waits for a request to end below. What is left is written back
after the next start."""

MOST_DRAIN_SECONDS = 240.0
"""For how long in all: the service manager gives the end 300 s (TimeoutStopSec= of the unit)."""

LAST_NOTE_SECONDS = 2.0
"""How long the end of the daemon waits for that to be noted once more: the cluster may hang. That
and `DRAIN_SECONDS` are less than the process may stand still (endwatch.END_SECONDS)."""

DRAIN_LOOK_SECONDS = 0.2
"""Between two looks at how far it is."""


class WritingBack:
    """For one gateway."""

    def __init__(self, nodes: OpenNodes, spawn: Spawn, runner: StepRunner) -> None:
        self._nodes = nodes
        self._spawn = spawn
        self._runner = runner
        self._at_work: set[VolumeId] = set()
        self._again_at: dict[VolumeId, float] = {}
        """By trio's clock."""
        self._put_off: dict[VolumeId, str] = {}
        self._noting = False
        self._elsewhere: list[RbdVolumeRecord] = []
        """What was dirty at other gateways at the start, and has its log here."""

    async def begin(self) -> None:
        """Find what earlier runs have left, and remove the logs of what is dirty nowhere. Raises
        BockdError."""
        found = find_dirty(self._nodes)
        write_backs = self._nodes.fronts.write_backs
        if write_backs is None:
            return
        here = self._nodes.session.who.gateway
        images = await self._runner.run(_ask_disk(write_backs.images))
        for image in filter(is_made_by_bockd, images):
            if found.is_void(image):
                keep = image in found.clean  # of what was deleted, nothing is
                await self._runner.run(self._nodes.fronts.discard_log(image, keep=keep))
                continue
            record = found.dirty.get(image)
            if record is None or not record.dirty_elsewhere(here):
                continue
            if await self._runner.run(_ask_disk(_is_at, record, write_backs)):
                self._elsewhere.append(record)
                log.warning("%s", _kept(record))

    async def run(self) -> None:
        """Write back what is left, until cancelled."""
        note_at = trio.current_time() + NOTE_SECONDS
        while True:
            if (write_backs := self._nodes.fronts.write_backs) is not None:
                write_backs.look()
            now = trio.current_time()
            if now >= note_at and not self._noting:
                note_at, self._noting = now + NOTE_SECONDS, True
                if not try_spawn(self._spawn, self._note()):
                    self._noting = False
            for volume in self._nodes.left_dirty.keys() - self._at_work:
                if now < self._again_at.get(volume, now):
                    continue
                if try_spawn(self._spawn, self._write_back(volume)):
                    self._at_work.add(volume)
            await trio.sleep(LOOK_SECONDS)

    async def _note(self) -> None:
        try:
            await note_reach(self._nodes)
        except BockdError as error:
            log.debug("how far the logs have come is not noted: %s", error)
        finally:
            self._noting = False

    async def _write_back(self, volume: VolumeId) -> None:
        try:
            await write_back_left(self._nodes, volume)
        except BockdError as error:
            self._again_at[volume] = trio.current_time() + AGAIN_SECONDS
            if self._put_off.get(volume) != str(error):
                level = logging.ERROR if isinstance(error, DamagedError) else logging.WARNING
                log.log(level, "volume %s is not written back: %s", volume, error)
            self._put_off[volume] = str(error)
        else:
            if self._put_off.pop(volume, None) is not None:
                log.info("volume %s: nothing is left that was not written back", volume)
        finally:
            self._at_work.discard(volume)

    async def end(self) -> None:
        """Write back what is dirty of all that is open, as long as that goes on; then write down
        how far the logs have come of the rest."""
        drained = self._begin(lambda: drain_all(self._nodes))
        with trio.move_on_after(MOST_DRAIN_SECONDS):
            seen, since = self._nodes.carried_out(), trio.current_time()
            while not drained.is_set() and trio.current_time() - since < DRAIN_SECONDS:
                with trio.move_on_after(DRAIN_LOOK_SECONDS):
                    await drained.wait()
                if (found := self._nodes.carried_out()) != seen:
                    seen, since = found, trio.current_time()
        noted = self._begin(self._note)
        with trio.move_on_after(LAST_NOTE_SECONDS):
            await noted.wait()

    def _begin(self, doing: Callable[[], Steps[None]]) -> trio.Event:
        """Begin something that may hang. Return what says that it has ended."""
        done = trio.Event()

        async def do() -> None:
            try:
                await doing()
            finally:
                done.set()

        if not try_spawn(self._spawn, do()):
            done.set()
        return done

    def waiting(self) -> tuple[str, ...]:
        """Return what is not written back, and why, in words."""
        left = self._nodes.left_dirty.keys() | self._nodes.refusals.keys()
        put_off = (
            f"writing volume {volume} back: {why}"
            for volume, why in self._put_off.items()
            if volume in left
        )
        kept = (_kept(one) for one in self._elsewhere if self._is_as_it_was(one))
        write_backs = self._nodes.fronts.write_backs
        aside = () if write_backs is None else write_backs.aside()
        given_up = (f"discarded writes are kept in {one} until you remove that" for one in aside)
        return (*put_off, *kept, *given_up)

    def _is_as_it_was(self, seen: RbdVolumeRecord) -> bool:
        try:
            return same_log(self._nodes.record(seen.id).dirty_at, seen.dirty_at)
        except BockdError:
            return False


async def _ask_disk(question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the disk of the logs something, in a thread: it may hang. Raises what `question` does."""
    return await log_call(question, *args, **kwargs)


def _is_at(record: RbdVolumeRecord, write_backs: WriteBacks) -> bool:
    """Return whether the very log is here that a volume is dirty in. Blocks."""
    return record.dirty_at is not None and write_backs.has(record.image, record.dirty_at.log)


def _kept(record: RbdVolumeRecord) -> str:
    assert record.dirty_at is not None
    name = record.dirty_at.gateway
    return (
        f"volume {record.id} is dirty at gateway {name}, and its log is here: if this gateway "
        f'was {name}, set rbd.gateway = "{name}" again'
    )
