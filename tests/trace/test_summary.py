"""The numbers about known traces, and the picture."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.model import GIB, KIB, MAX_VOLUME_BYTES, MIB
from bockd.trace.heatmap import COLUMNS, ROWS, HeatMap
from bockd.trace.records import FUA, Kind, Record
from bockd.trace.summary import (
    Blocks,
    Summarizing,
    Summary,
    hot_shares,
    percentile,
    size_classes,
)
from tests.trace.samples import record


def summarize(records: list[Record]) -> Summary:
    summarizing = Summarizing()
    assert list(summarizing.through(records)) == records
    return summarizing.summary()


def test_the_numbers_of_a_known_trace() -> None:
    records = [
        *(record(n * 10**9, Kind.READ, n * 8192, 8192, latency_ns=n * 1000) for n in range(1, 5)),
        record(5 * 10**9, Kind.WRITE, MIB + 512, 512, flags=FUA, latency_ns=700),
        record(5 * 10**9, Kind.WRITE, 0, 4096, latency_ns=900),
        record(6 * 10**9, Kind.FLUSH, 0, 0, latency_ns=0),
        record(7 * 10**9, Kind.ZERO, MIB, MIB, flags=2),
    ]
    found = summarize(records)
    assert found.requests == 8
    assert found.seconds == 6.0
    assert found.end_bytes == 2 * MIB
    assert found.read_set_bytes == 4 * 8192
    assert found.write_set_bytes == 8192  # two blocks, one in part
    assert found.working_set_bytes == 5 * 8192
    assert found.hot == {1: 5 / 6, 10: 5 / 6, 50: 5 / 6}
    assert found.flags == {"FUA": 1, "NO_HOLE": 1}
    reads, writes, flushes, zeroes = found.kinds
    assert (reads.kind, reads.requests, reads.bytes, reads.sequential) == ("read", 4, 32768, 3)
    assert reads.latency_us == {"p50": 2.0, "p90": 4.0, "p99": 4.0, "p99.9": 4.0}
    assert (writes.kind, writes.requests, writes.fua, writes.sequential) == ("write", 2, 1, 0)
    assert writes.sizes == {512: 1, 4096: 1}
    assert (flushes.kind, flushes.requests, flushes.latency_us) == ("flush", 1, {})
    assert (zeroes.kind, zeroes.bytes) == ("zero", MIB)


def test_readers_side_by_side_are_sequential() -> None:
    """Each request goes on where one of several streams is."""
    records = [
        record(n, Kind.READ, stream * GIB + n * 4096) for n in range(10) for stream in range(32)
    ]
    assert summarize(records).kinds[0].sequential == 9 * 32
    records = [
        record(n, Kind.READ, stream * GIB + n * 4096) for n in range(10) for stream in range(33)
    ]
    assert summarize(records).kinds[0].sequential == 0


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 300 * MIB)), max_size=8))
def test_a_set_of_blocks_is_that_of_its_ranges(ranges: list[tuple[int, int]]) -> None:
    blocks = Blocks()
    edges = []
    for offset, length in ranges:
        blocks.add(offset, length)
        edges.append((offset // 4096, -(-(offset + length) // 4096)))
    count, reach = 0, 0
    for begin, end in sorted(edges):
        count += max(0, end - max(begin, reach))
        reach = max(reach, end)
    assert len(blocks) == count


def test_a_request_of_a_whole_volume_takes_little_memory() -> None:
    blocks = Blocks()
    tracemalloc.start()
    try:
        blocks.add(0, MAX_VOLUME_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert len(blocks) * 4096 == MAX_VOLUME_BYTES


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([7], 0.999) == 7
    assert [percentile(range(1, 101), p) for p in (0.5, 0.9, 0.99, 0.999)] == [50, 90, 99, 100]


def test_busy_regions_are_counted() -> None:
    regions = Counter(dict.fromkeys(range(90), 1) | dict.fromkeys(range(90, 100), 11))
    assert hot_shares(regions) == {1: 11 / 200, 10: 110 / 200, 50: 150 / 200}
    assert hot_shares(Counter()) == {}


def test_sizes_are_classed_by_powers_of_two() -> None:
    sizes = {1: 1, 512: 2, 513: 4, 4096: 8, 64 * KIB: 16, 1 << 60: 32}
    assert size_classes(sizes) == [(512, 3), (1024, 4), (4096, 8), (64 * KIB, 16), (1 << 60, 32)]


def test_the_heat_map_counts_each_request_once() -> None:
    heat = HeatMap()
    chosen = random.Random(5)
    records = [
        record(
            n * 3_000_000,
            chosen.choice([Kind.READ, Kind.WRITE, Kind.TRIM, Kind.FLUSH]),
            chosen.randrange(GIB),
        )
        for n in range(1000)
    ]
    assert list(heat.through(records)) == records
    assert heat.counts["read"].total() == sum(one.kind is Kind.READ for one in records)
    assert heat.counts["write"].total() == sum(one.kind.changes for one in records)
    for counts in heat.counts.values():
        assert all(column < COLUMNS and row < ROWS for column, row in counts)
    first = records[0]
    again = HeatMap()
    again.cell_ns, again.cell_bytes = heat.cell_ns, heat.cell_bytes
    for one in records:  # counted in cells of the last size from the first request on
        again.add(one)
    assert again.counts == heat.counts, first


@pytest.mark.parametrize("title", ["web", 'a<b & "c"'])
def test_the_heat_map_is_svg(title: str) -> None:
    heat = HeatMap()
    empty = ElementTree.fromstring(heat.svg(title))
    heat.add(record(0))
    heat.add(record(1, Kind.WRITE, 63 * 64 * KIB))
    picture = ElementTree.fromstring(heat.svg(title))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [found.text for found in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert shown[0] == title
    assert {"reads: 1, at most 1 in a cell", "4 MiB", "0.16 s"} <= set(shown)
    assert len(list(picture.iter())) == len(list(empty.iter())) + 2
