"""What a volume or snapshot is called: the edits that Cinder calls an update.

Each is one transaction, whatever else goes on with the volume: other changes read the record anew.
The name in the pool stays, because clients are connected under it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Edit, Snapshot, TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.model import SnapshotId, VolumeId
from bockd.pool.index import Transaction

N = TypeVar("N", Volume, Snapshot)


def edit_volume(tenant: TenantId, volume: VolumeId, edit: Edit) -> Callable[[Transaction], None]:
    """Return a change for `StorageContext.update`; see bockd.blockstorage.contract.BlockStorage."""

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        found = ledger.volume(tenant, volume)
        metadata = rules.edited_metadata(found.metadata, edit)
        ledger.put_volume(tenant, replace(_described(found, edit), metadata=metadata))

    return change


def edit_snapshot(
    tenant: TenantId, snapshot: SnapshotId, edit: Edit
) -> Callable[[Transaction], None]:
    """Return a change for `StorageContext.update`, for a snapshot; see `edit_volume`."""

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        ledger.put_snapshot(tenant, _described(ledger.snapshot(tenant, snapshot), edit))

    return change


def _described(found: N, edit: Edit) -> N:
    return replace(
        found,
        display_name=rules.edited_text("display_name", found.display_name, edit.display_name),
        display_description=rules.edited_text(
            "display_description", found.display_description, edit.display_description
        ),
    )
