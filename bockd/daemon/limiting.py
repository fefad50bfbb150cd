"""Which limits and device profiles hold for the volumes that are used here (bockd.throttle): those
that the index has.

They are looked up when a client comes and when they are changed here. Where several daemons serve
the pool another one may change them: then they are looked up again and again, too.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.errors import BockdError
from bockd.model import NodeKind, VolumeId
from bockd.profiles.document import check_profile
from bockd.throttle.gates import Applied, Gates
from bockd.validation import check_io_limits

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Between two looks at the limits of volumes that are open; it costs some 0.05 ms for each. The
copy of the index is brought up to date every two seconds (bockd.daemon.gatewaywork), so that other
gateways' limits hold here within three."""


class Limiting:
    """See the module's docstring."""

    def __init__(self, context: StorageContext, gates: Gates) -> None:
        self._context = context
        self._pool = context.pool
        self._gates = gates
        self._known: dict[VolumeId, Applied] = {}
        """What held last for the volumes that are used."""
        self._damaged: set[VolumeId] = set()
        """Those of which that was said."""
        gates.look_up = self.applied

    def applied(self, volume: VolumeId) -> Applied:
        """Return the limits of a volume, as the index has them. Where it does not say, or says what
        cannot be, those that were known last, or none: a damaged record of a tenant must not keep a
        client from its volume."""
        try:
            found = self._recorded(volume)
        except BockdError as error:
            if volume not in self._damaged:
                self._damaged.add(volume)
                log.warning("the limits and profile of volume %s are not known: %s", volume, error)
            return self._known.get(volume, Applied())
        if volume not in self._known:
            used = {volume, *self._gates}
            self._known = {one: known for one, known in self._known.items() if one in used}
            self._damaged &= used
        self._damaged.discard(volume)
        self._known[volume] = found
        return found

    def _recorded(self, volume: VolumeId) -> Applied:
        """Return the limits of a volume from the index. Raises BockdError."""
        with self._pool.nodes() as nodes:
            record = nodes.volume(volume)
            limits = check_io_limits(self._context.limits_of(record))
            profile = None if record.profile is None else check_profile(record.profile)
            ledger = Ledger(nodes.txn)
            owned = ledger.owned_volume(volume)
            if owned is None:
                return Applied(limits, profile=profile)
            tenant = ledger.tenant(owned.tenant)
        of_tenant = check_io_limits(self._context.tenant_limits_of(tenant))
        return Applied(limits, owned.tenant, of_tenant, profile)

    async def run(self) -> None:
        """Follow what other gateways change, until cancelled. Return at once where there can be
        none."""
        while self._pool.features.several_gateways:
            await trio.sleep(LOOK_SECONDS)
            self._gates.refresh(
                volume for volume in self._gates if self._pool.is_open(NodeKind.VOLUME, volume)
            )
