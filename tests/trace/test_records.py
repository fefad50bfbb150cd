"""Our own file format: what was written is read, and what is damaged is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.errors import BockdError, InvalidRequestError
from bockd.model import MAX_VOLUME_BYTES
from bockd.trace.reading import open_trace
from bockd.trace.records import (
    RECORD,
    Ending,
    Header,
    Kind,
    Record,
    in_order,
    lost_record,
    read_header,
    read_records,
)
from tests.trace.samples import HEADER, read_all, record, write_trace

REQUESTS = [
    record(5, Kind.WRITE, 4096, 512, flags=1),
    record(7, Kind.FLUSH, 0, 0),
    record(9, Kind.TRIM, 1 << 40, 1 << 41, latency_ns=1 << 40),
]


def refusal_of(path: Path) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read_all(path)
    return str(caught.value)


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", REQUESTS)
    with open_trace(str(path)) as trace:
        assert (trace.format, trace.header) == ("bockd", HEADER)
        assert not trace.ending.complete  # nothing was read yet
        assert list(trace.records) == REQUESTS
        assert trace.ending == Ending(complete=True, lost=0)


@given(
    st.lists(
        st.builds(
            Record,
            time_ns=st.integers(0, (1 << 64) - 1),
            order=st.integers(0, (1 << 32) - 1),
            kind=st.sampled_from([kind for kind in Kind if kind < Kind.LOST]),
            flags=st.integers(0, 255),
            offset=st.integers(0, MAX_VOLUME_BYTES // 2),
            length=st.integers(0, MAX_VOLUME_BYTES // 2),
            latency_ns=st.integers(0, (1 << 64) - 1),
        )
    )
)
def test_any_request_is_read_as_it_was_written(records: list[Record]) -> None:
    file = io.BytesIO(b"".join(one.pack() for one in records))
    assert list(read_records(file, "t", Ending())) == [
        one._replace(offset=0, length=0) if one.kind is Kind.FLUSH else one for one in records
    ]


def test_what_a_client_adds_to_a_flush_is_no_damage() -> None:
    content = record(1, Kind.FLUSH, 1 << 63, 1 << 31).pack()
    assert list(read_records(io.BytesIO(content), "t", Ending())) == [record(1, Kind.FLUSH, 0, 0)]


def test_lost_requests_are_counted(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", REQUESTS, ended=False)
    with path.open("ab") as file:
        file.write(lost_record(10, 7) + REQUESTS[0].pack() + lost_record(11, 5))
    with open_trace(str(path)) as trace:
        assert len(list(trace.records)) == 4
        assert trace.ending == Ending(complete=False, lost=12)


@pytest.mark.parametrize("cut_bytes", range(1, RECORD.size + 1))
def test_a_recording_that_broke_off_has_a_readable_prefix(cut_bytes: int, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", REQUESTS, ended=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut_bytes])
    with open_trace(str(path)) as trace:
        assert list(trace.records) == REQUESTS[:2]
        assert not trace.ending.complete


@pytest.mark.parametrize("zeros", [1, RECORD.size, 3 << 20])
def test_zeros_behind_the_last_record_are_no_damage(zeros: int, tmp_path: Path) -> None:
    """As a file system may show where the power failed."""
    path = write_trace(tmp_path / "t", REQUESTS, ended=False)
    with path.open("ab") as file:
        file.write(bytes(zeros))
    assert read_all(path) == REQUESTS
    with path.open("ab") as file:
        file.write(b"x")
    if zeros > RECORD.size:
        assert refusal_of(path) == f"{path}: record 4 of the trace is damaged: it is no record"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", [*REQUESTS, *REQUESTS])
    whole = bytearray(path.read_bytes())
    for damaged in (b"\2", b"\x09"):  # no request type of NBD
        at = len(HEADER.pack()) + 4 * RECORD.size + 36
        path.write_bytes(whole[:at] + damaged + whole[at + 1 :])
        assert refusal_of(path) == f"{path}: record 5 of the trace is damaged: it is no record"
    path.write_bytes(whole[: at + 2] + b"??" + whole[at + 4 :])
    assert "record 5 of the trace" in refusal_of(path)
    path.write_bytes(whole + REQUESTS[0].pack())
    assert "record 8 of the trace is damaged: something follows the end" in refusal_of(path)


@given(st.integers(0, 7), st.sampled_from(["offset", "length"]), st.integers(45, 63))
def test_what_lies_beyond_any_volume_is_no_record(other: int, field: str, bit: int) -> None:
    """One bit more would have the summary take all memory."""
    places = {"offset": other, "length": other, field: other | 1 << bit}
    content = record(1, Kind.READ, **places).pack()
    with pytest.raises(InvalidRequestError, match="record 1 of the trace is damaged: it is no"):
        list(read_records(io.BytesIO(content), "t", Ending()))


def test_more_requests_may_be_lost_than_a_volume_has_bytes() -> None:
    ending = Ending()
    assert not list(read_records(io.BytesIO(lost_record(1, 1 << 62)), "t", ending))
    assert ending.lost == 1 << 62


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    head = HEADER.pack()
    for content, said in [
        (head[:12], "the trace ends within its header"),
        (head[:-1], "the trace ends within its header"),
        (head[:8] + b"\x02" + head[9:], "a trace of version 2, and this bockd reads version 1"),
        (head[:12] + b"\0\0\0\x7f" + head[16:], "header is damaged (its length)"),
        (head.replace(b"size_bytes", b"size_bites"), "header is damaged"),
        (head.replace(b"{", b"["), "header is damaged"),
    ]:
        path.write_bytes(content)
        assert said in refusal_of(path)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_header_raises_anything_else(noise: bytes, at: int) -> None:
    head = HEADER.pack()
    changed = head[:at] + noise + head[at + len(noise) :]
    try:
        read_header(io.BytesIO(changed), "t")
    except BockdError:
        return
    except Exception as error:  # noqa: BLE001 - the point
        pytest.fail(f"{error!r} for {changed!r}")


def test_a_header_has_any_name() -> None:
    header = Header('a"\n\\é' * 50, 1, 1, 0.0)
    assert read_header(io.BytesIO(header.pack()), "t") == header


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "(it is empty)"),
        (b"QFI\xfb", "is no trace: bockd's own, fio's iolog (versions 2 and 3) and the text"),
        (b"\x07tae" + bytes(60), "print this with blkparse"),
        (b"fio version 1 iolog\n", "line 1: 'fio version 1 iolog': fio's iologs of the versions"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    assert said in refusal_of(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BockdError, match="missing"):
        read_all(tmp_path / "missing")


@given(st.permutations(range(9)), st.integers(1, 9))
def test_the_order_of_arrival_is_restored(shuffled: list[int], window: int) -> None:
    """Of records that stand at most `window` behind their place; the others are not lost."""
    given_order = [record(time) for time in shuffled]
    ordered = list(in_order(given_order, window))
    assert sorted(ordered) == sorted(given_order)
    if all(shuffled.index(time) - time <= window for time in shuffled):
        assert ordered == sorted(given_order)


def test_requests_that_came_together_keep_their_order() -> None:
    one, two = record(5, order=28), record(5, order=56)
    assert list(in_order([two, one])) == [one, two]
