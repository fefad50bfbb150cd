"""What a frontend may ask of the trash; see bockd.blockstorage.contract for what holds for all
methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bockd.blockstorage.contract import EVERYTHING, BlockStorage, Page, Snapshot, TenantId, Volume
from bockd.model import NodeKind
from bockd.pool.reports import Space


@dataclass(frozen=True, slots=True)
class TrashRules:
    """What happens to what is deleted from now on."""

    keep_seconds: float = 0.0
    """For how long it is kept; 0: it is gone at once."""
    counts_in_quota: bool = False
    """Whether the tenant's quota has it meanwhile."""
    full_percent: int = 95
    """How full the pool may be before the oldest is deleted early; 100: never."""

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self.keep_seconds > 0


NO_TRASH = TrashRules()


@dataclass(frozen=True, slots=True)
class TrashedNode:
    """A volume or snapshot in the trash. Ids are those that they had."""

    kind: NodeKind
    node: Volume | Snapshot
    """As it was, with its status; without what the pool has behind it."""
    name: str
    """What it was called in the pool."""
    size_bytes: int
    deleted_at: float
    expires_at: float
    consumes_quota: bool

    @property
    def id(self) -> int:
        """As before and afterwards."""
        return self.node.id

    @property
    def display_name(self) -> str | None:
        """The tenant's name for it."""
        return self.node.display_name


class TrashStorage(Protocol):
    """What tenants have in the trash. Nobody sees what is another one's."""

    @property
    def keep_seconds(self) -> float:
        """For how long what is deleted from now on is kept; 0: it is gone at once."""
        ...

    async def list(self, tenant: TenantId, page: Page = EVERYTHING) -> list[TrashedNode]:
        """List what a tenant has there, by id."""
        ...

    async def show(self, tenant: TenantId, node: int) -> TrashedNode:
        """Return one. Raises NotFoundError for an id that is not there."""
        ...

    async def restore(self, tenant: TenantId, node: int) -> TrashedNode:
        """Make one an ordinary volume or snapshot again, with its id, its status and its data. Its
        name in the pool is another one if that was taken. Raises NotFoundError, OverLimitError
        beyond the tenant's quota."""
        ...

    async def delete(self, tenant: TenantId, node: int) -> None:
        """Delete one for good. Raises NotFoundError."""
        ...

    async def empty(self, tenant: TenantId) -> int:
        """Delete all that a tenant has there for good, one by one, and return how many. What is
        deleted stays so when it raises, or when its caller is cancelled."""
        ...

    async def space(self, tenant: TenantId, node: int) -> Space:
        """Measure what one takes: its exclusive space returns when it is deleted for good."""
        ...


class StorageWithTrash(BlockStorage, Protocol):
    """Block storage and its trash."""

    @property
    def trash(self) -> TrashStorage:
        """What tenants have deleted."""
        ...
