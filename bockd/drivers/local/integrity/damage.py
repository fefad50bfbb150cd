"""What is known of a pool's checksums, for people: progress, and who shows which damaged block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from bockd.drivers.local.format import cells, checksums
from bockd.drivers.local.format.catalogue import LAYERS, Catalogue, LayerRecord
from bockd.drivers.local.format.checksums import CHECKSUMS, DamageRecord
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, Leaf, leaf_key
from bockd.errors import DamagedError
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.pool.index import Transaction
from bockd.pool.reports import DamagedBlock, ScrubStatus


def frozen_layers(txn: Transaction) -> Iterator[LayerRecord]:
    """Yield the layers that no volume writes to any more and that somebody may read."""
    catalogue = Catalogue(txn)
    heads = {volume.head for volume in catalogue.volumes()}
    abandoned: dict[MapId, bool] = {}
    for layer in catalogue.layers():
        if layer.id in heads:
            continue
        if layer.home not in abandoned:
            dead = catalogue.map(layer.home).dead
            abandoned[layer.home] = dead and not catalogue.children(layer.home)
        if not abandoned[layer.home]:
            yield layer


def scrub_status(txn: Transaction) -> ScrubStatus:
    """Return the progress of scrubbing and all damaged blocks, as they are in one transaction."""
    unread = 0
    for layer in frozen_layers(txn):
        reading = checksums.reading_of(txn, layer.id)
        unread += reading is None or not reading.done
    latest = checksums.latest_pass(txn)
    return ScrubStatus(
        unread_layers=unread,
        under_way=latest is not None and latest.finished_at is None,
        started_at=latest.started_at if latest else None,
        finished_at=latest.finished_at if latest else None,
        verified_bytes=latest.blocks_verified * BLOCK_SIZE if latest else 0,
        leaves_done=latest.leaves_done if latest else 0,
        leaves_total=latest.leaves_total if latest else txn.count(CHECKSUMS),
        damaged=tuple(show_damage(txn, record) for record in checksums.all_damage(txn)),
    )


def show_damage(txn: Transaction, record: DamageRecord) -> DamagedBlock:
    """Return a damaged block with the volumes and snapshots that show it, as far as the index
    knows. A volume in use may have overwritten it since."""
    catalogue = Catalogue(txn)
    return DamagedBlock(
        layer=record.layer,
        offset_bytes=record.block * BLOCK_SIZE,
        found_at=record.found_at,
        readable=record.found is not None,
        volumes=tuple(
            volume.name
            for volume in catalogue.volumes()
            if _shows(catalogue, volume.map, record.layer, record.block)
        ),
        snapshots=tuple(
            snapshot.name
            for snapshot in catalogue.snapshots()
            if _shows(catalogue, snapshot.map, record.layer, record.block)
        ),
    )


def _shows(catalogue: Catalogue, map_id: MapId, layer: LayerId, block: int) -> bool:
    number, at = divmod(block, LEAF_BLOCKS)
    for member in catalogue.chain(map_id):
        payload = catalogue.txn.get(LEAVES, leaf_key(member, number))
        if payload is not None:
            return Leaf.decode(payload).layers()[at] == layer
    return False


def describe(txn: Transaction, record: DamageRecord) -> str:
    """Describe a damaged block in one line for the log. Raises DamagedError."""
    damage = show_damage(txn, record)
    shown = [f"volume {name}" for name in damage.volumes]
    shown += [f"snapshot {name}" for name in damage.snapshots]
    what = "differs from what it held" if damage.readable else "cannot be read"
    place = _place_of(txn, record)
    same = place == record.block
    where = "the same byte" if same else f"byte {damage.offset_bytes}"
    what = f"byte {place * BLOCK_SIZE} of layer {damage.layer} {what}"
    return (
        f"{what}: it is at {where} of {', '.join(shown) or 'nothing that is left'}; reading it "
        "fails from now on"
    )


def _place_of(txn: Transaction, record: DamageRecord) -> int:
    """Where a block lies in its layer's files, in blocks; its number if nothing that can be read
    says where."""
    payload = txn.get(LAYERS, id_key(record.layer))
    if payload is None or not LayerRecord.decode(payload).packed:
        return record.block
    number, block = divmod(record.block, LEAF_BLOCKS)
    with suppress(DamagedError):
        return cells.stored_cells(txn, record.layer, number).get(block, record.block)
    return record.block
