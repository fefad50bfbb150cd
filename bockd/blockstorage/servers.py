"""Servers: what the operator has registered or configured, and what is one without that.

A registered server exists for its tenant, or for all. Any other well-formed id is a plain server,
unless only registered ones exist (`StorageContext.strict_servers`); but a server that has a
tenant's volumes never stops to exist for that tenant, so that they can be detached.

Where several gateways share the pool, each has a configuration, and answers for the servers in its
own: the record says whose it is (`Server.gateway`). A virtual machine is reached by the gateway on
its machine alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.working import gateway_of
from bockd.errors import ConflictError, InUseError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import Server, ServerKind
from bockd.pool.index import Transaction
from bockd.runtime.steps import Steps
from bockd.validation import check_server_record

log = logging.getLogger(__name__)


def find_server(ledger: Ledger, tenant: TenantId, server: str, *, strict: bool) -> Server:
    """Return a tenant's server. Raise NotFoundError when it does not exist for the tenant; a server
    that has volumes of the tenant does exist."""
    found = ledger.server(rules.check_server(server))
    if found is not None and found.tenant in (None, tenant):
        return found
    hidden = found is not None or strict
    if hidden and next(ledger.attached(tenant, server), None) is None:
        raise NotFoundError(f"Instance {server} could not be found.")
    return Server(server, ServerKind.PLAIN)


def unreachable(txn: Transaction, server: Server) -> str | None:
    """Return why this gateway plugs no devices into a server: it is a virtual machine on another
    one's machine. None if it may."""
    if server.kind is not ServerKind.VM or txn.author is None or server.gateway is None:
        return None
    if server.gateway == gateway_of(txn.author):
        return None
    return (
        f"server {server.name} is a virtual machine on the machine of gateway {server.gateway}, "
        "which alone reaches it: ask that gateway ('bock gateway list')"
    )


class Servers:
    """The operations on servers: a tenant's (bockd.blockstorage.contract), and the operator's
    (bockd.control)."""

    def __init__(self, context: StorageContext) -> None:
        self._context = context
        self._index = context.pool.index

    # -- what a tenant sees --------------------------------------------------------------------

    def of_tenant(self, tenant: TenantId) -> list[Server]:
        """Return the registered servers that exist for the tenant."""
        return [server for server in self.all() if server.tenant in (None, tenant)]

    def show(self, tenant: TenantId, server: str) -> Server:
        """Return one server of the tenant, registered or not. Raise NotFoundError as `find_server`
        does."""
        with self._index.reading() as txn:
            return find_server(Ledger(txn), tenant, server, strict=self._context.strict_servers)

    # -- what the operator does ----------------------------------------------------------------

    def all(self) -> list[Server]:
        """Return all registered servers, by name."""
        with self._index.reading() as txn:
            return list(Ledger(txn).servers())

    def registered(self, name: str) -> Server:
        """Return one registered server. Raise NotFoundError when the name is not registered."""
        with self._index.reading() as txn:
            return _registered(Ledger(txn), name)

    def add(self, server: Server) -> Steps[Server]:
        """Register a server; `server.tenant` is an id or a name. Raises InvalidRequestError,
        NotFoundError (the tenant), ConflictError when the name is registered already."""
        check_server_record(server)
        now = self._context.pool.clock()

        def change(txn: Transaction) -> Server:
            ledger = Ledger(txn)
            if ledger.server(server.name) is not None:
                raise ConflictError(
                    f"there is a server {server.name!r} already; remove it first to change it"
                )
            tenant = None if server.tenant is None else _tenant(ledger, server.tenant)
            added = replace(server, tenant=tenant, added_at=now)
            if server.kind is ServerKind.VM:
                added = _ours(txn, added)
            ledger.put_server(added)
            hit(Failpoint.SERVER_CHANGED)
            return added

        return self._context.update(change)

    def remove(self, name: str) -> Steps[Server]:
        """Remove a registered server. Raises NotFoundError; InUseError while it has volumes;
        ConflictError for one that is configured, because it would come back."""
        return self._context.update(_remove(name))

    async def configure(self, servers: Sequence[Server]) -> None:
        """Register what the configuration has, at a start, before anybody else changes servers: it
        prevails over what was registered under the same names, and what it has no longer is
        forgotten, unless it has volumes."""
        for server in servers:
            check_server_record(server)
        now = self._context.pool.clock()

        with self._index.reading() as txn:
            pairs = _configured(txn, servers, now, log.warning)
        if all(old == new for old, new in pairs):
            return

        def change(txn: Transaction) -> None:
            ledger = Ledger(txn)
            for old, new in _configured(txn, servers, now, _say_nothing):
                if old == new:
                    continue
                if new is not None:
                    ledger.put_server(new)
                elif old is not None:
                    ledger.remove_server(old)
            hit(Failpoint.SERVER_CHANGED)

        await self._context.update(change)


def _say_nothing(*_text: object) -> None:
    """It was said when the configuration was looked at first."""


def _ours(txn: Transaction, server: Server) -> Server:
    """A server that this gateway answers for."""
    return replace(server, gateway=None if txn.author is None else gateway_of(txn.author))


def _configured(
    txn: Transaction, servers: Sequence[Server], now: float, warn: Callable[..., None]
) -> list[tuple[Server | None, Server | None]]:
    """What is registered and what shall be, of the configuration's servers now and before. What
    another gateway has configured stays that one's."""
    ledger = Ledger(txn)
    pairs: list[tuple[Server | None, Server | None]] = []
    for server in servers:
        old = ledger.server(server.name)
        if old is not None and unreachable(txn, old):
            warn(
                "server %s of the configuration is a virtual machine of gateway %s already; it "
                "stays that one's",
                server.name,
                old.gateway,
            )
            continue
        new = replace(
            _ours(txn, server),
            tenant=_configured_tenant(ledger, server, warn),
            added_at=now if old is None else old.added_at,
            configured=True,
        )
        same = old is not None and replace(old, gateway=new.gateway) == new
        if not same or server.kind is ServerKind.VM:
            pairs.append((old, new))
    names = {server.name for server in servers}
    here = None if txn.author is None else gateway_of(txn.author)
    ours = [old for old in ledger.servers() if old.configured and old.gateway == here]
    for old in [old for old in ours if old.name not in names]:
        volume = _volume_at(ledger, old.name)
        if volume is not None:
            warn(
                "server %s is not in the configuration any more; it stays registered, because "
                "volume %s is attached to it",
                old.name,
                volume.id,
            )
        pairs.append((old, None if volume is None else replace(old, configured=False)))
    return pairs


def _configured_tenant(
    ledger: Ledger, server: Server, warn: Callable[..., None]
) -> TenantId | None:
    """One who is not known yet may be a project whose first token has not come."""
    if server.tenant is None:
        return None
    try:
        return _tenant(ledger, server.tenant)
    except NotFoundError as error:
        warn("server %s: %s yet; until then nobody has this server", server.name, error)
        return TenantId(server.tenant)


def _tenant(ledger: Ledger, ref: str) -> TenantId:
    for record in ledger.tenants():
        if ref in (record.tenant.id, record.tenant.name):
            return record.tenant.id
    raise NotFoundError(f"no tenant has the id or name {ref[:40]!a}")


def _registered(ledger: Ledger, name: str) -> Server:
    found = ledger.server(name)
    if found is None:
        raise NotFoundError(f"no server {name[:40]!a} is registered")
    return found


def _remove(name: str) -> Callable[[Transaction], Server]:
    def change(txn: Transaction) -> Server:
        ledger = Ledger(txn)
        server = _registered(ledger, name)
        if server.configured:
            raise ConflictError(
                f"server {name} stands in the configuration: take it out of [servers] there, and "
                "restart bockd"
            )
        volume = _volume_at(ledger, name)
        if volume is not None:
            raise InUseError(f"volume {volume.id} is attached to server {name}; detach it first")
        ledger.remove_server(server)
        hit(Failpoint.SERVER_CHANGED)
        return server

    return change


def _volume_at(ledger: Ledger, name: str) -> Volume | None:
    """One that is attached to a server, whoever's it is."""
    for owned in ledger.all_volumes():
        attachment = owned.volume.attachment
        if attachment is not None and attachment.server_id == name:
            return owned.volume
    return None
