"""The ratios that have targets, as an SVG picture."""

from __future__ import annotations

import pygal
from pygal.style import Style

from bench.report import Report
from bench.results import Comparison

_BAR_PIXELS = 34
_WIDTH_PIXELS = 900
_MET, _MISSED, _WANTED = "#3b7d4f", "#b5523b", "#c9c9c9"
_STYLE = Style(
    background="white",
    plot_background="white",
    font_family="sans-serif",
    label_font_size=13,
    major_label_font_size=13,
    value_font_size=12,
    title_font_size=16,
    legend_font_size=13,
    colors=(_MET, _MISSED, _WANTED),
)


def chart_of(report: Report) -> str:
    """One bar for each comparison with a target, beside what is wanted. Where at most the target is
    wanted, both are turned round, so that longer is always better."""
    held = [
        one for section in report.sections for one in section.comparisons if one.target is not None
    ]
    chart = pygal.HorizontalBar(
        style=_STYLE,
        width=_WIDTH_PIXELS,
        height=120 + _BAR_PIXELS * len(held),
        js=(),  # a still picture: no script from elsewhere
        disable_xml_declaration=True,
        print_values=True,
        formatter=lambda value: "" if value is None else f"{value:.2f}",
        legend_at_bottom=True,
        title="bockd against its peers: ratios, and what is wanted (longer is better)",
    )
    held.reverse()  # the first row on top
    chart.x_labels = [f"{one.row} / {one.baseline}" for one in held]
    chart.add("target met", [_better(one) if one.met else None for one in held])
    chart.add("target missed", [None if one.met else _better(one) for one in held])
    chart.add("wanted", [_wanted(one) for one in held])
    picture: str = chart.render(is_unicode=True)
    return picture + "\n"


def _better(one: Comparison) -> float:
    assert one.target is not None
    return 1 / one.ratio.median if one.target.at_most else one.ratio.median


def _wanted(one: Comparison) -> float:
    assert one.target is not None
    return 1 / one.target.bound if one.target.at_most else one.target.bound
