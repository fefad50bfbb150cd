"""`bockd serve` in processes forked from one that has imported it, for tests that start hundreds.

What runs is the command's own entry point, with its environment, its exit status and its log; only
the second that Python takes to import everything is saved.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from tests.forked import CONTEXT, become, fork

START_SECONDS = 120.0
"""A start takes a tenth of a second; the machine may be busy with other tests."""


class ForkedDaemon:
    """One life of the daemon, from its start to its end."""

    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path,
        *,
        prepare: Callable[[], None] | None = None,
        patience_seconds: float = START_SECONDS,
    ) -> None:
        """Start it, and wait until it is ready, it has ended, or patience has. `prepare` is done in
        the new process first: what a test changes of the engine. (It must be picklable.)"""
        receiving, sending = CONTEXT.Pipe(duplex=False)
        self._announced = receiving
        self._process = fork(_serve, dict(environment), str(log), sending, prepare)
        sending.close()
        self.announcement = self._read_announcement(patience_seconds)

    @property
    def ready(self) -> bool:
        """It said that it is ready; otherwise it has ended before."""
        return "Next: " in self.announcement

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process.is_alive()

    @property
    def pid(self) -> int:
        """Of its process."""
        number = self._process.pid
        assert number is not None
        return number

    @property
    def api_port(self) -> int:
        line = next(part for part in self.announcement.splitlines() if "block storage API:" in part)
        return int(line.partition("http://")[2].partition("/")[0].rpartition(":")[2])

    def died(self) -> bool:
        """Wait for its end; True when it was SIGKILL. AssertionError for an end of its own."""
        self._process.join(START_SECONDS)
        status = self._process.exitcode
        assert status is not None, "the daemon neither answers nor ends"
        assert status in (0, -signal.SIGKILL), f"the daemon ended with status {status}"
        return status == -signal.SIGKILL

    def kill(self) -> None:
        """SIGKILL from outside, whatever it does."""
        self._process.kill()
        self._process.join()
        self._announced.close()

    def stop(self) -> bool:
        """SIGTERM; True when it died of something else on the way."""
        self._process.terminate()
        died = self.died()
        self._announced.close()
        return died

    def _read_announcement(self, patience_seconds: float) -> str:
        """What it prints, until it is ready or has ended."""
        text = b""
        deadline = time.monotonic() + patience_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._announced, selectors.EVENT_READ)
            while b"Next: " not in text and selector.select(max(0.0, deadline - time.monotonic())):
                data = os.read(self._announced.fileno(), 65536)
                if not data:
                    break
                text += data
        return text.decode()


def _serve(
    environment: dict[str, str], log: str, announce: Connection, prepare: Callable[[], None] | None
) -> None:
    """In the new process: become `bockd serve`."""
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    become(environment, announce.fileno(), written)
    os.close(written)
    announce.close()
    from bockd.cli.bockd import main

    if prepare is not None:
        prepare()
    main(["serve"])
