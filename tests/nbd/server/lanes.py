"""What the two lanes are held against each other with: streams of requests, and equal replies."""

from __future__ import annotations

from hypothesis import strategies as st

from bockd.model import BLOCK_SIZE
from bockd.nbd.server.durations import Operation
from tests.nbd.protocol import wire
from tests.nbd.server.replies import cut
from tests.nbd.server.sides import PLACE_BYTES, PLACES, SIZE_BYTES, Line, Side

STYLES = [(False, False), (True, False), (True, True)]
"""Structured, extended."""

COUNTED = ("reads", "read_bytes", "writes", "written_bytes", "trims", "flushes", "errors")

offsets = st.one_of(
    st.sampled_from([0, BLOCK_SIZE, 8 * BLOCK_SIZE, 512, PLACE_BYTES - BLOCK_SIZE]),
    st.integers(0, PLACE_BYTES - 1),
)
lengths = st.one_of(
    st.sampled_from([0, 512, BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE, 2 * BLOCK_SIZE, 64 * 1024]),
    st.integers(1, 70_000),
)
commands = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 1, 3, 4, 5, 6, 7, 77])
flags = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32])
faraway = st.sampled_from([SIZE_BYTES, SIZE_BYTES - 1, 1 << 43, (1 << 64) - 4096])


class Stream(bytes):
    """What a client sends. Shown without its data: Hypothesis warns of long examples, in place of
    saying what has failed."""

    said: str

    def __new__(cls, content: bytes, said: str) -> Stream:
        stream = super().__new__(cls, content)
        stream.said = said
        return stream

    def __repr__(self) -> str:
        return f"<{len(self)} bytes: {self.said}>"


@st.composite
def streams(draw: st.DrawFn, extended: bool, but: int | None = None) -> Stream:
    """Requests that are in flight together: each in a place of its own, since what they did to each
    other would depend on their order, which the protocol leaves open. Place `but` is another's."""
    parts, said = [], ""
    places = st.integers(0, PLACES - 1).filter(lambda place: place != but)
    for cookie, place in enumerate(draw(st.lists(places, min_size=6, unique=True))):
        inside = draw(offsets)
        length = min(draw(lengths), PLACE_BYTES - inside)
        offset = place * PLACE_BYTES + inside
        if draw(st.integers(0, 9)) == 0:
            offset = draw(faraway)
        command, flag = draw(commands), draw(flags)
        said += f"{command}/{flag} {offset}+{length}, "
        if command == 1:
            data = draw(st.sampled_from([bytes([cookie + 1]) * length] * 3 + [bytes(length)]))
            forms = [wire.extended_write, wire.unflagged_write] if extended else [wire.write]
            form = draw(st.sampled_from(forms))
            parts.append(form(cookie, offset, data, flag))
        else:
            ask = wire.extended if extended else wire.request
            parts.append(ask(command, cookie, offset, length, flag & ~32))
    stream = b"".join(parts)
    how = draw(st.sampled_from(["whole", "whole", "cut", "broken", "disconnect"]))
    if how == "cut":
        stream = stream[: draw(st.integers(0, len(stream)))]
    if how == "broken":
        stream += b"x" * 40
    if how == "disconnect":
        end = wire.extended(2) if extended else wire.request(2)
        stream += end + stream
    return Stream(stream, said + how)


def same_replies(
    with_it: Side, without: Side, stream: bytes, line: Line | None, *, data: bool = True
) -> None:
    """Both lanes stop at the same place, answer the same requests and count the same, and have
    entered how long each took, once; with `data` they give the same replies."""
    with_it.batch.disconnect = without.batch.disconnect = False
    ours, stopped = with_it.serve(stream, line)
    theirs, there = without.serve(stream)
    assert stopped == there
    if data:
        extended = with_it.extended
        assert sorted(cut(ours, stream, extended)) == sorted(cut(theirs, stream, extended))
    else:
        assert len(b"".join(ours)) == len(b"".join(theirs))
    for name in COUNTED:
        assert getattr(with_it.statistics, name) == getattr(without.statistics, name)
    for side in (with_it, without):
        entered = tuple(sum(side.statistics.durations.between_bounds(one)) for one in Operation)
        assert entered == side.statistics.by_operation()
