"""What a volume may hold, given what was sent to it and what was acknowledged.

The volume is seen in units of one size. For each unit there is a list of candidates: the
operations whose effect it may show. An operation becomes a candidate when it is sent. When one is
acknowledged, every candidate that had been acknowledged before it was sent is out of the question;
others that were under way at the same time may have been applied before it or after it. So what
remains is the last acknowledged value, and newer ones that were sent.

`clock` counts what happens; it is the only time there is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ZEROS = 0
"""The value of a unit that reads as zeros; every write has a number of its own, from 1 on."""

_PATTERN = struct.Struct("<QQ")


@dataclass(eq=False, slots=True)
class Operation:
    """A write (`value` > 0), or a zero or trim, of `count` units from `first` on."""

    value: int
    first: int
    count: int
    sent: int
    acknowledged: int | None = None


@dataclass(eq=False)
class Shot:
    """A snapshot: what each of its units may hold. `content` is known once it has been read."""

    name: str
    allowed: list[set[int]]
    content: bytes | None = None
    created: bool = False
    """Its creation was acknowledged."""
    deleting: bool = False
    """Its deletion was asked for."""


@dataclass
class History:
    """Of one volume, from its creation as `units` holes of `unit_bytes` on; a clone begins as
    `content`. Its writes are numbered from `first_value` on."""

    units: int
    unit_bytes: int
    first_value: int = 1
    content: bytes = b""
    clock: int = 0
    shots: list[Shot] = field(default_factory=list)
    """Snapshots that are being taken: what is sent now they may hold, too."""

    def __post_init__(self) -> None:
        values = self.values(self.content) if self.content else [ZEROS] * self.units
        self.candidates: list[list[Operation]] = [
            [Operation(value, unit, 1, 0, 0)] for unit, value in enumerate(values)
        ]
        self._next_value = self.first_value

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def write(self, first: int, count: int) -> tuple[Operation, bytearray]:
        """A write that is being sent, and its bytes."""
        operation = self.send(self._next_value, first, count)
        self._next_value += 1
        parts = (self.pattern(operation.value, unit) for unit in range(first, first + count))
        return operation, bytearray(b"".join(parts))

    def send(self, value: int, first: int, count: int) -> Operation:
        """An operation that is being sent."""
        operation = Operation(value, first, count, self.tick())
        for unit in range(first, first + count):
            self.candidates[unit].append(operation)
            for shot in self.shots:
                shot.allowed[unit].add(value)
        return operation

    def acknowledge(self, operation: Operation) -> None:
        """Its reply has come, without an error."""
        operation.acknowledged = self.tick()
        for unit in range(operation.first, operation.first + operation.count):
            self.candidates[unit] = [
                other
                for other in self.candidates[unit]
                if other.acknowledged is None or other.acknowledged > operation.sent
            ]

    def begin_shot(self, name: str) -> Shot:
        """A snapshot is about to be asked for."""
        shot = Shot(name, [{other.value for other in unit} for unit in self.candidates])
        self.shots.append(shot)
        return shot

    def pattern(self, value: int, unit: int) -> bytes:
        """The bytes of a unit that holds `value`: they name the value and the unit throughout."""
        if value == ZEROS:
            return bytes(self.unit_bytes)
        return _PATTERN.pack(value, unit) * (self.unit_bytes // _PATTERN.size)

    def values(self, content: bytes) -> list[int]:
        """The value of each unit; AssertionError for one that no single operation left so."""
        assert len(content) == self.units * self.unit_bytes
        found = []
        for unit in range(self.units):
            data = content[unit * self.unit_bytes : (unit + 1) * self.unit_bytes]
            value = int(_PATTERN.unpack_from(data)[0])
            assert data == self.pattern(value, unit), f"unit {unit} is torn, or another unit's"
            found.append(value)
        return found

    def verify(self, content: bytes) -> int:
        """Every unit holds a candidate, which from now on is the only one: the volume is at rest.
        Returns how many units had more than one. AssertionError names what was lost."""
        open_questions = 0
        for unit, value in enumerate(self.values(content)):
            candidates = self.candidates[unit]
            open_questions += len(candidates) > 1
            assert any(other.value == value for other in candidates), (
                f"unit {unit} holds value {value}; allowed are (value, acknowledged at) "
                f"{[(other.value, other.acknowledged) for other in candidates]}"
            )
            self.candidates[unit] = [Operation(value, unit, 1, self.clock, self.clock)]
        return open_questions

    def verify_shot(self, shot: Shot, content: bytes) -> None:
        """A snapshot holds what it may, and what it held when it was read before."""
        if shot.content is not None:
            assert content == shot.content, f"snapshot {shot.name} has changed"
            return
        for unit, value in enumerate(self.values(content)):
            assert value in shot.allowed[unit], (
                f"snapshot {shot.name}: unit {unit} holds {value}, not one of {shot.allowed[unit]}"
            )
        shot.content = content
        shot.allowed = []
