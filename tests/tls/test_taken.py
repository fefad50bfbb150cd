"""Connections through TLS whose volume another gateway takes."""

from __future__ import annotations

import ssl

import trio
import trio.testing

from bockd.drivers.memory.device import MemoryDevice
from bockd.runtime.steps import Signal
from tests.nbd.protocol import wire
from tests.nbd.server.serving import FixedExports, in_trio
from tests.nbd.server.takeable import Takeable
from tests.tls.conftest import Pki
from tests.tls.served import serving_tls

MIB = 1 << 20


@in_trio
async def test_they_end_at_once_without_an_answer(pki: Pki) -> None:
    below = MemoryDevice(16 * MIB)
    gate = below.gate = Signal()
    below.immediate = False
    taken, device = Takeable.over(below)
    exports = FixedExports({"disk": device})
    async with serving_tls(exports, pki) as served:
        async with await served.go() as busy, await served.go() as idle:
            await busy.send(wire.write(1, 0, b"x" * 100_000))
            await trio.testing.wait_all_tasks_blocked(0.01)
            taken.take()
            for client in (busy, idle):
                with trio.fail_after(10):
                    try:
                        assert await client.stream.receive_some() == b""
                    except (trio.BrokenResourceError, ssl.SSLError):
                        continue  # it ends without TLS's own goodbye
        gate.fire()
