"""Servers: what the operator has registered, and what is one without that.

A registered server exists for its tenant, or for all. Any other well-formed id is a plain server,
unless only registered ones exist (`Surroundings.strict_servers`); but a server that has a tenant's
volumes never stops to exist for that tenant, so that they can be detached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import Surroundings
from bockd.errors import ConflictError, InUseError, InvalidRequestError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import Server, ServerKind
from bockd.steps import Steps
from bockd.store.index import Transaction

MAX_SOCKET_PATH_BYTES = 107
"""What fits the kernel's `sockaddr_un`."""


def find_server(ledger: Ledger, tenant: TenantId, server: str, *, strict: bool) -> Server:
    """A tenant's server, which may have volumes already; NotFoundError."""
    found = ledger.server(rules.check_server(server))
    if found is not None and found.tenant in (None, tenant):
        return found
    hidden = found is not None or strict
    if hidden and next(ledger.attached(tenant, server), None) is None:
        raise NotFoundError(f"Instance {server} could not be found.")
    return Server(server, ServerKind.PLAIN)


class Servers:
    """The operations on servers: a tenant's (bockd.blockstorage.contract), and the operator's
    (bockd.control)."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._index = around.pool.store.index

    # -- what a tenant sees --------------------------------------------------------------------

    def of_tenant(self, tenant: TenantId) -> list[Server]:
        """The registered ones that exist for the tenant."""
        return [server for server in self.all() if server.tenant in (None, tenant)]

    def show(self, tenant: TenantId, server: str) -> Server:
        """One of them, registered or not."""
        with self._index.reading() as txn:
            return find_server(Ledger(txn), tenant, server, strict=self._around.strict_servers)

    # -- what the operator does ----------------------------------------------------------------

    def all(self) -> list[Server]:
        """All registered servers, by name."""
        with self._index.reading() as txn:
            return list(Ledger(txn).servers())

    def registered(self, name: str) -> Server:
        """One registered server; NotFoundError."""
        with self._index.reading() as txn:
            return _registered(Ledger(txn), name)

    def add(self, server: Server) -> Steps[Server]:
        """Register a server; `server.tenant` is an id or a name. Raises InvalidRequestError,
        NotFoundError (the tenant), ConflictError when the name is registered already."""
        _check(server)
        now = self._around.pool.clock()

        def change(txn: Transaction) -> Server:
            ledger = Ledger(txn)
            if ledger.server(server.name) is not None:
                raise ConflictError(
                    f"there is a server {server.name!r} already; remove it first to change it"
                )
            tenant = None if server.tenant is None else _tenant(ledger, server.tenant)
            added = replace(server, tenant=tenant, added_at=now)
            ledger.put_server(added)
            hit(Failpoint.SERVER_CHANGED)
            return added

        return self._around.update(change)

    def remove(self, name: str) -> Steps[Server]:
        """Forget a registered server. NotFoundError; InUseError while it has volumes."""
        return self._around.update(_remove(name))


def _check(server: Server) -> None:
    if not rules.is_server_id(server.name):
        raise InvalidRequestError(
            f"{server.name[:40]!a} cannot be a server's name: use 1 to 255 letters, digits, "
            "dots, underscores and hyphens"
        )
    if server.kind is not ServerKind.VM:
        if server.qmp_socket is not None:
            raise InvalidRequestError(f"a {server.kind} has no QMP socket; only a vm has")
        return
    if server.qmp_socket is None:
        raise InvalidRequestError("a vm needs the path of its QMP socket")
    if not server.qmp_socket.startswith("/") or "\0" in server.qmp_socket:
        raise InvalidRequestError("the path of the QMP socket must be absolute")
    if len(server.qmp_socket.encode("utf-8", "surrogatepass")) > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequestError(
            f"the path of the QMP socket is longer than {MAX_SOCKET_PATH_BYTES} bytes, "
            "which no Unix socket's is"
        )


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
        for owned in ledger.all_volumes():
            attachment = owned.volume.attachment
            if attachment is not None and attachment.server_id == name:
                raise InUseError(
                    f"volume {owned.volume.id} is attached to server {name}; detach it first"
                )
        ledger.remove_server(server)
        hit(Failpoint.SERVER_CHANGED)
        return server

    return change
