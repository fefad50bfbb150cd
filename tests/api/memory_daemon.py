"""A stand-in for `bockd serve`: the real control API over a `MemoryControl`, NBD by nbdkit.

Usage: python -m tests.api.memory_daemon DATA_DIR
Prints "ready" when both sockets answer, ends on SIGTERM.
A file `connected/<kind>-<id>` in DATA_DIR stands for one connected client.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from api.app import create_app
from api.serve import serve_api
from bockd.model import NodeKind
from tests.api.memory_control import MemoryControl


def marked_connections(data_dir: Path, kind: NodeKind, node_id: int) -> int:
    """1 if a test says that somebody is connected."""
    return int((data_dir / "connected" / f"{kind.value}-{node_id}").exists())


@contextmanager
def nbd_server(data_dir: Path) -> Iterator[None]:
    """nbdkit serving each file of `exports/` by its name on `nbd.sock`."""
    socket, pid_file = data_dir / "nbd.sock", data_dir / "nbdkit.pid"
    command: list[str | Path] = ["nbdkit", "--unix", socket, "--pidfile", pid_file, "file"]
    # nbdkit's command returns once it serves in the background.
    subprocess.run([*command, f"dir={data_dir / 'exports'}"], check=True)
    try:
        yield
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


async def serve(data_dir: Path) -> None:
    """Serve until SIGTERM."""
    control = MemoryControl(data_dir, connections=functools.partial(marked_connections, data_dir))
    with nbd_server(data_dir), trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, create_app(control), data_dir / "api.sock")
            print("ready", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(serve, Path(sys.argv[1]))
