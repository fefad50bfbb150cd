"""Where in the volume the requests went, over time, as an SVG picture.

One cell is a piece of the volume during a piece of time. How long both are is not known before the
last record: when one lies beyond the picture, two cells become one along that way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from typing import Final

from bockd.model import format_size
from bockd.trace.records import Kind, Record

COLUMNS: Final = 160
ROWS: Final = 64
_FIRST_NS: Final = 1_000_000
_FIRST_BYTES: Final = 64 * 1024
_CELL: Final = 5
"""Pixels."""
_LEFT, _TOP, _BETWEEN, _RIGHT = 84, 52, 64, 20
_COLOURS: Final = {"read": (33, 94, 168), "write": (181, 82, 59)}
_STEPS: Final = 16
"""Shades: each is for 1/16 of the way from one request to the most of a cell, in logarithms."""


class HeatMap:
    """Counts the reads and the writes of each cell."""

    def __init__(self) -> None:
        self.cell_ns = _FIRST_NS
        self.cell_bytes = _FIRST_BYTES
        self.counts: dict[str, Counter[tuple[int, int]]] = {"read": Counter(), "write": Counter()}
        """Requests by column (time) and row (place)."""
        self._first_ns: int | None = None

    def add(self, record: Record) -> None:
        """Count one request in the cell where it begins. Trims and zeroes count as writes; what has
        no place in the volume does not count."""
        if record.kind is not Kind.READ and not record.kind.changes:
            return
        if self._first_ns is None:
            self._first_ns = record.time_ns
        time_ns = max(0, record.time_ns - self._first_ns)
        while time_ns >= self.cell_ns * COLUMNS:
            self.cell_ns *= 2
            self._merge(2, 1)
        while record.offset >= self.cell_bytes * ROWS:
            self.cell_bytes *= 2
            self._merge(1, 2)
        name = "read" if record.kind is Kind.READ else "write"
        self.counts[name][time_ns // self.cell_ns, record.offset // self.cell_bytes] += 1

    def through(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records, and count them."""
        for record in records:
            self.add(record)
            yield record

    def _merge(self, across: int, along: int) -> None:
        for name, counts in self.counts.items():
            merged: Counter[tuple[int, int]] = Counter()
            for (column, row), count in counts.items():
                merged[column // across, row // along] += count
            self.counts[name] = merged

    def svg(self, title: str) -> str:
        """Draw both maps, one below the other."""
        high = ROWS * _CELL
        width, height = _LEFT + COLUMNS * _CELL + _RIGHT, _TOP + 2 * (high + _BETWEEN)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            _text(_LEFT, 22, title, size=15),
        ]
        for number, name in enumerate(self.counts):
            parts += self._map(name, _TOP + number * (high + _BETWEEN))
        return "\n".join([*parts, "</svg>\n"])

    def _map(self, name: str, top: int) -> Iterator[str]:
        counts, colour = self.counts[name], _COLOURS[name]
        most = max(counts.values(), default=0)
        high, wide = ROWS * _CELL, COLUMNS * _CELL
        told = f"{name}s: {counts.total()}, at most {most} in a cell"
        yield _text(_LEFT, top - 8, told)
        yield (
            f'<rect x="{_LEFT}" y="{top}" width="{wide}" height="{high}" fill="none" '
            'stroke="#bbbbbb"/>'
        )
        cells: dict[str, list[str]] = {}
        for (column, row), count in sorted(counts.items()):
            left, upper = _LEFT + column * _CELL, top + high - (row + 1) * _CELL
            square = f"M{left} {upper}h{_CELL}v{_CELL}h-{_CELL}z"
            cells.setdefault(_shade(colour, count, most), []).append(square)
        for shade, squares in sorted(cells.items()):
            yield f'<path fill="{shade}" d="{"".join(squares)}"/>'
        yield _text(_LEFT - 6, top + 10, format_size(self.cell_bytes * ROWS), anchor="end")
        yield _text(_LEFT - 6, top + high, "0", anchor="end")
        yield _text(_LEFT, top + high + 16, "0 s")
        seconds = self.cell_ns * COLUMNS / 1e9
        yield _text(_LEFT + wide, top + high + 16, f"{seconds:.4g} s", anchor="end")


def _shade(colour: tuple[int, int, int], count: int, most: int) -> str:
    """A colour between light grey and the full one."""
    step = _STEPS * count.bit_length() // max(1, most.bit_length())
    share = 0.15 + 0.85 * step / _STEPS
    return "#" + "".join(f"{round(240 + (part - 240) * share):02x}" for part in colour)


def _text(x: int, y: int, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="#333333">'
        f"{escape(text)}</text>"
    )
