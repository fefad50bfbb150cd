"""Sizes as people write and read them: "10GiB", "512M", "1.5 TiB". Units are binary.

"GB" and its like are refused: half the world means 10^9 by it and the other half 2^30.
"""

from __future__ import annotations

import re
from fractions import Fraction

import click

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGTPE])(i?B)?|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from a number with an optional binary unit; ValueError says what is wrong."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write it like 10GiB, 512M or 1048576")
    number, letter, suffix = match.groups()
    if suffix and suffix.upper() == "B":
        raise ValueError(
            f"{text!r} could be decimal or binary: write {number}{letter.upper()}iB (binary)"
        )
    exponent = 0 if letter is None else "KMGTPE".index(letter.upper()) + 1
    size = Fraction(number) * 1024**exponent
    if size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def format_size(size_bytes: float) -> str:
    """The largest unit that leaves at least 1: "10 GiB"; one decimal when it is not exact."""
    scale = 0
    # The second bound keeps what would round up to "1024.0 MiB" out of the smaller unit.
    while scale + 1 < len(UNITS) and size_bytes >= 1024 ** (scale + 1) - 1024**scale / 20:
        scale += 1
    value = size_bytes / 1024**scale
    exact = value == int(value)
    return f"{int(value)} {UNITS[scale]}" if exact else f"{value:.1f} {UNITS[scale]}"


def format_exact_size(size_bytes: int) -> str:
    """Both ways: "10 GiB (10737418240 bytes)"."""
    return f"{format_size(size_bytes)} ({size_bytes} bytes)"


def size_option(text: str) -> int:
    """`parse_size` as the type of a click option: a usage error when the text is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
