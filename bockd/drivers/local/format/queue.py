"""What reclaim still has to do, as entries of the index, so that a crash forgets none of it.

m | map:u64                      a dead map: drop it, or fold it into its only child
p | layer:u64 | first:u64        payload count:u64 - blocks to punch out of a layer; of a packed
                                 one these are cells (format.cells)
f | layer:u64                    a layer that the index has forgotten: unlink its files
g | layer:u64                    payload target:u64 - a layer whose blocks have been copied to the
                                 target, where leaves may lead already: all are to lead there
s | layer:u64                    payload target:u64 - a layer whose blocks are moving to the target,
                                 and of which the index still has cells of such that have moved
"""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass

from bockd.index.tables import Table
from bockd.model import LayerId, MapId
from bockd.pool.index import Transaction

RECLAIM = Table(b"reclaim")

_U64 = struct.Struct(">Q")
_PUNCH = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class PunchEntry:
    """Blocks first..first+count-1 of a layer, reached by no map; of a packed one, cells."""

    layer: LayerId
    first: int
    count: int


def dead_maps(txn: Transaction) -> list[MapId]:
    return [MapId(_U64.unpack(k[1:])[0]) for k in txn.keys(RECLAIM, b"m", b"n")]


def has_work(txn: Transaction, kept: Container[MapId]) -> bool:
    """Return whether there is anything to drop, fold, punch or unlink, beside the dead maps
    `kept`."""
    if any(txn.keys(RECLAIM, b"p", b"q")) or any(txn.keys(RECLAIM, b"f", b"g")):
        return True
    return any(map_id not in kept for map_id in dead_maps(txn))


def add_dead_map(txn: Transaction, map_id: MapId) -> None:
    """Queue a map that nobody shows any more."""
    txn.put(RECLAIM, b"m" + _U64.pack(map_id), b"")


def remove_dead_map(txn: Transaction, map_id: MapId) -> None:
    txn.delete(RECLAIM, b"m" + _U64.pack(map_id))


def add_punch(txn: Transaction, entry: PunchEntry) -> None:
    """Queue a punch; of two that begin at the same block the longer one counts."""
    key = b"p" + _PUNCH.pack(entry.layer, entry.first)
    old = txn.get(RECLAIM, key)
    count = max(entry.count, _U64.unpack(old)[0] if old else 0)
    txn.put(RECLAIM, key, _U64.pack(count))


def punches(txn: Transaction, limit: int) -> list[PunchEntry]:
    """Return the first `limit` queued punches."""
    found = []
    for key, payload in txn.scan(RECLAIM, b"p", b"q"):
        layer, first = _PUNCH.unpack(key[1:])
        found.append(PunchEntry(LayerId(layer), first, _U64.unpack(payload)[0]))
        if len(found) == limit:
            break
    return found


def punched_layers(txn: Transaction) -> set[LayerId]:
    """Return the layers with queued punches."""
    return {LayerId(_PUNCH.unpack(k[1:])[0]) for k in txn.keys(RECLAIM, b"p", b"q")}


def is_punched(txn: Transaction, layer: LayerId) -> bool:
    """Return whether there is a queued punch of a layer."""
    start, stop = b"p" + _PUNCH.pack(layer, 0), b"p" + _PUNCH.pack(layer + 1, 0)
    return any(txn.keys(RECLAIM, start, stop))


def remove_punch(txn: Transaction, entry: PunchEntry) -> None:
    txn.delete(RECLAIM, b"p" + _PUNCH.pack(entry.layer, entry.first))


def begin_merge(txn: Transaction, source: LayerId, target: LayerId) -> None:
    txn.put(RECLAIM, b"g" + _U64.pack(source), _U64.pack(target))


def begun_merges(txn: Transaction) -> list[tuple[LayerId, LayerId]]:
    """Return the source and target of each merge that has begun. There is one at most."""
    return [
        (LayerId(_U64.unpack(key[1:])[0]), LayerId(_U64.unpack(payload)[0]))
        for key, payload in txn.scan(RECLAIM, b"g", b"h")
    ]


def end_merge(txn: Transaction, source: LayerId) -> None:
    txn.delete(RECLAIM, b"g" + _U64.pack(source))


def begin_settling(txn: Transaction, source: LayerId, target: LayerId) -> None:
    """Note that some blocks of a layer have moved to another one, and all others are to."""
    txn.put(RECLAIM, b"s" + _U64.pack(source), _U64.pack(target))


def begun_settling(txn: Transaction) -> dict[LayerId, LayerId]:
    """Return the layers whose blocks are moving, with where to."""
    return {
        LayerId(_U64.unpack(key[1:])[0]): LayerId(_U64.unpack(payload)[0])
        for key, payload in txn.scan(RECLAIM, b"s", b"t")
    }


def end_settling(txn: Transaction, source: LayerId) -> None:
    txn.delete(RECLAIM, b"s" + _U64.pack(source))


def add_unlink(txn: Transaction, layer: LayerId) -> None:
    txn.put(RECLAIM, b"f" + _U64.pack(layer), b"")


def unlinks(txn: Transaction) -> list[LayerId]:
    return [LayerId(_U64.unpack(k[1:])[0]) for k in txn.keys(RECLAIM, b"f", b"g")]


def remove_unlink(txn: Transaction, layer: LayerId) -> None:
    txn.delete(RECLAIM, b"f" + _U64.pack(layer))
