"""Sizes as people write and read them: "10GiB", "512M", "1.5 TiB". Units are binary: 10G is 10GiB,
as for qemu-img, LVM and Ceph.

"GB" and its like are refused: half the world means 10^9 by it and the other half 2^30. Whatever is
wrong with a size on the command line is wrong usage.
"""

from __future__ import annotations

import re
from fractions import Fraction

import click

from bockd.cli.arguments import volume_size
from bockd.model import format_size

__all__ = ["format_exact_size", "format_size", "parse_size", "size_option"]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGTPE])(iB?|B)?|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Parse a number with an optional binary unit as bytes. Raises ValueError, which says what is
    wrong."""
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


def format_exact_size(size_bytes: int) -> str:
    """Format a size both ways, as in "10 GiB (10737418240 bytes)"."""
    return f"{format_size(size_bytes)} ({size_bytes} bytes)"


def size_option(text: str) -> int:
    """Parse a volume's size, as the type of a click option. Raises click.BadParameter, a usage
    error."""
    try:
        return volume_size(parse_size(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
