"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.cli.sizes import format_size, parse_size
from bockd.model import GIB, KIB, MIB, TIB
from bockd.model import SIZE_UNITS as UNITS


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("512M", 512 * MIB),
        ("10GiB", 10 * GIB),
        ("10 gib", 10 * GIB),
        ("10Gi", 10 * GIB),
        ("1T", TIB),
        ("1.5TiB", TIB + TIB // 2),
        ("0.5k", 512),
        ("100B", 100),
        (" 4KiB ", 4 * KIB),
    ],
)
def test_a_size_is_parsed_with_its_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a size"),
        ("ten", "is not a size"),
        ("-1G", "is not a size"),
        ("1e9", "is not a size"),
        ("10XiB", "is not a size"),
        ("1,5G", "is not a size"),
        ("\u0661G", "is not a size"),
        ("10GB", "write 10GiB"),
        ("5kb", "write 5KiB"),
        ("0.3B", "whole number of bytes"),
        ("0.0001K", "whole number of bytes"),
    ],
)
def test_a_text_that_is_no_size_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (10 * GIB, "10 GiB"),
        (GIB + 512 * MIB, "1.5 GiB"),
        (10 * GIB + 4096, "10.0 GiB"),
        (MIB - 1, "1.0 MiB"),
        (16 * TIB, "16 TiB"),
    ],
)
def test_format(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(min_value=0, max_value=16 * TIB))
def test_a_printed_size_is_within_five_percent(size_bytes: int) -> None:
    number, unit = format_size(size_bytes).split()
    assert float(number) < 1024
    assert float(number) * 1024 ** UNITS.index(unit) == pytest.approx(size_bytes, rel=0.05)
