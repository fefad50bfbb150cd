"""What the daemon needs of a kind of pool beside the pool contract: preparing, background, end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from bockd.config import Settings
from bockd.control import ClusterInfo, FrozenPool
from bockd.daemon.retrying import Retrying
from bockd.model import VolumeId
from bockd.pool.figures import Figure
from bockd.pool.pool import Pool
from bockd.pool.reports import BackupRecord, FamilyUsage, ScrubStatus
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn, Steps


class ScrubControl(Protocol):
    """Verifying checksums while the pool is served."""

    def begin(self, rate_mib: int | None, *, restart: bool) -> None:
        """Finish the pass in progress, or begin one."""
        ...

    def status(self) -> ScrubStatus:
        """Return how far it is."""
        ...


class BackupControl(Protocol):
    """Holding a pool still while another process copies it."""

    async def begin(self) -> FrozenPool:
        """See Control.begin_backup."""
        ...

    async def end(self, backup: str) -> None:
        """See Control.end_backup."""
        ...

    def made(self) -> tuple[BackupRecord, ...]:
        """See Control.list_backups. Blocks while a small file is read."""
        ...


MeasureUsage = Callable[[Mapping[VolumeId, VolumeId]], Steps[tuple[FamilyUsage, ...]]]
"""Measures what all volumes and snapshots take, given which volumes were made of which others.
Raises DamagedError."""


class GatewayControl(Protocol):
    """The gateways of a pool that several serve. Everything but `author` blocks."""

    @property
    def author(self) -> str:
        """This gateway's name and run, `NAME/RUN`: see `Transaction.author`."""
        ...

    def keep(self) -> None:
        """See to it that the others know of this gateway. Raises InUseError: another daemon has its
        name, and this one must end; BockdError."""
        ...

    def others(self) -> set[str]:
        """Return the runs of all other gateways that are known."""
        ...

    def is_alive(self, author: str) -> bool:
        """Ask whether a run lives. Raises BockdError: nobody can be asked."""
        ...

    def forget(self, author: str) -> None:
        """Remove a run that is gone. Raises BockdError."""
        ...


class BackendKind(Protocol):
    """A kind of pool that a daemon may serve."""

    def check_start(self, settings: Settings, *, is_default: bool) -> None:
        """Return if a daemon may begin: there is a pool, or one may be made. `is_default`: nobody
        has named the data directory. Blocks. Raises BockdError."""
        ...

    async def open(
        self, settings: Settings, spawn: Spawn, runner: StepRunner, retrying: Retrying
    ) -> Backend:
        """Open the pool, creating it where that may be. `spawn` runs background work to its end.
        Raises InUseError when another daemon has it, BockdError."""
        ...


class Backend(Protocol):
    """An open pool of some kind, as the daemon runs it."""

    @property
    def pool(self) -> Pool:
        """The pool."""
        ...

    @property
    def gateways(self) -> GatewayControl | None:
        """None: no other daemon can serve the pool."""
        ...

    @property
    def scrubbing(self) -> ScrubControl | None:
        """None: this kind of pool has no checksums of its own."""
        ...

    @property
    def backups(self) -> BackupControl | None:
        """None: this kind of pool is not copied file by file."""
        ...

    @property
    def usage(self) -> MeasureUsage:
        """What volumes and snapshots take."""
        ...

    @property
    def cluster(self) -> ClusterInfo | None:
        """Where the pool is; None: in the data directory."""
        ...

    @property
    def token_key(self) -> bytes | None:
        """Signs tokens, when this is prepared. None: a key of the data directory does."""
        ...

    @property
    def room_of(self) -> str:
        """What `Pool.room` measures, in words."""
        ...

    async def prepare(self) -> None:
        """Finish what an earlier run left behind, before any frontend opens. Raises BockdError."""
        ...

    def begin_background(self) -> None:
        """Begin the work that an earlier run left in the queue."""
        ...

    async def run(self, written_bytes: Callable[[VolumeId], int]) -> None:
        """Do the background work that lasts, until cancelled. `written_bytes` counts what clients
        have written to a volume."""
        ...

    def begin_end(self) -> None:
        """Note that the daemon ends: frontends are closed now, then `close` and `release` are
        called."""
        ...

    async def close(self) -> None:
        """End background work and close what is open. Nobody uses the pool any more."""
        ...

    def release(self) -> None:
        """Give the pool up. Nothing is open or under way."""
        ...

    def new_data(self) -> str:
        """Return how new data is written, and why, in words."""
        ...

    def waiting(self) -> tuple[str, ...]:
        """Return what background work was put off, and why, in words."""
        ...

    def figures(self) -> list[Figure]:
        """Return what this kind of pool counts and measures of itself. Takes a moment, whatever is
        in the pool. Raises BockdError."""
        ...
