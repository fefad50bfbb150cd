"""A pool and the daemons, real processes, that serve it one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bockd.drivers.local.format.layout import Layout
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import BLOCK_SIZE, MIB
from tests.crash.forked import ForkedDaemon
from tests.crash.storm.client import Client
from tests.daemon.process import environment_without_a_cloud

SIZE = 8 * MIB
BLOCKS = SIZE // BLOCK_SIZE


def block_of(value: bytes) -> bytes:
    return value.ljust(8, b".") * (BLOCK_SIZE // 8)


class Serving:
    """See above. `prepare` breaks each daemon's engine first. `end` at last."""

    def __init__(self, pool: Path, log: Path, prepare: Callable[[], None] | None = None) -> None:
        self.pool = pool
        self.log = log
        self._prepare = prepare
        self._daemon: ForkedDaemon | None = None
        self._client: Client | None = None

    def start(self, point: Failpoint | None = None) -> Client:
        """A daemon, armed with a failpoint or not, that gets ready; and a client of it."""
        daemon = self._launch(point)
        assert daemon.ready, self.log.read_text()
        self._client = Client(self.pool, daemon)
        return self._client

    def dies_at(self, point: Failpoint) -> bool:
        """An armed daemon: True when it died before it was ready. If it did not, it is killed."""
        daemon = self._launch(point)
        if daemon.ready:
            self.kill()
            return False
        return daemon.died()

    def died(self) -> bool:
        """Wait for the daemon's end; True when it was SIGKILL."""
        assert self._daemon is not None
        died = self._daemon.died()
        self.end()
        return died

    def kill(self) -> None:
        self.end()

    def end(self) -> None:
        """Nothing runs afterwards."""
        if self._client is not None:
            self._client.close()
        if self._daemon is not None:
            self._daemon.kill()
        self._client = self._daemon = None

    def _launch(self, point: Failpoint | None) -> ForkedDaemon:
        environment = {
            **environment_without_a_cloud(),
            "BOCKD_CONFIG": os.devnull,
            "BOCKD_DATA": str(self.pool),
            "BOCKD_NBD_LISTEN": "none",
            "BOCKD_API_LISTEN": "127.0.0.1:0",
        }
        if point is not None:
            environment[VARIABLE] = point
        self._daemon = ForkedDaemon(environment, self.log, prepare=self._prepare)
        return self._daemon

    # -- its volumes -------------------------------------------------------------------------

    def prepared(self, *names: str) -> Client:
        """A daemon, and volumes all of whose blocks hold "old", durably, in a snapshot's layer."""
        client = self.start()
        for name in names:
            client.create(name, SIZE)
            writer = client.connect(name)
            writer.pwrite(block_of(b"old") * BLOCKS, 0)
            writer.flush()
            client.snapshot(name, f"{name}-s")
            writer.shutdown()
        return client

    def journals(self) -> list[Path]:
        """Of volumes that were not closed, in order."""
        layout = Layout(self.pool)
        return [layout.journal_segment(name) for name in layout.journal_segments()]
