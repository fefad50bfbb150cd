"""The codec of entries and dumps: what is damaged, or newer, is refused."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.drivers.rbd.entries import (
    MAX_ENTRY_BYTES,
    PIECE_BYTES,
    Entry,
    decode_entry,
    decode_piece,
    encode_entry,
    encode_pieces,
)
from bockd.errors import DamagedError, InvalidRequestError, PoolFormatError

ENTRY = Entry(
    "0123456789abcdef", 7, 1764000000.5, [(b"t", b"k", b"payload"), (b"t", b"gone", None)]
)

changes = st.lists(st.tuples(st.binary(), st.binary(), st.none() | st.binary()))


@given(st.integers(1, 10**16 - 1), st.integers(1, 2**63), changes)
def test_an_entry_comes_back(
    version: int, number: int, changed: list[tuple[bytes, bytes, bytes | None]]
) -> None:
    entry = Entry("f" * 16, number, 1.0, changed)
    assert decode_entry(version, encode_entry(version, entry)) == entry


def test_the_bytes_of_an_entry_are_the_documented_ones() -> None:
    body = (
        b"\x94" + b"\xb00123456789abcdef" + b"\x07" + b"\xcb" + struct.pack(">d", 1764000000.5)
        + b"\x92" + b"\x93\xc4\x01t\xc4\x01k\xc4\x07payload" + b"\x93\xc4\x01t\xc4\x04gone\xc0"
    )  # fmt: skip
    checksum = zlib.crc32(b"12 1" + body)
    assert encode_entry(12, ENTRY) == struct.pack(">II", 1, checksum) + body


def test_an_entry_with_a_flipped_bit_is_refused() -> None:
    data = encode_entry(5, ENTRY)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError, match="version 5 of the index in Ceph fails its checksum"):
            decode_entry(5, bytes(flipped))


def test_an_entry_that_is_cut_off_is_refused() -> None:
    data = encode_entry(5, ENTRY)
    for length in range(len(data)):
        with pytest.raises(DamagedError):
            decode_entry(5, data[:length])
    with pytest.raises(DamagedError):
        decode_entry(5, data + b"\0")


def test_an_entry_in_the_place_of_another_is_refused() -> None:
    with pytest.raises(DamagedError, match=r"version 6 .* fails its checksum"):
        decode_entry(6, encode_entry(5, ENTRY))


def sealed(place: str, format_number: int, body: bytes) -> bytes:
    checksum = zlib.crc32(f"{place} {format_number}".encode() + body)
    return struct.pack(">II", format_number, checksum) + body


def test_a_newer_format_is_told_from_damage() -> None:
    with pytest.raises(PoolFormatError, match="has format 2, and this bockd knows 1"):
        decode_entry(5, sealed("5", 2, b"whatever it is"))


@pytest.mark.parametrize("body", [b"", b"\x93", b"\x90", b"\xc1", b"\x94\x01\x01\x01\x90"])
def test_what_fits_its_checksum_and_is_no_entry_is_refused(body: bytes) -> None:
    with pytest.raises(DamagedError, match="fits its checksum and cannot be read"):
        decode_entry(5, sealed("5", 1, body))


def test_an_entry_has_an_upper_bound_both_ways() -> None:
    def entry(size: int) -> Entry:
        return Entry("f" * 16, 1, 1.0, [(b"t", b"k", bytes(size))])

    fits = MAX_ENTRY_BYTES - 64
    assert decode_entry(1, encode_entry(1, entry(fits))) == entry(fits)
    with pytest.raises(InvalidRequestError, match=r"16777\d\d\d bytes, and at most 16777216"):
        encode_entry(1, entry(MAX_ENTRY_BYTES))
    with pytest.raises(DamagedError, match="16777216 at most"):
        decode_entry(1, bytes(MAX_ENTRY_BYTES + 1))


def test_a_dump_is_cut_into_pieces_of_bounded_size() -> None:
    records = [(b"table", b"%06d" % number, bytes(100_000)) for number in range(100)]
    pieces = list(encode_pieces("dump", records))
    assert [place for place, _ in pieces] == ["base.dump.0", "base.dump.1", "base.dump.2"]
    assert all(len(data) <= PIECE_BYTES for _, data in pieces)
    assert [one for place, data in pieces for one in decode_piece(place, data)] == records


def test_a_record_that_is_larger_than_a_piece_has_one_alone() -> None:
    records = [(b"t", b"a", b""), (b"t", b"b", bytes(PIECE_BYTES)), (b"t", b"c", b"")]
    pieces = list(encode_pieces("dump", records))
    assert [len(decode_piece(place, data)) for place, data in pieces] == [1, 1, 1]


def test_a_dump_of_nothing_has_one_piece() -> None:
    [(place, data)] = encode_pieces("dump", [])
    assert decode_piece(place, data) == []


def test_a_piece_in_the_place_of_another_is_refused() -> None:
    [(_, data)] = encode_pieces("dump", [(b"t", b"k", b"v")])
    with pytest.raises(DamagedError, match=r"base\.dump\.1, a part of the index .* checksum"):
        decode_piece("base.dump.1", data)
