"""The ratios that have targets, as an SVG picture."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from bench.report import Report
from bench.results import Comparison

_WIDTH, _ROW, _TOP = 1000, 22, 84
"""Pixels; of the picture, of one row, and above the first one."""
_BARS, _BARS_END = 480, 800
"""Where the bars begin, with their labels before them, and where the longest ends, with its
figures after it."""
_FIGURES, _WANTED = 860, 876
"""The right edge of what was reached, the left edge of what is wanted."""
_MOST = 3.0
"""The bar of a ratio beyond this many times what is wanted ends here, in a point."""
_POINT = 7
_MET, _MISSED, _QUIET = "#3b7d4f", "#b5523b", "#555555"


def chart_of(report: Report) -> str:
    """Draw one bar for each comparison with a target, section by section: how many times what is
    wanted was reached. Where the target is an upper bound, the inverse of the ratio is drawn, so
    that longer is always better."""
    lines, top = [], _TOP
    for section in report.sections:
        held = [one for one in section.comparisons if one.target is not None]
        if held:
            lines.append(_text(12, top + 16, section.title, weight="bold"))
            lines += [line for at, one in enumerate(held, 1) for line in _bar(top + at * _ROW, one)]
            top += (len(held) + 1) * _ROW + 8
    aim = _place(1.0)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 8}" '
            'font-family="sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{top + 8}" fill="white"/>',
            _text(12, 26, "bockd against its targets", size=16),
            _text(12, 46, f"Measured on {report.date[:10]}. Longer is better.", fill=_QUIET),
            _text(aim, _TOP - 18, "wanted", anchor="middle", fill=_QUIET),
            _text(_FIGURES, _TOP - 18, "reached", anchor="end", fill=_QUIET),
            _text(_WANTED, _TOP - 18, "wanted", fill=_QUIET),
            *lines,
            f'<line x1="{aim:.1f}" y1="{_TOP - 10}" x2="{aim:.1f}" y2="{top}" stroke="{_QUIET}"/>',
            "</svg>\n",
        ]
    )


def _place(reached: float) -> float:
    return _BARS + (_BARS_END - _BARS) * reached / _MOST


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = "black",
    size: int = 13,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _bar(top: int, one: Comparison) -> Iterator[str]:
    assert one.target is not None
    ratio, bound = one.ratio.median, one.target.bound
    reached = bound / ratio if one.target.at_most else ratio / bound
    low, high = top + 3, top + _ROW - 3
    end = _place(min(reached, _MOST))
    shape: list[tuple[float, float]] = [(_BARS, low), (end, low), (end, high), (_BARS, high)]
    if reached > _MOST:
        shape.insert(2, (end + _POINT, (low + high) / 2))
    points = " ".join(f"{x:.1f},{y:g}" for x, y in shape)
    base = top + 15
    yield _text(_BARS - 8, base, f"{one.row} / {one.baseline}", anchor="end")
    yield f'<polygon points="{points}" fill="{_MET if one.met else _MISSED}"/>'
    yield _text(_FIGURES, base, f"{ratio:.2f}", anchor="end")
    yield _text(_WANTED, base, str(one.target), fill=_QUIET)
