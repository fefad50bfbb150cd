"""A client that does nothing wrong, in a process of its own, and notes how it is served.

It writes and reads back blocks of an area that is its own, one request at a time, and knows what
each must hold. For each line on its standard input it prints, as a line of JSON, what it saw since
the last one; the first time, after enough requests to know what calm times are like. Wrong data or
a refused request ends it at once with a traceback.

With `reconnect`, it comes again for every hundredth request, as others must be able to.
"""

from __future__ import annotations

import json
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbd

from tests.hostile.live import Address

BLOCK = 4096
REQUESTS_OF_A_CONNECTION = 100
CALM_REQUESTS = 300
"""So many are made before calm times are known."""

THINK_SECONDS = 0.0005
"""Between two requests; without it, the client would take a core from those it is to measure."""

SLACK_SECONDS = 3.0
FACTOR = 100
"""What an innocent client may wait: this, and so many times its own worst wait in calm times. Those
are two busy cores shared with other tests; a server that is held up takes its time from the
attacker, which is tens of seconds."""


@dataclass(frozen=True)
class Waits:
    """Of one period."""

    requests: int
    median_seconds: float
    worst_seconds: float


class Innocent:
    """The process, as a test holds it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._calm = self.period()

    def period(self) -> Waits:
        """What it saw since this was last called. AssertionError when that was wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return Waits(**json.loads(line))

    def check(self) -> None:
        """Its service went on since the last call, and no request waited out of proportion."""
        seen = self.period()
        assert seen.requests > 0, seen
        allowed = SLACK_SECONDS + FACTOR * self._calm.worst_seconds
        assert seen.worst_seconds <= allowed, (seen, self._calm)


@contextmanager
def innocent(
    address: Address,
    export: str,
    first: int,
    blocks: int,
    *,
    reconnect: bool = False,
    tls: Path | None = None,
) -> Iterator[Innocent]:
    """An innocent client at work on an area, which knows what calm times are like. `tls` is the
    directory of its certificates; then it comes through TLS, over TCP."""
    where = {"unix": str(address)} if isinstance(address, Path) else {"tcp": address}
    given = {
        **where,
        "export": export,
        "first": first,
        "blocks": blocks,
        "reconnect": reconnect,
        "tls": None if tls is None else str(tls),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield Innocent(process)
        _, err = process.communicate()
        assert process.returncode == 0, err
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


# -- the process -------------------------------------------------------------------------------


class _Client:
    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._first = given["first"]
        self._versions = [0] * given["blocks"]
        self._random = random.Random(1)
        self._handle = self._connected()
        for block in range(len(self._versions)):
            self._write(block)

    def _connected(self) -> Any:
        handle = nbd.NBD()
        handle.set_export_name(self._given["export"])
        if self._given["tls"] is not None:
            handle.set_tls(nbd.TLS_REQUIRE)
            handle.set_tls_certificates(self._given["tls"])
            host, port = self._given["tcp"]
            handle.connect_tcp(host, str(port))
            return handle
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._given["unix"])  # waits for its turn in a full backlog; libnbd does not
        handle.connect_socket(sock.detach())
        return handle

    def _content(self, block: int) -> bytes:
        return f"{block}:{self._versions[block]};".encode().ljust(64, b".") * (BLOCK // 64)

    def _write(self, block: int) -> None:
        self._versions[block] += 1
        self._handle.pwrite(self._content(block), (self._first + block) * BLOCK)

    def request(self, number: int) -> None:
        """One more request; a wrong answer raises."""
        if self._given["reconnect"] and number % REQUESTS_OF_A_CONNECTION == 0:
            self._handle.shutdown()
            self._handle = self._connected()
        block = self._random.randrange(len(self._versions))
        if number % 3 == 0:
            self._write(block)
        elif number % 50 == 1:
            self._handle.flush()
        else:
            data = bytes(self._handle.pread(BLOCK, (self._first + block) * BLOCK))
            assert data == self._content(block), f"block {block} holds {data[:64]!r}"

    def finish(self) -> None:
        """Everything once more."""
        for block in range(len(self._versions)):
            data = bytes(self._handle.pread(BLOCK, (self._first + block) * BLOCK))
            assert data == self._content(block), f"block {block} holds {data[:64]!r}"
        self._handle.shutdown()


def main() -> None:
    client = _Client(json.loads(sys.argv[1]))
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def listen() -> None:
        for _ in sys.stdin:
            asked.put(True)
        asked.put(False)

    threading.Thread(target=listen, daemon=True).start()
    waits: list[float] = []
    number = 0
    while True:
        begun = time.perf_counter()
        client.request(number)
        waits.append(time.perf_counter() - begun)
        number += 1
        if number >= CALM_REQUESTS and not asked.empty():
            if not asked.get():
                break
            ordered = sorted(waits)
            middle = ordered[len(ordered) // 2]
            print(json.dumps(asdict(Waits(len(ordered), middle, ordered[-1]))), flush=True)
            waits.clear()
        time.sleep(THINK_SECONDS)
    client.finish()


if __name__ == "__main__":
    main()
