"""The compiled fast lane: the same replies and the same bytes as without it, whatever is asked."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bockd.model import BLOCK_SIZE, MIB
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.server import fastlane
from bockd.nbd.server.durations import Operation
from bockd.nbd.server.limits import REPLY_BUFFER_BYTES
from bockd.runtime.steps import run_inline
from tests import pagecache
from tests.nbd.protocol import wire
from tests.nbd.server.lanes import STYLES, same_replies, streams
from tests.nbd.server.replies import cut
from tests.nbd.server.sides import (
    PLACE_BYTES,
    SIZE_BYTES,
    WRITTEN,
    Line,
    drop,
    two_sides,
)

pytestmark = pytest.mark.usefixtures("heads")

EINVAL, ENOSPC = 22, 28


def test_the_lane_is_compiled_where_tests_run() -> None:
    """Wherever these tests run there is a compiler: without it they would show nothing."""
    assert fastlane.load({}) is not None


def test_the_environment_can_leave_the_lane_out() -> None:
    assert fastlane.load({fastlane.VARIABLE: "off"}) is None


@pytest.mark.parametrize(
    ("module", "environ", "said"),
    [
        (sys.modules[fastlane.__name__], {}, "compiled"),
        (None, {}, "Python only: it was not compiled. For full speed install gcc"),
        (None, {fastlane.VARIABLE: "off"}, "Python only (BOCKD_FASTLANE=off)"),
    ],
)
def test_the_lane_in_use_is_named(
    module: object, environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is None:  # as Python has it for a module that is not to be found
        monkeypatch.delattr("bockd.nbd.server._fastlane")
        monkeypatch.setitem(sys.modules, "bockd.nbd.server._fastlane", None)
    assert fastlane.lane(environ).startswith(said)


def test_the_server_is_imported_without_the_compiled_lane() -> None:
    """As where there is no compiler."""
    hidden = "import sys; sys.modules['bockd.nbd.server._fastlane'] = None\n"
    code = "from bockd.nbd.server import fastlane, connection; assert fastlane.compiled is None"
    subprocess.run([sys.executable, "-c", hidden + code], check=True, timeout=60)


@pytest.mark.parametrize("send_buffer_bytes", [0, 20_000, 4 * MIB], ids=["none", "small", "large"])
@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_both_lanes_give_the_same_replies_and_content(
    structured: bool, extended: bool, send_buffer_bytes: int
) -> None:
    """And the same content, statistics and remainder, whether the lane may send itself, and can
    send all of it, or not."""
    with (
        two_sides(structured=structured, extended=extended) as (with_it, without),
        closing(Line(send_buffer_bytes)) as line,
    ):

        @settings(max_examples=60, deadline=None)
        @given(streams(extended), st.sampled_from([False, False, True]))
        def run(stream: bytes, cold: bool) -> None:
            if cold:
                run_inline(with_it.volume.flush())
                drop(with_it)
            same_replies(with_it, without, stream, line if send_buffer_bytes else None)
            assert with_it.content() == without.content()

        run()
    assert with_it.in_lane > 10
    assert without.in_lane == 0


def test_what_does_not_fit_into_the_replies_is_left_for_the_next_call() -> None:
    """What does not fit is left for the next call, and nothing is lost."""
    with two_sides(structured=True, extended=False) as (side, _):
        count = REPLY_BUFFER_BYTES // 65536 + 5
        stream = b"".join(
            wire.request(0, n, (n % WRITTEN) * PLACE_BYTES, 65536) for n in range(count)
        )
        replies, position = side.serve(stream)
        assert position == len(stream)
        assert side.in_lane == count
        single = cut(replies, stream, extended=False)
        assert sorted(struct.unpack_from(">Q", one, 8)[0] for one in single) == list(range(count))
        expected = side.content()
        for one in single:
            place = struct.unpack_from(">Q", one, 8)[0] % WRITTEN
            assert one[28:] == expected[place * PLACE_BYTES :][:65536]


def test_qemu_10s_write_is_served_by_both_lanes() -> None:
    """With extended headers it does not say that a write carries a payload."""
    data = b"q" * BLOCK_SIZE
    with two_sides(structured=True, extended=True) as sides:
        for side, in_lane in zip(sides, (1, 0), strict=True):
            place = 8 * PLACE_BYTES
            run_inline(side.volume.flush())
            replies, _ = side.serve(wire.unflagged_write(1, place, data))
            assert b"".join(replies) == wire.extended_done(1, place)
            assert side.in_lane == in_lane
            assert side.volume.durability.flusher.unsynced, "a plain write was flushed"
            replies, _ = side.serve(wire.unflagged_write(2, place + BLOCK_SIZE, data, flags=1))
            assert b"".join(replies) == wire.extended_done(2, place + BLOCK_SIZE)
            assert not side.volume.durability.flusher.unsynced
            assert side.content()[place:][: 2 * BLOCK_SIZE] == data + data


@pytest.mark.parametrize("command", [4, 6], ids=["trim", "zeroes"])
def test_no_write_overtakes_a_change(command: int) -> None:
    """Of a client that does not wait for its answers."""
    with two_sides(structured=True, extended=False) as (side, _):
        place, data = 8 * PLACE_BYTES, b"n" * BLOCK_SIZE
        side.serve(wire.request(command, 1, place, PLACE_BYTES) + wire.write(2, place, data))
        assert side.content()[place:][: 2 * BLOCK_SIZE] == data + bytes(BLOCK_SIZE)
        # Behind a flush, which changes nothing, it is served at once.
        before = side.in_lane
        side.serve(wire.request(3, 1) + wire.write(2, place, data))
        assert side.in_lane == before + 1


def test_writes_wait_while_the_map_is_being_changed() -> None:
    """Behind a closed gate, over a locked range, and after a failure, nothing is written in place
    without asking."""
    with two_sides(structured=True, extended=False) as (side, _):
        volume, place = side.volume, 8 * PLACE_BYTES
        stream = wire.write(1, place, b"n" * BLOCK_SIZE)
        before = side.content()

        run_inline(volume.gate.quiesce())
        assert volume.fast_view().head_slot == -1
        volume.gate.open()

        held = run_inline(volume.locks.acquire(0, 1))
        assert volume.fast_view().head_slot == -1
        volume.locks.release(held)

        volume.durability.failure.declare("for a test")
        assert volume.fast_view().head_slot == -1
        side.serve(stream)
        assert side.content() == before
        assert side.in_lane == 0


@pytest.mark.parametrize("inside", [0, 512], ids=["whole", "part"])
def test_zeros_in_a_block_that_no_barrier_covers_are_not_the_lanes(inside: int) -> None:
    """The journal must be told of them first. Zeros among other bytes are nothing to it, and after
    a flush these are not either."""
    with two_sides(structured=True, extended=False) as (side, _):
        place = 8 * PLACE_BYTES
        length = BLOCK_SIZE - inside
        zeros = wire.write(1, place + inside, bytes(length))
        others = wire.write(2, place + inside, bytes(length - 1) + b"x")
        run_inline(side.volume.flush())
        served = []
        for _ in range(2):
            for stream in (zeros, others):
                before = side.in_lane
                side.serve(stream)
                served.append(side.in_lane - before)
            # Another block, so that the map has changed.
            run_inline(side.volume.trim(0, BLOCK_SIZE))
            side.serve(wire.write(3, 0, b"n" * BLOCK_SIZE))
        assert served == [1, 1, 0, 1]


def test_a_write_is_noted_for_the_next_flush() -> None:
    with two_sides(structured=True, extended=False) as (side, _):
        run_inline(side.volume.flush())
        assert not side.volume.durability.flusher.unsynced
        side.serve(wire.request(0, 1, 8 * PLACE_BYTES, BLOCK_SIZE))
        assert not side.volume.durability.flusher.unsynced, "a read was taken for a write"
        side.serve(wire.write(1, 8 * PLACE_BYTES, b"n" * BLOCK_SIZE))
        assert side.in_lane == 2
        assert side.volume.durability.flusher.unsynced


def test_a_volume_that_has_grown_is_served_to_its_end() -> None:
    """On the connection that was told the old size, in the lane and without it."""
    with two_sides(structured=False, extended=False) as sides:
        for side, in_lane in zip(sides, (2, 0), strict=True):
            data = b"g" * BLOCK_SIZE
            stream = wire.write(1, SIZE_BYTES, data) + wire.request(0, 2, SIZE_BYTES, BLOCK_SIZE)
            refused, _ = side.serve(stream)
            errors = [error for _, error, _ in struct.iter_unpack(">IIQ", b"".join(refused))]
            assert sorted(errors) == [EINVAL, ENOSPC]
            run_inline(side.pool.extend_volume(side.volume.durability.record.id, 2 * SIZE_BYTES))
            side.serve(wire.write(1, SIZE_BYTES, bytes(BLOCK_SIZE)))  # changes the map
            before = side.in_lane
            replies, _ = side.serve(stream)
            assert data in b"".join(replies)
            assert side.in_lane - before == in_lane
            replies, _ = side.serve(wire.write(3, 2 * SIZE_BYTES - 512, data))
            assert struct.unpack(">IIQ", b"".join(replies))[1] == ENOSPC


# -- sending and receiving by itself -------------------------------------------------------------

LONG = 10_000_000_000
"""Nanoseconds."""


def reads(*places: int, length: int = 65_536) -> bytes:
    """Requests to read from the beginning of places; their cookies are these."""
    return b"".join(wire.request(0, place, place * PLACE_BYTES, length) for place in places)


def test_requests_that_came_meanwhile_are_served_in_the_same_call() -> None:
    """What is there already when the first replies are sent is served in the same call."""
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(MIB)) as line:
        data = b"n" * BLOCK_SIZE
        second = reads(1, length=512) + wire.write(2, 8 * PLACE_BYTES, data)
        line.say(second[:-100])
        received = memoryview(bytearray(256 * 1024))
        first = reads(0, length=512)
        received[: len(first)] = first
        turn = fastlane.Turn(line.ours.fileno(), 1_000_000, LONG)
        done = side.batch.serve_plain(received, 0, len(first), turn)
        assert done is not None
        assert (done.reads, done.writes, done.rest) == (2, 0, [])
        assert done.received_bytes == len(second) - 100
        assert done.polled
        assert sum(side.statistics.durations.between_bounds(Operation.READ)) == 2
        assert side.batch.finish() == []
        # The rest of the write comes later: its beginning has moved to the front.
        assert done.position == 0
        left = done.end
        assert received[:left] == second[28:-100]
        received[left : left + 100] = second[-100:]
        done = side.batch.serve_plain(received, 0, left + 100, fastlane.Turn(turn.sock))
        assert done is not None
        assert (done.writes, done.position, done.end) == (1, left + 100, left + 100)
        single = cut([line.heard()], first + second, extended=False)
        assert [struct.unpack_from(">Q", one, 8)[0] for one in single] == [0, 1, 2]
        assert side.content()[8 * PLACE_BYTES :][:BLOCK_SIZE] == data


def test_a_request_that_is_not_for_the_lane_ends_the_call() -> None:
    """A request that only Python serves, or the parser must see, and the end of a turn."""
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(MIB)) as line:
        received = memoryview(bytearray(256 * 1024))
        plain = reads(0, length=512)

        def serve(data: bytes, turn_ns: int) -> fastlane.Served:
            received[: len(data)] = data
            turn = fastlane.Turn(line.ours.fileno(), 1_000_000, turn_ns)
            done = side.batch.serve_plain(received, 0, len(data), turn)
            assert done is not None
            side.batch.finish()
            return done

        line.say(plain)
        done = serve(plain + wire.request(3, 1), LONG)
        assert (done.reads, done.served, len(done.rest)) == (1, 1, 1)
        done = serve(plain + wire.request(2), LONG)
        assert (done.reads, done.served, done.position) == (1, 0, 28)
        done = serve(plain, 0)
        assert (done.reads, done.polled) == (1, 0)
        done = serve(plain, LONG)
        assert (done.reads, done.polled) == (2, 1), "what waited was not lost"
        line.hang_up()
        done = serve(plain, LONG)
        assert (done.sent, done.served) == (0, 1), "who sends it meets the error"


def test_large_reads_come_from_windows() -> None:
    """Of the head and of a frozen layer, up to 1 MiB; what no single layer has is for others."""
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(4 * MIB)) as line:
        content = side.content()
        for place in (0, 4):
            stream = wire.request(0, place, place * PLACE_BYTES, MIB)
            replies, _ = side.serve(stream, line)
            assert b"".join(replies)[28:] == content[place * PLACE_BYTES :][:MIB]
        assert side.in_lane == 2
        for asked in (wire.request(0, 1, 2 * MIB, MIB), wire.request(0, 1, 0, MIB + 1)):
            assert side.serve(asked, line)[0] == [b""]
        assert side.in_lane == 2


@pytest.mark.parametrize("length", range(8_196, 65_536, 7_001))
def test_a_send_that_stops_within_an_acknowledgement(length: int) -> None:
    """Replies that others make come in front of the acknowledgements: none may be cut in two."""
    writes = [wire.write(100 + n, 4 * PLACE_BYTES + 512 * n, b"w" * 16) for n in range(400)]
    between = wire.request(0, 2, 4 * PLACE_BYTES - BLOCK_SIZE, 2 * BLOCK_SIZE)  # of two layers
    stream = wire.request(0, 1, 0, length) + b"".join(writes) + between
    with two_sides(structured=False, extended=False) as (side, _):
        for send_buffer_bytes in (4_608, 12_000, 20_000, 40_000, 65_536):
            with closing(Line(send_buffer_bytes)) as line:
                replies, _ = side.serve(stream, line)
            single = cut(replies, stream, extended=False)
            cookies = [struct.unpack_from(">Q", one, 8)[0] for one in single]
            assert sorted(cookies) == [1, 2, *range(100, 500)]


def test_what_is_not_in_the_page_cache_is_for_others() -> None:
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(MIB)) as line:
        expected = side.content()[:65_536]
        run_inline(side.volume.flush())
        layer = side.layer(0)
        pagecache.drop(layer.near_descriptor)
        replies, _ = side.serve(reads(0), line)
        assert side.in_lane == 0
        assert b"".join(replies)[28:] == expected
        side.serve(reads(0), line)
        assert side.in_lane == 1


def test_a_file_that_was_cut_off_is_an_error() -> None:
    """And does not end the process, although it is mapped."""
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(MIB)) as line:
        side.serve(reads(0), line)
        assert side.in_lane == 1
        layer = side.layer(0)
        os.truncate(f"/proc/self/fd/{layer.near_descriptor}", 4096)
        replies, _ = side.serve(reads(0), line)
        assert side.in_lane == 1
        assert struct.unpack_from(">I", b"".join(replies)[20:])[0] == 5


def test_a_file_that_was_cut_off_before_it_was_mapped_is_an_error() -> None:
    """Nothing behind what is mapped of it is sent."""
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(MIB)) as line:
        os.truncate(f"/proc/self/fd/{side.layer(1).near_descriptor}", 4096)
        replies, _ = side.serve(reads(1), line)
        assert side.in_lane == 0
        assert struct.unpack_from(">I", b"".join(replies)[20:])[0] == 5


def test_data_that_goes_missing_behind_its_header_ends_the_connection(tmp_path: Path) -> None:
    """What the socket did not take must be read; here the file turns out to be another, empty."""
    with two_sides(structured=True, extended=False) as (side, _), closing(Line(20_000)) as line:
        side.serve(reads(0), line)
        layer = side.layer(0)
        with (tmp_path / "empty").open("w+b") as empty:
            whole, layer.first_descriptor = layer.first_descriptor, empty.fileno()
            with pytest.raises(ProtocolError, match="reading failed behind a reply's header"):
                side.serve(reads(0), line)
            layer.first_descriptor = whole
