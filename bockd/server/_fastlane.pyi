"""Types of the compiled module; fastlane.py says what it is for."""

from bockd.device import FastView
from bockd.nbd.transmission import Request

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
    /,
) -> tuple[int, int, int, int, int, bytes, list[Request]]: ...
def receive(fd: int, into: memoryview, nanoseconds: int, /) -> int: ...
