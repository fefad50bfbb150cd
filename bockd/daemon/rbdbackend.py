"""A pool in a Ceph cluster as the daemon runs it (daemon.backend): joining, following, ending.

The data directory has the sockets, the first credentials and a copy of the index; nothing there has
to last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Self

import trio

from bockd.config import Settings
from bockd.config.writeback import WriteBackSettings
from bockd.control import ClusterInfo
from bockd.daemon.datadir import REPLICA, DataDirectory, refuse_local_pool
from bockd.daemon.endwatch import EndWatch
from bockd.daemon.gatewaywork import FOLLOW_SECONDS, GatewayWork
from bockd.daemon.retrying import Retrying
from bockd.daemon.writingback import WritingBack
from bockd.drivers.cache.directory import CacheDirectory
from bockd.drivers.rbd.figures import figures
from bockd.drivers.rbd.inquiry import CERTAIN_SECONDS
from bockd.drivers.rbd.leftdirty import hold_logs, left_since
from bockd.drivers.rbd.pool import RbdPool
from bockd.drivers.rbd.usage import measure_usage
from bockd.drivers.writeback.binding import LoggedPool
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.identity.sharedkey import shared_key
from bockd.model import VolumeId
from bockd.pool.figures import Figure
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn

log = logging.getLogger(__name__)

UNCONFIRMED_SECONDS = CERTAIN_SECONDS - 10.0
"""How long writes are answered from logs without a word from the index, or without a watch of the
bus that would have heard a question by now. Whoever gives up what is
dirty here asks this gateway for `CERTAIN_SECONDS` before (bockd.drivers.rbd.inquiry), so what is
answered is not given up by then: one that is cut off has ended to answer."""

RELEASE_LOOKS = 5
"""How often in a row, every `FOLLOW_SECONDS`, index and bus must be back until this gateway commits
a version of the index itself, and answers writes from logs again after that, if it finds that it
still has what is dirty here. Somebody may be about to give that up:

* This gateway did not hear the last question: the bus was not watched yet when that came, for the
  watch would have heard one since, and has been there for `GAP_SECONDS` at the first of these
  looks. It is decided `LATE_SECONDS` after that question at most, which is less; these looks are
  `LATE_SECONDS` more, for threads that are late.
* What was decided may be committed at any time after that: an operation that has timed out may be
  carried out yet, and a process be stopped before it sends it. But it is for one version of the
  index, which this gateway's commit takes. What comes before that commit this gateway sees; who
  comes after it decides anew, which is too late then."""

_SILENT = (
    "the cluster has not answered for some time, and others may have given up what is dirty here: "
    "writes to volumes with write-back wait for it"
)


def _open_logs(pool: RbdPool, settings: WriteBackSettings, spawn: Spawn) -> None:
    """Have a pool use the directory of logs. Blocks. Raises BockdError."""
    path, identity, rbd = settings.directory, pool.session.index.identity, pool.session.settings
    assert path is not None
    where = f"namespace {rbd.namespace!r} of the Ceph pool {rbd.pool!r} in cluster "
    where += pool.session.cluster.get_fsid()
    write_backs = WriteBackDirectory.open_directory(
        path,
        settings.size_bytes,
        spawn,
        LoggedPool(identity, where, pool.session.tenures.logs_begun),
        volume_bytes=settings.volume_bytes,
    )
    pool.open_nodes.fronts.write_backs = write_backs
    pool.has_log = write_backs.has


class RbdBackend:
    """The `Backend` of a pool in Ceph; its class methods make it a `BackendKind`."""

    scrubbing = None
    backups = None

    def __init__(
        self,
        pool: RbdPool,
        directory: DataDirectory,
        cache: CacheDirectory | None,
        runner: StepRunner,
        spawn: Spawn,
    ) -> None:
        self.pool = pool
        self._cache = cache
        self.token_key: bytes | None = None
        settings = pool.session.settings
        self.room_of = f"the Ceph pool {settings.pool}"
        self.cluster = ClusterInfo(
            id=pool.session.cluster.get_fsid(),
            pool=settings.pool,
            namespace=settings.namespace,
            gateway=pool.identity.gateway,
        )
        self._directory = directory
        self._runner = runner
        self._work = GatewayWork(pool.session)
        nodes = pool.open_nodes
        self._watch = EndWatch(lambda: nodes.unfinished() + nodes.dirty_bytes(), nodes.carried_out)
        self._writing_back = WritingBack(pool.open_nodes, spawn, runner)
        self._held = False
        self._good_looks = RELEASE_LOOKS
        self._confirmed = True
        """This gateway has committed since index and bus are back."""
        self._confirming = False
        self._silences = 0
        """How many looks have found no index or no bus."""
        self.gateways = self._work.gateways
        self.usage = partial(measure_usage, pool.session)

    @staticmethod
    def check_start(settings: Settings, *, is_default: bool) -> None:
        """See BackendKind. Raises InvalidRequestError: there is a local pool in the directory."""
        del is_default
        refuse_local_pool(settings.data_dir)

    @classmethod
    async def open(
        cls, settings: Settings, spawn: Spawn, runner: StepRunner, retrying: Retrying
    ) -> Self:
        """See BackendKind. The pool is in a namespace of a cluster, and made if that is empty."""
        del retrying
        post = trio.lowlevel.current_trio_token().run_sync_soon

        def open_pool() -> tuple[RbdPool, DataDirectory, CacheDirectory | None]:
            with ExitStack() as stack:
                directory = DataDirectory(settings.data_dir)
                stack.callback(directory.release)
                cache = None
                if (path := settings.cache.directory) is not None:
                    cache = CacheDirectory.open(path, settings.cache.size_bytes, spawn)
                    stack.callback(cache.release)
                pool = RbdPool.open(settings.rbd, settings.data_dir / REPLICA, spawn, post)
                stack.callback(pool.release)
                pool.open_nodes.fronts.cache = cache
                if settings.write_back.directory is not None:
                    _open_logs(pool, settings.write_back, spawn)
                stack.pop_all()
            return pool, directory, cache

        return cls(*await trio.to_thread.run_sync(open_pool), runner, spawn)

    async def prepare(self) -> None:
        """Enter the table of gateways, find what is dirty here, and the key that all of them sign
        tokens with."""
        await self._work.enter()
        await self._writing_back.begin()
        self.token_key = await trio.to_thread.run_sync(shared_key, self.pool.index)

    def begin_background(self) -> None:
        """Do nothing: nothing is left in a queue."""

    async def run(self, written_bytes: Callable[[VolumeId], int]) -> None:
        """Follow the index, sweep, flatten, and write back, until cancelled."""
        del written_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work.run)
            nursery.start_soon(self._drop_taken)
            nursery.start_soon(self._writing_back.run)

    async def _drop_taken(self) -> None:
        """See `OpenNodes.drop_taken`. While the index is not heard of, nobody knows that;
        and while the bus is not watched, nobody is told that this gateway lives."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(FOLLOW_SECONDS)
                if self._look():
                    nursery.start_soon(self._confirm)

    def _look(self) -> bool:
        """Return whether this gateway is to `_confirm` itself."""
        # First, so that what was committed before `confirm` is seen before logs go on.
        self.pool.open_nodes.drop_taken()
        self._hold_logs()
        return not (self._confirmed or self._confirming) and self._good_looks >= RELEASE_LOOKS

    async def _confirm(self) -> None:
        """The cluster may hang, and looks go on meanwhile: what they have found counts."""
        self._confirming, silences = True, self._silences
        try:
            is_done = await self._work.confirm()
        finally:
            self._confirming = False
        self._confirmed = is_done and silences == self._silences

    def _hold_logs(self) -> None:
        is_silent = self._work.silent_seconds() > UNCONFIRMED_SECONDS
        self._good_looks = 0 if is_silent else self._good_looks + 1
        if is_silent:
            self._confirmed = False
            self._silences += 1
        held = not self._confirmed
        if held != self._held:
            log.warning("%s", _SILENT if held else "the cluster answers: write-back goes on")
        self._held = held
        hold_logs(self.pool.open_nodes, held=held)

    def begin_end(self) -> None:
        """Watch the end: clients' requests may hang, too."""
        self._watch.begin()

    async def close(self) -> None:
        """Write back what is dirty, for some seconds; then give all volumes back, and close all
        snapshots. When that hangs, end the process."""
        self._watch.begin()
        with trio.CancelScope(shield=True):
            await self._writing_back.end()
            self._watch.clients_left()
            try:
                await self._runner.run(self.pool.close_all())
            finally:
                try:
                    await self._work.leave()
                finally:
                    self._watch.end()

    def release(self) -> None:
        """Leave the pool."""
        self.pool.release()
        if (cache := self.pool.open_nodes.fronts.cache) is not None:
            cache.release()
        if (write_backs := self.pool.open_nodes.fronts.write_backs) is not None:
            write_backs.release()
        self._directory.release()

    def new_data(self) -> str:
        """Return in what pieces new data is written: objects of the cluster."""
        return f"objects of {self.pool.features.hole_bytes >> 20} MiB in Ceph"

    def waiting(self) -> tuple[str, ...]:
        """Return what is flattened, and what was put off."""
        return (*self._work.waiting(), *self._writing_back.waiting())

    def figures(self) -> list[Figure]:
        """Return what is open, what is not written back, and how the cache and the logs do."""
        found = figures(self.pool.open_nodes)
        if self._cache is not None:
            found += self._cache.figures()
        if (write_backs := self.pool.open_nodes.fronts.write_backs) is not None:
            found += write_backs.figures(left_since(self.pool.open_nodes))
        return found
