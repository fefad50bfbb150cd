"""Which limits and device profiles hold for the volumes that are used here (bockd.throttle): those
that the index has.

They are looked up when a client comes and when they are changed here. Where several daemons serve
the pool another one may change them: then they are looked up again and again, too.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

import trio

from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.errors import BockdError
from bockd.model import DeviceProfile, NodeKind, VolumeId
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
        self._told: dict[VolumeId, str] = {}
        """What was said last of those whose record is damaged."""
        gates.look_up = self.applied

    def applied(self, volume: VolumeId) -> Applied:
        """Return the limits and the profile of a volume, as the index has them. Where it does not
        say, or says what cannot be, those that were known last, or none: a damaged record of a
        tenant must not keep a client from its volume. A profile that cannot be is no damage to the
        limits."""
        known = self._known.get(volume, Applied())
        try:
            found, profile = self._recorded(volume)
        except BockdError as error:
            self._tell(volume, "the limits and profile of volume %s are not known: %s", error)
            return known
        try:
            found = replace(found, profile=None if profile is None else check_profile(profile))
        except BockdError as error:
            self._tell(volume, "the profile of volume %s is not known: %s", error)
            found = replace(found, profile=known.profile)
        else:
            self._told.pop(volume, None)
        if volume not in self._known:
            used = {volume, *self._gates}
            self._known = {one: known for one, known in self._known.items() if one in used}
            self._told = {one: text for one, text in self._told.items() if one in used}
        self._known[volume] = found
        return found

    def _tell(self, volume: VolumeId, text: str, error: BockdError) -> None:
        if self._told.get(volume) != text:
            self._told[volume] = text
            log.warning(text, volume, error)

    def _recorded(self, volume: VolumeId) -> tuple[Applied, DeviceProfile | None]:
        """Return the limits of a volume from the index, and its profile, which was not checked.
        Raises BockdError."""
        with self._pool.nodes() as nodes:
            record = nodes.volume(volume)
            limits = check_io_limits(self._context.limits_of(record))
            ledger = Ledger(nodes.txn)
            owned = ledger.owned_volume(volume)
            if owned is None:
                return Applied(limits), record.profile
            tenant = ledger.tenant(owned.tenant)
        of_tenant = check_io_limits(self._context.tenant_limits_of(tenant))
        return Applied(limits, owned.tenant, of_tenant), record.profile

    async def run(self) -> None:
        """Follow what other gateways change, until cancelled. Return at once where there can be
        none."""
        while self._pool.features.several_gateways:
            await trio.sleep(LOOK_SECONDS)
            self._gates.refresh(
                volume for volume in self._gates if self._pool.is_open(NodeKind.VOLUME, volume)
            )
