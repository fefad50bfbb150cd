"""Traces of others: fio's iologs against fio, blkparse's text against blkparse."""

from __future__ import annotations

import io
import itertools
import json
import struct
import subprocess
from pathlib import Path

import pytest

from bockd.errors import InvalidRequestError
from bockd.trace.blkparse import read_blkparse
from bockd.trace.iolog import Written, read_iolog, write_iolog
from bockd.trace.records import FUA, Kind, Record
from tests.trace.samples import places, read_all, record

MIXED = [
    record(0, Kind.READ, 8192, 4096, order=1),
    record(1_500_000, Kind.WRITE, 4096, 512, order=2, flags=FUA),
    record(1_500_000, Kind.FLUSH, 0, 0, order=3),
    record(2_000_000, Kind.ZERO, 65536, 4096, order=4),
    record(2_000_000, Kind.STATUS, 0, 65536, order=5),
    record(3_000_999, Kind.TRIM, 16384, 8192, order=6),
]
SHOWN = [
    (Kind.READ, 8192, 4096),
    (Kind.WRITE, 4096, 512),
    (Kind.FLUSH, 0, 0),
    (Kind.TRIM, 65536, 4096),
    (Kind.TRIM, 16384, 8192),
]


def written(records: list[Record], version: int, volume: str = "web") -> tuple[str, Written]:
    file, done = io.StringIO(), Written()
    write_iolog(records, file, volume, version, done)
    return file.getvalue(), done


def refusal_of(text: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        list(read_iolog(io.BytesIO(text.encode()), "t"))
    return str(caught.value)


def run(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", [2, 3])
def test_an_iolog_is_read_as_it_was_written(version: int, tmp_path: Path) -> None:
    text, done = written(MIXED, version, "my disk")
    assert (done.requests, done.left_out, done.simplified) == (5, 1, 2)
    path = tmp_path / "log"
    path.write_text(text)
    found = read_all(path)
    assert places(found) == SHOWN
    if version == 3:
        assert [one.time_ns for one in found] == [0, 1_500_000, 1_500_000, 2_000_000, 3_000_000]


def test_a_long_trim_is_written_in_pieces_that_fio_can_read() -> None:
    text, _ = written([record(0, Kind.TRIM, 512, (1 << 33) + 5)], 2)
    pieces = places(list(read_iolog(io.BytesIO(text.encode()), "t")))
    assert sum(length for _, _, length in pieces) == (1 << 33) + 5
    assert all(length < 1 << 32 for _, _, length in pieces)
    assert all(a[1] + a[2] == b[1] for a, b in itertools.pairwise(pieces))


@pytest.mark.parametrize("version", [2, 3])
def test_fio_replays_what_we_write(version: int, tmp_path: Path) -> None:
    """The requests that it counts, and the bytes that it writes. (fio 3.33 complains about trims
    and leaves them out; later ones do them.)"""
    (tmp_path / "web").write_bytes(bytes(1 << 20))
    (tmp_path / "ours").write_text(written(MIXED, version)[0])
    command = ("--name=replay", "--ioengine=psync", "--read_iolog=ours", "--output=out")
    told = run("fio", *command, "--output-format=json", cwd=tmp_path)
    text = (tmp_path / "out").read_text()
    assert "bad iolog" not in told + text
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert [job[kind]["total_ios"] for kind in ("read", "write", "sync")] == [1, 1, 1]
    content = (tmp_path / "web").read_bytes()
    assert any(content[4096:4608])
    assert not any(content[:4096] + content[4608:])


def test_what_fio_writes_is_read(tmp_path: Path) -> None:
    job = ("--name=job", "--filename=f", "--size=256k", "--bsrange=512-8k", "--bs_unaligned=1")
    more = ("--rw=randrw", "--fsync=8", "--write_iolog=log", "--thinktime=2000")
    run("fio", *job, *more, "--output-format=json", "--output=out", cwd=tmp_path)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "fio version 3 iolog"
    found = read_all(tmp_path / "log")
    shown = [line.split() for line in lines[1:] if len(line.split()) == 5]
    words = {Kind.READ: "read", Kind.WRITE: "write", Kind.FLUSH: "sync"}
    expected = [
        [action, offset, length] if action != "sync" else ["sync", "0", "0"]
        for _, _, action, offset, length in shown
    ]
    assert [[words[k], str(o), str(n)] for k, o, n in places(found)] == expected
    # Microseconds: fio has waited for two milliseconds after each read and write.
    waited = [
        after.time_ns - before.time_ns
        for before, after in itertools.pairwise(found)
        if before.kind is not Kind.FLUSH
    ]
    assert min(waited) >= 2_000_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fio version 4 iolog\n", "line 1: 'fio version 4 iolog': fio's iologs of the versions 2"),
        ("fio version 2 iolog\nf add\nf read 0\n", "line 3: a file, an action, an offset and"),
        ("fio version 2 iolog\nf read 0 5x\n", "line 2: '5x' is not a length"),
        ("fio version 2 iolog\nf read -1 5\n", "line 2: '-1' is not an offset"),
        ("fio version 2 iolog\nf eat 1 5\n", "line 2: 'eat' is no action of version 2"),
        ("fio version 3 iolog\n1 f wait 1 5\n", "line 2: 'wait' is no action of version 3"),
        ("fio version 3 iolog\nf read 0 5\n", "line 2: 'f' is not a time in microseconds"),
        ("fio version 3 iolog\n0 f read 0 5", "line 2: it is cut short"),
        ("fio version 2 iolog\nf add\ng add\n", "line 3: a second file, 'g' beside 'f'"),
        ("fio version 2 iolog\nf read 9223372036854775807 1\n", "line 2: no volume is so large"),
        (f"fio version 2 iolog\nf read {16 << 40} 1\n", "line 2: no volume is so large"),
        ("fio version 2 iolog\nf read " + "1" * 5000, "line 2: it is cut short"),
    ],
)
def test_a_damaged_iolog_is_refused_by_line(text: str, said: str) -> None:
    assert said in refusal_of(text)


def test_waits_of_version_2_are_gaps() -> None:
    text = b"fio version 2 iolog\nf add\nf open\nf read 0 1\nf wait 1500 0\nf read 1 1\nf close\n"
    assert [one.time_ns for one in read_iolog(io.BytesIO(text), "t")] == [0, 1_500_000]


# -- blkparse ------------------------------------------------------------------------------------

QUEUE, BACK_MERGE, ISSUE, COMPLETE = 1, 2, 7, 8
READ, WRITE, FLUSH, SYNC, DISCARD, FUA_BIT = 1, 2, 4, 8, 1 << 13, 1 << 15


def event(number: int, time_ns: int, sector: int, length: int, action: int, category: int) -> bytes:
    """struct blk_io_trace, version 7 (linux/blktrace_api.h)."""
    return struct.pack(
        "<IIQQIIIIIHH",
        *(0x65617407, number, time_ns, sector, length, action | category << 16),
        *(42, 8 << 20, 0, 0, 0),
    )


def test_what_blkparse_prints_is_read(tmp_path: Path) -> None:
    """The kernel's tracing needs more than a container may do, so the binary trace is made here;
    the text is of the real blkparse."""
    events = [
        event(1, 1_000, 8, 4096, QUEUE, READ),
        event(2, 2_000, 8, 4096, ISSUE, READ),
        event(3, 3_000, 100, 4096, QUEUE, WRITE),
        event(4, 3_500, 108, 4096, QUEUE, WRITE),
        event(5, 3_600, 108, 4096, BACK_MERGE, WRITE),
        event(6, 4_000, 100, 8192, ISSUE, WRITE),
        event(7, 5_000, 8, 4096, COMPLETE, READ),
        event(8, 6_000, 200, 512, ISSUE, WRITE | SYNC | FUA_BIT),
        event(9, 7_000, 100, 8192, COMPLETE, WRITE),
        event(10, 9_000, 200, 512, COMPLETE, WRITE | SYNC | FUA_BIT),
        event(11, 10_000, 0, 0, ISSUE, FLUSH),
        event(12, 11_000, 1 << 20, 65536, ISSUE, WRITE | DISCARD),
        event(13, 14_000, 0, 0, COMPLETE, FLUSH),
    ]
    (tmp_path / "x.blktrace.0").write_bytes(b"".join(events))
    run("blkparse", "-i", "x", "-o", "text", cwd=tmp_path)
    found = read_all(tmp_path / "text")
    assert [
        (*place, one.flags, one.latency_ns) for place, one in zip(places(found), found, strict=True)
    ] == [
        (Kind.READ, 4096, 4096, 0, 3_000),
        (Kind.WRITE, 51200, 8192, 0, 3_000),
        (Kind.WRITE, 102400, 512, FUA, 3_000),
        (Kind.FLUSH, 0, 0, 0, 4_000),
        (Kind.TRIM, 512 << 20, 65536, 0, 0),
    ]


def test_blkparse_lines_that_are_damaged_are_named() -> None:
    text = (
        b"  8,0    3        1     0.000000000   697  Q   R 8 + 8 [x]\n"
        b"  8,0    3        2     0.00\n"
    )
    with pytest.raises(InvalidRequestError, match="t: line 2 is no line of blkparse"):
        list(read_blkparse(io.BytesIO(text), "t"))
    far = text.splitlines(keepends=True)[0].replace(b" 8 + 8 ", b" %d + 1 " % (16 << 40 >> 9))
    with pytest.raises(InvalidRequestError, match="t: line 1: no volume is so large"):
        list(read_blkparse(io.BytesIO(far), "t"))
    other = text.splitlines(keepends=True)[0].replace(b"8,0", b"8,1")
    with pytest.raises(InvalidRequestError, match="line 2: a second device, 8,1 beside 8,0"):
        list(read_blkparse(io.BytesIO(text.splitlines(keepends=True)[0] + other), "t"))
