"""Checking the checksums: each is of a layer that exists and of a block that is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.catalogue import LayerRecord
from bockd.drivers.local.format.checksums import CHECKSUMS, LeafSums
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.format.leafvalues import leaf_value_key_parts
from bockd.drivers.local.integrity.checklayers import LayerCheck
from bockd.errors import DamagedError
from bockd.index.transaction import LmdbTransaction, unseal
from bockd.model import BLOCK_SIZE, LayerId

_CRC_OF_ZEROS = checksums.crc_of(memoryview(bytes(BLOCK_SIZE)))


@dataclass
class ChecksumCheck:
    """One walk over the tables. What it finds wrong it tells `problem`."""

    txn: LmdbTransaction
    layers: Mapping[LayerId, LayerRecord]
    leaving: Collection[LayerId]
    """Forgotten layers, whose checksums may still be there."""
    blocks: LayerCheck
    problem: Callable[[str], None]
    checksums: int = 0
    damaged: int = 0

    def run(self) -> None:
        for key, value in self.txn.raw(CHECKSUMS):
            try:
                sums = checksums.ROWS.decode(unseal(CHECKSUMS, key, value))
            except DamagedError as error:
                self.problem(str(error))
                continue
            layer, number = leaf_value_key_parts(key)
            self.checksums += len(sums)
            self._check_leaf(layer, number, sums)
        try:
            self._check_damage()
            self._check_readings()
        except DamagedError:
            pass  # a value that was told of when the tables were read

    def _check_leaf(self, layer: LayerId, number: int, sums: LeafSums) -> None:
        record = self.layers.get(layer)
        if record is None:
            if layer not in self.leaving:
                self.problem(f"there are checksums of layer {layer}, which is missing")
        elif (number * LEAF_BLOCKS + max(sums) + 1) * BLOCK_SIZE > record.size_bytes:
            self.problem(f"layer {layer} has checksums beyond its end in leaf {number}")
        else:
            data = sum(1 << block for block, crc in sums.items() if crc != _CRC_OF_ZEROS)
            self.blocks.expect(layer, number, sum(1 << block for block in sums), data)

    def _check_damage(self) -> None:
        counts: dict[LayerId, int] = {}
        for record in checksums.all_damage(self.txn):
            if record.layer in self.leaving:
                continue
            counts[record.layer] = counts.get(record.layer, 0) + 1
            number, block = divmod(record.block, LEAF_BLOCKS)
            if block not in checksums.stored_sums(self.txn, record.layer, number):
                self.problem(
                    f"block {record.block} of layer {record.layer} is marked as damaged, but has "
                    "no checksum"
                )
        self.damaged = sum(counts.values())
        for layer, count in counts.items():
            self.problem(f"layer {layer} has {count} damaged blocks: 'bockd scrub' shows them")

    def _check_readings(self) -> None:
        checksums.latest_pass(self.txn)
        for reading in checksums.all_readings(self.txn):
            if reading.layer not in self.layers:
                self.problem(f"layer {reading.layer} is being read, and is missing")
