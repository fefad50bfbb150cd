"""A client that asks one thing after another, in a process of its own, so that it can be pinned.

    python -m bench.nbdclient trim URI SIZE_BYTES PIECE_BYTES
    python -m bench.nbdclient status URI SIZE_BYTES
    python -m bench.nbdclient allocate URI SIZE_BYTES

It prints how many seconds that took, without connecting.
"""

from __future__ import annotations

import sys
import time

from bench.processes import pinned, run


def seconds_of(action: str, uri: str, *numbers: int, core: int | None) -> float:
    """Run an action in a process of its own. Return its seconds. Raises BenchError."""
    with pinned(core):
        arguments = [action, uri, *map(str, numbers)]
        return float(run([sys.executable, "-m", "bench.nbdclient", *arguments]))


def main(action: str, uri: str, *numbers: str) -> None:
    """Do it and print the seconds."""
    import nbd

    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri)
    size, *more = map(int, numbers)
    began = time.perf_counter()
    if action == "trim":
        (piece,) = more
        for offset in range(0, size, piece):
            handle.trim(min(piece, size - offset), offset)
    elif action == "status":
        _status(handle, size, nbd.CMD_FLAG_REQ_ONE)
    else:
        handle.zero(size, 0, nbd.CMD_FLAG_NO_HOLE)
    print(time.perf_counter() - began)
    handle.shutdown()


def _status(handle: object, size: int, flags: int) -> None:
    """Ask for one extent after another to the end."""
    found: list[int] = []
    offset = 0
    while offset < size:
        found.clear()
        handle.block_status(  # type: ignore[attr-defined]
            min(size - offset, 1 << 30),
            offset,
            lambda _context, _offset, entries, _error: found.extend(entries),
            flags,
        )
        offset += found[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
