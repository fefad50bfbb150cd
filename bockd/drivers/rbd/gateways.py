"""The gateways of a pool, as the index lists them.

    GATEWAYS  a gateway's name   GatewayRecord: the run that has this name now
    SHARED    "sweeper"          the run that sweeps (bockd.drivers.rbd.sweep), as NAME/RUN
              "generation"       see bockd.drivers.rbd.making

A gateway writes its record at its start and removes it at its end. Two must not have one name: who
starts and finds its name taken asks that run on the bus, and starts only if it does not answer. One
that hung, and was taken for dead, finds that out by `keep`: another run has its name, and it must
end. Nothing else hangs on the table: who has a volume is a lock of Ceph's.

All of it blocks, but for `all`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import msgspec

from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.messages import author_of
from bockd.drivers.rbd.records import Identity
from bockd.errors import InUseError
from bockd.failpoints import Failpoint, hit
from bockd.index.tables import Table
from bockd.pool.gateways import Addresses, Gateway
from bockd.pool.index import Transaction
from bockd.pool.nodes import decode_record

log = logging.getLogger(__name__)

GATEWAYS = Table(b"gateways")
SHARED = Table(b"shared")

_LAST_NAME = b"\xff" * 256


class Presence(Protocol):
    """What the bus says of other gateways."""

    def is_alive(self, author: str) -> bool:
        """Ask whether a run, `GATEWAY/RUN`, lives. Blocks. Raises BockdError: nobody can be
        asked."""
        ...


class Gateways:
    """The table, for one gateway. From here on its transactions say who makes them."""

    def __init__(
        self, index: SharedIndex, who: Identity, bus: Presence, clock: Callable[[], float]
    ) -> None:
        self.author = author_of(who)
        """This gateway's name and run, `NAME/RUN`."""
        self._index = index
        self._who = who
        self._bus = bus
        self._own = Gateway(name=who.gateway, run=who.run, since=clock())
        index.author = self.author

    # -- this gateway ------------------------------------------------------------------------

    def enter(self) -> None:
        """Write this gateway down. Raises InUseError: another daemon has its name, and lives;
        BockdError: or that cannot be found out."""
        other = self._index.update(self._put)
        while other is not None:
            if self._bus.is_alive(f"{other.name}/{other.run}"):
                raise InUseError(
                    f"a gateway named {other.name!r} serves this pool already"
                    f"{_at(other.addresses)}: give this one a name of its own (rbd.gateway in its "
                    "configuration), or stop that one"
                )
            log.info("gateway %s has not ended in order; this run takes its place", other.name)
            other = self._index.update(partial(self._put, instead_of=other.run))
        hit(Failpoint.GATEWAY_ENTERED)

    def announce(self, addresses: Addresses) -> None:
        """Tell the others where this gateway is reached. Raises InUseError as `keep` does."""
        self._own = replace(self._own, addresses=addresses)
        self.keep()

    def keep(self) -> None:
        """See to it that the table has this gateway as it is; others may have taken it for dead.
        Raises InUseError: another run has its name, and this one must end; BockdError."""
        self._index.refresh()
        with self._index.reading() as txn:
            if gateway(txn, self._own.name) == self._own:
                return
        self._write_down()

    def confirm(self) -> None:
        """Commit that this gateway is there, so that its entry is not what it was before. What
        others have decided on an earlier version of the index, and not committed by then, they
        decide anew, however late it comes, and find that. Raises as `keep` does."""
        self._own = replace(self._own, confirmed=self._own.confirmed + 1)
        self._write_down()

    def _write_down(self) -> None:
        other = self._index.update(self._put)
        if other is not None:
            raise InUseError(
                f"another daemon has taken the name of this gateway, {other.name!r}"
                f"{_at(other.addresses)}, since this one did not answer: it ends, for two of one "
                "name would take volumes from each other"
            )

    def _put(self, txn: Transaction, instead_of: str | None = None) -> Gateway | None:
        """Write this gateway down. Return the one that has its name, if that is another run, and
        not the one to be replaced."""
        other = gateway(txn, self._own.name)
        if other is not None and other.run not in (self._own.run, instead_of):
            return other
        if other != self._own:
            txn.put(GATEWAYS, self._own.name.encode(), msgspec.json.encode(self._own))
        return None

    def leave(self) -> None:
        """Remove this gateway from the table, unless another run has its name. Raises
        BockdError."""
        self.forget(self.author)

    # -- the others --------------------------------------------------------------------------

    def all(self) -> list[Gateway]:
        """Return all gateways by name."""
        with self._index.reading() as txn:
            return gateways(txn)

    def others(self) -> set[str]:
        """Return the runs of all other gateways, each as `NAME/RUN`."""
        return {f"{one.name}/{one.run}" for one in self.all()} - {self.author}

    def is_alive(self, author: str) -> bool:
        """Ask whether a run lives. Raises BockdError: nobody can be asked."""
        return self._bus.is_alive(author)

    def forget(self, author: str) -> None:
        """Remove a run that is gone from the table. Raises BockdError."""
        name, _, run = author.rpartition("/")

        def change(txn: Transaction) -> None:
            found = gateway(txn, name)
            if found is not None and found.run == run:
                txn.delete(GATEWAYS, name.encode())

        self._index.update(change)


def gateway(txn: Transaction, name: str) -> Gateway | None:
    """Return a gateway by its name, or None. Raises DamagedError."""
    payload = txn.get(GATEWAYS, name.encode())
    return None if payload is None else decode_record(Gateway, payload)


def gateways(txn: Transaction) -> list[Gateway]:
    """Return all gateways by name. Raises DamagedError."""
    found = txn.scan(GATEWAYS, b"\0", _LAST_NAME)
    return [decode_record(Gateway, payload) for _, payload in found]


def _at(addresses: Addresses) -> str:
    places = [place for place in (addresses.api, addresses.nbd) if place]
    return f" (at {', '.join(places)})" if places else ""
