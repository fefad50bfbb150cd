"""A server's replies taken apart."""

from __future__ import annotations

import struct

from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.transmission import RequestParser


def cut(replies: list[bytes], stream: bytes, extended: bool) -> list[bytes]:
    """Single replies; of a simple one to a read, the length is known from the request."""
    reads = reads_of(stream, extended)
    data, single = b"".join(replies), []
    while data:
        magic = struct.unpack_from(">I", data)[0]
        if magic == 0x67446698:
            _, error, cookie = struct.unpack_from(">IIQ", data)
            length = 16 + (reads.get(cookie, 0) if not error else 0)
        elif magic == 0x668E33EF:
            length = 20 + struct.unpack_from(">I", data, 16)[0]
        else:
            assert magic == 0x6E8A278C
            length = 32 + struct.unpack_from(">Q", data, 24)[0]
        assert length <= len(data)
        single.append(data[:length])
        data = data[length:]
    return single


def reads_of(stream: bytes, extended: bool) -> dict[int, int]:
    """Cookie to length of the reads in a stream."""
    parser, reads = RequestParser(extended=extended), {}
    received, position = memoryview(stream), 0
    try:
        while True:
            requests, stop = parser.parse(received, position, len(stream))
            reads.update({request[2]: request[4] for request in requests if request[1] == 0})
            if stop == position:
                return reads
            position = stop
    except ProtocolError:
        return reads
