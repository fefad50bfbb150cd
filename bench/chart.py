"""The ratios that have targets, as an SVG picture."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from bench.report import Report
from bench.results import Comparison

_WIDTH, _ROW, _TOP = 960, 24, 64
"""Pixels; of the picture, of one row, and above the first one."""
_LABELS = 430
_BARS = _WIDTH - _LABELS - 90
_MOST = 4.0
"""The bar of a ratio beyond this many times what is wanted ends here."""
_MET, _MISSED, _LINE = "#3b7d4f", "#b5523b", "#555555"


def chart_of(report: Report) -> str:
    """One bar for each comparison with a target: how many times what is wanted was reached. Where
    at most the target is wanted, the ratio is turned round, so that longer is always better."""
    held = [
        one for section in report.sections for one in section.comparisons if one.target is not None
    ]
    height = _TOP + _ROW * len(held) + 16
    wanted = _LABELS + _BARS / _MOST
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        '<text x="12" y="26" font-size="16">bockd against its targets</text>',
        f'<text x="12" y="46" fill="{_LINE}">Each bar is the ratio, as a multiple of what is '
        f"wanted (the line); {escape(report.date[:10])}</text>",
        *[line for at, one in enumerate(held) for line in _bar(_TOP + at * _ROW, one)],
        f'<line x1="{wanted}" y1="{_TOP - 6}" x2="{wanted}" y2="{height - 12}" stroke="{_LINE}"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bar(top: int, one: Comparison) -> Iterator[str]:
    assert one.target is not None
    ratio, bound = one.ratio.median, one.target.bound
    reached = bound / ratio if one.target.at_most else ratio / bound
    length = _BARS * min(reached, _MOST) / _MOST
    label = escape(f"{one.row} / {one.baseline}")
    base = top + 15
    yield f'<text x="{_LABELS - 8}" y="{base}" text-anchor="end">{label}</text>'
    yield (
        f'<rect x="{_LABELS}" y="{top + 2}" width="{length:.1f}" height="{_ROW - 6}" '
        f'fill="{_MET if one.met else _MISSED}"/>'
    )
    yield (
        f'<text x="{_LABELS + length + 6:.1f}" y="{base}">{ratio:.2f} (wanted '
        f"{escape(str(one.target))})</text>"
    )
