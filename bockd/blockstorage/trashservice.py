"""The trash for frontends: each change driven to its end."""

from __future__ import annotations

from contextlib import suppress

from bockd.blockstorage.contract import EVERYTHING, Page, TenantId
from bockd.blockstorage.running import OperationRunner
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashcontract import TrashedNode
from bockd.errors import NotFoundError
from bockd.pool.reports import Space


class PoolTrash:
    """Implements bockd.blockstorage.trashcontract.TrashStorage; see there."""

    def __init__(self, trash: Trash, runner: OperationRunner) -> None:
        self._trash = trash
        self._runner = runner

    @property
    def keep_seconds(self) -> float:
        """See the contract."""
        return self._trash.keep_seconds

    async def list(self, tenant: TenantId, page: Page = EVERYTHING) -> list[TrashedNode]:
        return self._trash.list(tenant, page)

    async def show(self, tenant: TenantId, node: int) -> TrashedNode:
        return self._trash.show(tenant, node)

    async def restore(self, tenant: TenantId, node: int) -> TrashedNode:
        return await self._runner.run(self._trash.restore(tenant, node))

    async def delete(self, tenant: TenantId, node: int) -> None:
        await self._runner.run(self._trash.delete(tenant, node))

    async def empty(self, tenant: TenantId) -> int:
        deleted = 0
        for record in await self._runner.run(self._trash.all_of(tenant)):
            # Of ten thousand the last may be minutes away: the daemon's end does not wait for it.
            await self._runner.checkpoint()
            with suppress(NotFoundError):  # somebody has restored it, or was faster
                await self._runner.run(self._trash.purge(record))
                deleted += 1
        return deleted

    async def space(self, tenant: TenantId, node: int) -> Space:
        return await self._runner.run(self._trash.space(tenant, node))
