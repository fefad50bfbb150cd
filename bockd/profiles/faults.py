"""Which requests of a profiled volume fail, and when its device is stuck."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

from bockd.model import BLOCK_SIZE, DeviceOperation, ErrorRule, Stall
from bockd.profiles.distribution import Distribution

_SECOND_NS = 1_000_000_000
_WHOLE = 1 << 64


_FEW_PERCENT = 1.0
"""Bad blocks that are fewer lie one in each *zone* of so many blocks that they are the percentage
asked for, so that a trim of 4 GiB need not look at each of its blocks. Where there are more of them
blocks are looked at one by one, and one that is bad is found soon."""


class Failing:
    """One rule. Which blocks are bad follows from the seed and their place, so none of them has to
    be remembered."""

    def __init__(self, rule: ErrorRule, number: int, seed: int, random: Random) -> None:
        self.rule = rule
        self.latency = None if rule.latency_us is None else Distribution(rule.latency_us)
        self._operations = frozenset(rule.operations)
        self._key = f"{seed}/{number}"
        self._zone_blocks = round(100 / rule.bad_blocks_percent)
        self._end = None if rule.length_bytes is None else rule.offset_bytes + rule.length_bytes
        self._random = random

    def hits(self, operation: DeviceOperation, offset: int, length: int, before: int) -> bool:
        """Return whether a request fails, before which so many have come."""
        rule = self.rule
        if operation not in self._operations or before < rule.after_requests:
            return False
        if operation is not DeviceOperation.FLUSH and not self._touches(offset, offset + length):
            return False
        return rule.percent >= 100 or self._random.random() * 100 < rule.percent

    def _touches(self, begin: int, end: int) -> bool:
        """Whether a range has a bad block of the rule's range in it."""
        begin = max(begin, self.rule.offset_bytes)
        end = end if self._end is None else min(end, self._end)
        if begin >= end:
            return False
        first, last = begin // BLOCK_SIZE, (end - 1) // BLOCK_SIZE
        percent = self.rule.bad_blocks_percent
        if percent >= 100:
            return True
        if percent > _FEW_PERCENT:
            return any(
                self._hash(block) < percent * _WHOLE / 100 for block in range(first, last + 1)
            )
        zones = range(first // self._zone_blocks, last // self._zone_blocks + 1)
        if len(zones) > 2:
            return True  # one lies within it as a whole
        return any(first <= self._bad_block(zone) <= last for zone in zones)

    def _bad_block(self, zone: int) -> int:
        return zone * self._zone_blocks + self._hash(zone) % self._zone_blocks

    def _hash(self, number: int) -> int:
        digest = hashlib.blake2b(f"{self._key}/{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


class Stalls:
    """When the device is stuck."""

    def __init__(self, stalls: Sequence[Stall]) -> None:
        self._stalls = stalls
        self._until = 0

    def until(self, before: int, now: int) -> int:
        """Return when a request can be worked on at the earliest that comes now, before which so
        many have come."""
        for stall in self._stalls:
            behind = before - stall.after_requests
            again = stall.every_requests
            if behind == 0 or (again is not None and behind > 0 and behind % again == 0):
                self._until = max(self._until, now + round(stall.seconds * _SECOND_NS))
        return max(now, self._until)
