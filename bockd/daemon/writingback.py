"""Volumes of a pool in Ceph that an earlier run of this gateway left dirty, or that it lost while
they were: they are opened and written back in the background, without a client (docs/ceph.md)."""

from __future__ import annotations

import logging

import trio

from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.errors import BockdError, DamagedError
from bockd.model import VolumeId
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn, try_spawn

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at what is due; a device makes a barrier of what has waited for so long."""

AGAIN_SECONDS = 10.0
"""Between two attempts to write a volume back."""

DRAIN_SECONDS = 8.0
"""How long the end of the daemon waits for what is dirty to be written back. What is left is
written back after the next start; a service manager waits for some time more."""


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

    async def begin(self) -> None:
        """Find what earlier runs have left, and remove what no record names. Raises BockdError."""
        named = self._nodes.find_dirty()
        write_backs = self._nodes.fronts.write_backs
        if write_backs is None:
            return
        for image in write_backs.images():
            if image not in named:
                log.warning("what was written to image %s and not written back is void", image)
                await self._runner.run(write_backs.discard(image))

    async def run(self) -> None:
        """Write back what is left, until cancelled."""
        while True:
            if (write_backs := self._nodes.fronts.write_backs) is not None:
                write_backs.look()
            now = trio.current_time()
            for volume in self._nodes.left_dirty - self._at_work:
                if now < self._again_at.get(volume, now):
                    continue
                if try_spawn(self._spawn, self._write_back(volume)):
                    self._at_work.add(volume)
            await trio.sleep(LOOK_SECONDS)

    async def _write_back(self, volume: VolumeId) -> None:
        try:
            await self._nodes.write_back_left(volume)
        except DamagedError as error:
            log.error("volume %s cannot be written back: %s", volume, error)  # noqa: TRY400
            self._nodes.left_dirty.discard(volume)  # until somebody discards it
            self._put_off[volume] = str(error)
        except BockdError as error:
            self._again_at[volume] = trio.current_time() + AGAIN_SECONDS
            if self._put_off.get(volume) != str(error):
                log.warning("volume %s is not written back: %s", volume, error)
            self._put_off[volume] = str(error)
        else:
            if self._put_off.pop(volume, None) is not None:
                log.info("volume %s: it was not written back, and is now", volume)
        finally:
            self._at_work.discard(volume)

    async def end(self) -> None:
        """Write back what is dirty of all that is open, as far as that is done in time."""
        with trio.move_on_after(DRAIN_SECONDS):
            drained = trio.Event()

            async def drain() -> None:
                try:
                    await self._nodes.drain_all()
                finally:
                    drained.set()

            if try_spawn(self._spawn, drain()):
                await drained.wait()

    def waiting(self) -> tuple[str, ...]:
        """Return what is not written back, and why, in words."""
        left = self._nodes.left_dirty | self._nodes.refusals.keys()
        return tuple(
            f"writing volume {volume} back: {why}"
            for volume, why in self._put_off.items()
            if volume in left
        )
