"""What a kind of pool counts and measures of itself, as plain data for whoever collects it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. Several of one name differ in their labels."""

    name: str
    """Words joined by "_", its unit last. That of a count which never falls ends in "_total"."""
    about: str
    """What it is: one sentence."""
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    """Names and values, the same names for all of one name."""
