"""Where several daemons share an index: bringing it up to date before a client's lookup.

Reading the index is local and may be old. So before a frontend looks something up for a client, the
daemon refreshes the index, and whatever was committed anywhere before the client asked is found.
The index of a pool that one daemon serves is always up to date: there nothing of this is used, and
nothing is awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from api.freshness import Refresh
from bockd.errors import BockdError, DeviceError, UnavailableError
from bockd.nbd.protocol.options import ExportInfo
from bockd.nbd.server.exports import ExportTable, OpenExport
from bockd.pool.pool import Pool
from bockd.publictexts import discretion


def refreshing(pool: Pool) -> Refresh | None:
    """Return what is to be awaited before a lookup in this pool. None: nothing."""
    return Refreshing(pool.index.refresh) if pool.features.several_gateways else None


class Refreshing:
    """Runs refreshes in a thread, one at a time. Calls that come while one runs share the next one:
    the one that runs may have looked before they came."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh
        self._turn = trio.Lock()
        # A thread of its own, of which there is always one: clients' reads may have taken all
        # others.
        self._limiter = trio.CapacityLimiter(1)
        self._begun = 0
        """How many refreshes have begun."""
        self._ended = 0
        """The last one of them that has ended."""
        self._error: BockdError | None = None
        """What that one has raised."""

    async def __call__(self) -> None:
        """See Refresh."""
        needed = self._begun + 1
        async with self._turn:
            if self._ended < needed:
                await self._run()
            if self._error is not None:
                # Others have raised it, too: each begins its own traceback.
                raise self._error.with_traceback(None)

    async def _run(self) -> None:
        self._begun += 1
        error: BockdError | None = None
        try:
            await trio.to_thread.run_sync(self._refresh, limiter=self._limiter)
        except BockdError as raised:
            error = raised
        self._ended, self._error = self._begun, error


class FreshExports:
    """A table of exports (bockd.nbd.server.exports.ExportTable) that is refreshed before each
    lookup."""

    def __init__(self, table: ExportTable, refresh: Refresh) -> None:
        self._table = table
        self._refresh = refresh

    async def list_exports(self) -> Sequence[ExportInfo]:
        """See ExportTable."""
        await self._refresh()
        return await self._table.list_exports()

    async def describe(self, name: str) -> ExportInfo:
        """See ExportTable."""
        await self._refresh()
        return await self._table.describe(name)

    async def open(self, name: str) -> OpenExport:
        """See ExportTable."""
        await self._refresh()
        return await self._table.open(name)


class DiscreetExports:
    """A table of exports for clients over the network, who are told no more of trouble than
    bockd.publictexts says."""

    def __init__(self, table: ExportTable) -> None:
        self._table = table

    async def list_exports(self) -> Sequence[ExportInfo]:
        """See ExportTable."""
        with _discreetly():
            return await self._table.list_exports()

    async def describe(self, name: str) -> ExportInfo:
        """See ExportTable."""
        with _discreetly():
            return await self._table.describe(name)

    async def open(self, name: str) -> OpenExport:
        """See ExportTable."""
        with _discreetly():
            return await self._table.open(name)


@contextmanager
def _discreetly() -> Iterator[None]:
    try:
        yield
    except BockdError as error:
        told = discretion.text(error)
        if told == str(error):
            raise
        family = UnavailableError if isinstance(error, UnavailableError) else DeviceError
        raise family(told) from error


def fresh(table: ExportTable, refresh: Refresh | None) -> ExportTable:
    """Return a table whose lookups are refreshed first, or the table itself if there is no need."""
    return table if refresh is None else FreshExports(table, refresh)
