"""What must hold for every session, for the protocol alone: tests and fuzzer share it."""

from __future__ import annotations

from tests.hostile.judge import Verdict, judge
from tests.hostile.offline import OfflineServer
from tests.hostile.sessions import Session, Target

OFFLINE = Target("disk", size=4 << 20, reach=4 << 20)


def played(pieces: list[bytes], target: Target) -> OfflineServer:
    """The conversation that comes of the client's pieces."""
    server = OfflineServer(target)
    for piece in pieces:
        server.receive(piece)
    return server


def protocol_holds(session: Session, target: Target = OFFLINE) -> Verdict:
    """No exception but ProtocolError, no more kept than the limits say, the same answers however
    the stream is cut, and all of them well-formed. AssertionError, or what the protocol raises."""
    whole = played([session.sent], target)
    cut = played(session.pieces(), target)
    assert (cut.replies, cut.closed) == (whole.replies, whole.closed)
    verdict = judge(session.sent, bytes(whole.replies), target)
    assert not verdict.truncated
    if verdict.at_a_border:
        assert not verdict.unanswered
    return verdict
