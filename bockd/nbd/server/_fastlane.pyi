"""Types of the compiled module; fastlane.py says what it is for."""

from array import array

from bockd.nbd.protocol.transmission import Request
from bockd.pool.device import FastView

_Served = tuple[
    int,
    int,
    int,
    int,
    list[Request],
    int,
    int,
    int,
    bytes,
    int,
    int,
    int,
    int,
    int,
    int,
    bytes,
    int,
    int,
]

class Running:
    def fileno(self) -> int: ...
    def result(self) -> int: ...
    def wait(self, one: int, other: int, nanoseconds: int, /) -> int: ...

def serve(
    received: memoryview,
    start: int,
    end: int,
    reply: memoryview,
    style: int,
    view: FastView,
    readable: int,
    writable: int,
    max_read: int,
    max_payload: int,
    max_missed: int,
    sock: int,
    poll_ns: int,
    turn_ns: int,
    write_back: bool,
    durations: array[int],
    trace: memoryview | None,
    /,
) -> _Served: ...
def serve_together(
    lanes: list[tuple[object, ...]],
    loop: int,
    poll_ns: int,
    turn_ns: int,
    share_ns: int,
    threads: int,
    /,
) -> list[tuple[_Served, bool, int] | BaseException]: ...
def read_missed(missed: bytes, reply: memoryview, style: int, /) -> None: ...
def begin_missed(missed: bytes, reply: memoryview, style: int, /) -> Running | None: ...
def receive(fd: int, into: memoryview, nanoseconds: int, /) -> int: ...
def take(
    received: memoryview,
    start: int,
    end: int,
    offset: int,
    length: int,
    view: FastView,
    writable: int,
    part_bytes: int,
    unit_bytes: int,
    sock: int,
    poll_ns: int,
    turn_ns: int,
    /,
) -> tuple[int, int, int, int, int]: ...
