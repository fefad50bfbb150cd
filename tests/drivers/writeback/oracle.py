"""What each sector was given, and when: which values may be there after which end.

Times are events on one clock. An operation that was not answered has no end; whatever it has
written may be there, or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SECTOR = 512
NEVER = float("inf")


class ViolationError(AssertionError):
    """A rule was broken."""


@dataclass(eq=False)
class Given:
    """One value of a sector."""

    value: bytes
    start: float
    end: float = NEVER
    durable: float = NEVER
    """When a flush was answered that covers it."""


@dataclass
class Oracle:
    """Of one device."""

    size_bytes: int
    flushes: list[float] = field(default_factory=list)
    """When each was answered."""

    def __post_init__(self) -> None:
        self._sectors: dict[int, list[Given]] = {}

    def begin(self, offset: int, data: bytes, now: float) -> list[Given]:
        """Note that an operation begins to give sectors these values."""
        given = []
        for at in range(0, len(data), SECTOR):
            one = Given(data[at : at + SECTOR], now)
            self.of(offset + at).append(one)
            given.append(one)
        return given

    def of(self, at: int) -> list[Given]:
        first = Given(bytes(SECTOR), -1, -1, -1)
        return self._sectors.setdefault(at, [first])

    def flushed(self, began: float, now: float) -> None:
        """Note that a flush was answered."""
        self.flushes.append(now)
        for sector in self._sectors.values():
            for one in sector:
                if one.end < began and one.durable == NEVER:
                    one.durable = now

    def reset(self, content: bytes, now: float, *, durable: bool) -> None:
        """Note that the device holds this for certain, as if it had all been written at once."""
        for at, sector in self._sectors.items():
            value = content[at : at + SECTOR]
            sector.append(Given(value, now, now, now if durable else NEVER))
        if durable:
            self.flushes.append(now)

    def misread(self, content: bytes, offset: int, began: float, now: float) -> list[int]:
        """Return the sectors of a read that hold what they must not: something that was never
        given, or was overwritten before the read began."""
        return [
            offset + at
            for at in range(0, len(content), SECTOR)
            if not any(
                one.value == content[at : at + SECTOR]
                and one.start < now
                and not any(o.start > one.end and o.end < began for o in self.of(offset + at))
                for one in self.of(offset + at)
            )
        ]

    def lost(self, content: bytes, moment: float) -> list[int]:
        """Return the sectors that hold what they must not after a power cut at a moment: something
        older than what a flush has covered that was answered before, or newer than the moment."""
        return [
            at
            for at, sector in self._sectors.items()
            if not any(
                one.value == content[at : at + SECTOR]
                and one.start < moment
                and not any(o.start > one.end and o.durable < moment for o in sector)
                for one in sector
            )
        ]

    def cut_ever(self, content: bytes, now: float) -> bool:
        """Return whether a power cut at any moment up to now could have left this: `lost` would
        return nothing for it."""
        moments = [*self.flushes, now]
        for at, sector in self._sectors.items():
            spans = _moments_of(sector, content[at : at + SECTOR])
            moments = [one for one in moments if any(a < one <= b for a, b in spans)]
        return bool(moments)


def _moments_of(sector: list[Given], value: bytes) -> list[tuple[float, float]]:
    """Return between which moments a power cut could have left a value: after the first, and not
    after the second."""
    spans, durable, at = [], NEVER, len(sector)
    # Those that began after the end of one, which are in order, have that durable at the earliest.
    for one in sorted((one for one in sector if one.value == value), key=lambda one: -one.end):
        while at and sector[at - 1].start > one.end:
            at -= 1
            durable = min(durable, sector[at].durable)
        spans.append((one.start, durable))
    return spans
