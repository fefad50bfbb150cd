"""Every bound of the NBD server, with its reason. Tests make small ones; the daemon takes these.

The bounds of the protocol itself (option length, name length, payload size) are in
`bockd.nbd.protocol`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bockd.model import KIB, MIB

RECEIVE_BUFFER_BYTES: Final = 256 * KIB
"""One `recv_into` takes up to this: 60 writes of 4 KiB, or what a Unix socket holds at once."""

REPLY_BUFFER_BYTES: Final = 1 * MIB + 64 * KIB
"""Replies of one batch, sent by one call: 1 MiB of data and its headers. Anonymous memory: pages
cost nothing until used."""

MAX_BATCH_REQUESTS: Final = 512
"""Requests of one batch; more than any client keeps in flight (MAX_IN_FLIGHT below). A receive
buffer holds 9,000 that carry nothing, and to serve those in one go would hold the loop."""

MAX_SMALL_REPLY_BYTES: Final = 1 * MIB
"""Replies of a batch beside the data of reads: a block status may take 64 KiB, an error a sentence.
Once there are so many, they are sent before more is served."""

MAX_INLINE_READ_BYTES: Final = 256 * KIB
"""Reads up to here are answered within their batch. nbdcopy asks for 256 KiB; a larger one would
hold the loop for longer than the poll does."""

PIECE_BYTES: Final = 1 * MIB
"""Large payloads are received, written, read and sent in pieces of this, aligned in the volume."""

MAX_CONNECTIONS: Final = 512
"""Fewer where the process may have few descriptors (bockd.descriptors). The next client takes
the place of the one that has been in its handshake for longest, so that who connects and says
nothing keeps nobody out; if all have chosen an export, the next one is refused."""

MAX_LEAVING: Final = 16
"""Clients beyond MAX_CONNECTIONS that have lost their place and are not closed yet."""

MAX_IN_FLIGHT: Final = 128
"""Requests of one connection that are being served in the background; then nothing more is parsed.
nbdcopy keeps 64 in flight, the kernel's client 128."""

MAX_HELD_BYTES: Final = PIECE_BYTES
"""Payloads of one connection that wait for the limits of its volume: 256 writes of 4 KiB. What is
behind them stays in the socket."""

MAX_ANSWER_BYTES: Final = PIECE_BYTES
"""Data of reads of one connection to a volume with a device profile: those under way, those whose
answers wait for the time that the profile says, and those that are being sent. Three quarters are
for answers that wait, the data of 192 reads of 4 KiB. Further reads are done when their time has
come, as far as there is room."""

PEER_LOOK_SECONDS: Final = 0.5
"""How often a connection that waits for the limits, or for a device profile, and does not receive,
looks whether its client is still there."""

SHARED_MEMORY_BYTES: Final = 256 * MIB
"""Large payloads, of all connections together, beside what each has reserved."""

HANDSHAKE_SECONDS: Final = 30.0
"""A client that has not chosen an export by then is closed; people type into telnet more slowly
than programs negotiate, and nothing else waits for it."""

KEEPALIVE_SECONDS: Final = 900
"""How long a TCP client that says nothing may leave the kernel's probes unanswered. Who is in
transmission and stops, even in the middle of a request or of a reply, is kept for as long as its
machine answers: it may have been suspended, and what it costs is bounded. A switch that restarts
takes minutes; a quarter of an hour is also how long the kernel goes on to send what is not
acknowledged (`net.ipv4.tcp_retries2`)."""

TCP_USER_TIMEOUT_SECONDS: Final = 0
"""TCP_USER_TIMEOUT, for who wants dead clients found earlier; 0 leaves it to the kernel. It also
ends a client that is alive and takes no replies, since a window that stays closed counts, too."""

FENCE_SECONDS: Final = 10.0
"""How long a new connection waits for what older ones of its export had sent before; an older one
that has not been read by then (its client does not take its replies) is dropped."""

ACCEPT_PAUSE_SECONDS: Final = 0.1
"""After EMFILE and the like, before accepting again: descriptors come back as clients leave."""

ACCEPTS_OF_A_TURN: Final = 8
"""Clients accepted before the loop turns: a busy loop turns a thousand times a second, and who only
connects is quicker than that. Fewer than MAX_LEAVING, or one would be refused for want of a turn.
"""

FAILURE_LOG_SECONDS: Final = 15.0
"""How often is looked for failures that are to be logged: what FailureLog holds back for a minute
comes at most so much later."""

POLL_TRIES: Final = 60
"""Attempts to receive before a connection parks: under 0.1 ms, longer than a client's turn-around,
and far shorter than a wake-up through epoll at low queue depth."""

SHARED_POLL_TRIES: Final = 4
"""Attempts between two turns of the loop while other connections are at work, too."""

TURN_SECONDS: Final = 0.001
"""A busy connection lets the loop turn after this, so that nobody waits longer than it takes."""

TURN_NS: Final = int(TURN_SECONDS * 1e9)
"""The same in nanoseconds."""

SHARED_TURN_NS: Final = TURN_NS // 8
"""A turn that several connections take together, while others are at work that cannot take part in
it: about as long as a batch of theirs."""

SHARE_NS: Final = TURN_NS // 20
"""How long the connections of one volume are served, in a turn that several take together, before
the next volume's are looked at, where one thread serves both: about as long as 32 requests take. A
round that has begun is finished."""

MAX_LANES: Final = 16
"""Connections in one turn, as in _fastlane_together.h. Those beyond have the next one."""

MAX_LANE_THREADS: Final = 8
"""Threads of one turn, as in _fastlane_together.h. Fewer where there are fewer cores, and where the
process may not use the time of so many (bockd.processors)."""

TASK_BYTES: Final = 8 * KIB
"""A request in the background beside its payload: a task of the event loop and what it refers to
(measured: under 6 KiB)."""

CONNECTION_BYTES: Final = (
    RECEIVE_BUFFER_BYTES
    + REPLY_BUFFER_BYTES
    + MAX_SMALL_REPLY_BYTES
    + PIECE_BYTES  # its own piece of a large payload
    + 3 * PIECE_BYTES  # what it may have in the background when the shared part is used up
    + 2 * MAX_HELD_BYTES  # what waits for the limits, and is copied when it may pass
    + MAX_ANSWER_BYTES
    + 2 * MAX_IN_FLIGHT * TASK_BYTES  # the pieces of a large write are tasks, too
)
"""The most that one connection may cost beside its use of the shared part, and beside TLS."""

TLS_RECORD_BYTES: Final = 16 * KIB
"""Of content in one TLS record."""

TLS_CIPHER_RECORD_BYTES: Final = TLS_RECORD_BYTES + 2048 + 5
"""The same with all that TLS 1.2 may add to it: RFC 5246, section 6.2.3."""

TLS_RECEIVE_BYTES: Final = 256 * KIB
"""Taken from the socket at once, as much as the plain channel's callers ask for. A connection holds
no more than this, and a record, before it is decrypted."""

TLS_SEND_BYTES: Final = 64 * KIB
"""Once there are so many, records are handed to the kernel before more is encrypted, and held until
it has taken them. (With four times as much no more was sent in a second.)"""

TLS_UNASKED_BYTES: Final = 16 * KIB
"""OpenSSL's own answers (to key updates) that wait for a send. A peer that makes it talk for longer
without asking for anything is playing."""

TLS_STATE_BYTES: Final = 64 * KIB
"""What OpenSSL keeps of a connection beside what it is handed (measured: 65 KiB for both
of its ends)."""

_TLS_RECORDS_BYTES: Final = TLS_SEND_BYTES + TLS_CIPHER_RECORD_BYTES

TLS_BYTES: Final = (
    (TLS_RECEIVE_BYTES + TLS_CIPHER_RECORD_BYTES) * 4 // 3  # OpenSSL makes its buffers a third
    + _TLS_RECORDS_BYTES * 4 // 3  # larger than what is in them, and never smaller again
    + _TLS_RECORDS_BYTES  # what is with the kernel in part
    + TLS_STATE_BYTES
)
"""The most that TLS adds to a connection."""


def memory_bound_bytes(plain: int, secured: int = 0) -> int:
    """Return the most that the server's buffers and payloads take up, in bytes, with so many
    connections without TLS (`plain`) and with it (`secured`), whatever their clients do."""
    return SHARED_MEMORY_BYTES + (plain + secured) * CONNECTION_BYTES + secured * TLS_BYTES


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits that depend on the machine or that tests change; see the constants."""

    max_connections: int = MAX_CONNECTIONS
    max_in_flight: int = MAX_IN_FLIGHT
    shared_memory_bytes: int = SHARED_MEMORY_BYTES
    handshake_seconds: float = HANDSHAKE_SECONDS
    keepalive_seconds: int = KEEPALIVE_SECONDS
    tcp_user_timeout_seconds: int = TCP_USER_TIMEOUT_SECONDS
    fence_seconds: float = FENCE_SECONDS
    poll_tries: int = POLL_TRIES
    lane_threads: int = MAX_LANE_THREADS
