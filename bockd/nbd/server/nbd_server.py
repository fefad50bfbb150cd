"""The NBD server: what the daemon runs in its nursery, and asks about its connections.

One `NbdServer` serves all listeners, each with an export table of its own. It knows nothing of what
an export is, but counts its connections, fences them, drains them and ends them.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from dataclasses import dataclass

import trio

from bockd import logcontext
from bockd.errors import VolumeTakenError
from bockd.failurelog import FailureLog
from bockd.model import NodeKind, VolumeId
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.server.budget import Account, MemoryBudget
from bockd.nbd.server.channel import TRY_NS, Channel, StalledError, find_dead_peers
from bockd.nbd.server.connection import Connection
from bockd.nbd.server.exports import ExportKey, ExportTable
from bockd.nbd.server.heat import Heat
from bockd.nbd.server.limits import FAILURE_LOG_SECONDS, MAX_LEAVING, ServerLimits
from bockd.nbd.server.listener import accept_from
from bockd.nbd.server.negotiation import Entrance, negotiate
from bockd.nbd.server.pace import Pace
from bockd.nbd.server.recordings import Recordings
from bockd.nbd.server.registry import ExportState, Registry
from bockd.nbd.server.statistics import ExportStatistics
from bockd.nbd.server.tls import NO_TLS, FrontendTls
from bockd.nbd.server.together import Together
from bockd.runtime.steprunner import StepRunner
from bockd.throttle.gates import Gate, Gates

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What the clients of a server take."""

    clients: int
    max_clients: int
    negotiating: int
    """Of the clients, those that have not chosen an export yet."""
    refused: int
    """Clients, since the start, because there were too many."""
    payload_bytes: int
    """Memory of large payloads and of replies that wait."""
    max_payload_bytes: int


class NbdServer:
    """See the module's docstring. All methods are for the loop's thread."""

    def __init__(
        self, limits: ServerLimits | None = None, runner: StepRunner | None = None
    ) -> None:
        self._limits = limits or ServerLimits()
        self._runner = runner or StepRunner()
        self._budget = MemoryBudget(self._limits.shared_memory_bytes)
        self._together = Together(
            Pace(), self._limits.poll_tries * TRY_NS, self._limits.lane_threads
        )
        self._failures = FailureLog()
        self.recordings = Recordings()
        self._registry = Registry(self._limits.fence_seconds, self._failures)
        self.gates = Gates()
        """Of the limits of all volumes, for other frontends, too. `serve_nbd` runs them."""
        self._clients = self._refused = self._served = 0
        self._negotiating: dict[trio.CancelScope, None] = {}
        """Handshakes under way, the oldest first."""

    @property
    def runner(self) -> StepRunner:
        """Runs engine operations; the daemon's own may go through it, too."""
        return self._runner

    # Serving.

    async def log_failures(self) -> None:
        """Log failed requests that were held back (see FailureLog), until cancelled.

        Without any, it waits for one: a daemon that has nothing to log does not wake up for it."""
        token = trio.lowlevel.current_trio_token()
        noted = trio.Event()

        def wake() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(lambda: noted.set())

        self._failures.on_first = wake
        try:
            while True:
                while self._failures.watching:
                    await trio.sleep(FAILURE_LOG_SECONDS)
                    self._failures.log_due()
                await noted.wait()
                noted = trio.Event()
        finally:
            self._failures.close()

    async def serve(
        self, listener: socket.socket, table: ExportTable, tls: FrontendTls = NO_TLS
    ) -> None:
        """Accept and serve clients until cancelled; then in-flight engine work is finished, the
        clients are closed, and so is the listener."""
        try:
            async with trio.open_nursery() as nursery:

                async def greet(client: socket.socket) -> None:
                    if self._clients >= self._limits.max_connections and not self._made_room():
                        self._refused += 1
                        log.warning("refused a client: %d are connected", self._clients)
                        client.close()
                        return
                    self._clients += 1
                    nursery.start_soon(self._serve_client, client, table, tls)

                await accept_from(listener, greet)
        finally:
            listener.close()

    def _made_room(self) -> bool:
        """End the oldest handshake for a newcomer; False if there is none."""
        if not self._negotiating or self._clients >= self._limits.max_connections + MAX_LEAVING:
            return False
        oldest = next(iter(self._negotiating))
        del self._negotiating[oldest]
        oldest.cancel()
        return True

    async def _serve_client(
        self, sock: socket.socket, table: ExportTable, tls: FrontendTls
    ) -> None:
        self._served += 1
        logcontext.note(logcontext.CONNECTION, self._served)
        channel: Channel | None = None
        try:
            find_dead_peers(
                sock,
                keepalive_seconds=self._limits.keepalive_seconds,
                user_timeout_seconds=self._limits.tcp_user_timeout_seconds,
            )
            channel = Channel(sock)
            await self._talk(channel, table, tls)
        except* ProtocolError as errors:
            log.info("closed a client: %s", errors.exceptions[0])
        except* VolumeTakenError as errors:
            log.info("ended a connection: %s", errors.exceptions[0])
        except* OSError as errors:
            log.info("lost a client: %s", errors.exceptions[0])
        except* Exception:  # one client's trouble must not become another's
            log.exception("a connection failed unexpectedly")
        finally:
            sock.close()
            self._clients -= 1

    async def _talk(self, channel: Channel, table: ExportTable, tls: FrontendTls) -> None:
        seconds = self._limits.handshake_seconds
        with trio.move_on_after(seconds) as scope:
            self._negotiating[scope] = None
            try:
                entrance = await negotiate(channel, table, tls)
            finally:
                gave_way = scope not in self._negotiating
                self._negotiating.pop(scope, None)
        if scope.cancelled_caught:
            raise StalledError(
                "it gave way to another one before it had chosen an export"
                if gave_way
                else f"no export chosen within {seconds} s"
            )
        if entrance is None:
            return
        try:
            await self._transmit(entrance)
        finally:
            with trio.CancelScope(shield=True):
                await entrance.export.close()

    async def _transmit(self, entrance: Entrance) -> None:
        channel, export = entrance.channel, entrance.export
        logcontext.note(export.key.kind, export.key.id)
        state = self._registry.state(export.key, export.info.name)
        connection = Connection(
            channel, Account(self._budget), self._runner, self._limits, self._together
        )
        gate = self.gate_of(export.key)
        connection.prepare(export, entrance.negotiated, state.statistics, entrance.leftover, gate)
        # Nothing was awaited since the table opened the export: see ExportTable.open.
        state.admit(connection, export.device)

        async def enter() -> None:
            # A fence lets pass what waits there. Who comes again and again for that must pay first.
            await gate.solvent(connection.waits_outside)
            await self._registry.fence(connection, export.key)
            await channel.send(entrance.reply)

        try:
            await connection.run(enter)
        except* VolumeTakenError:
            state.abandon(export.device)  # it may be one that does not tell
            raise
        finally:
            del state.members[connection]
            channel.close()
            connection.finished()

    # What the daemon asks.

    def connections(self, key: ExportKey, name: str | None = None) -> int:
        """Count the clients that are in transmission on an export; with `name`, only those that
        used it."""
        return self._registry.connections(key, name)

    async def drain(self, key: ExportKey) -> None:
        """Wait until the engine operations that an export's clients have begun are finished.
        Clients may go on and begin others meanwhile."""
        await self._registry.drain(key)

    async def drain_and_close(self, key: ExportKey, name: str, seconds: float) -> None:
        """Close the clients that came to an export under a name, when all that they have sent by
        now is carried out and answered. Those that do not receive their answers within `seconds`
        are closed as by `disconnect`."""
        await self._registry.drain_and_close(key, name, seconds)

    async def wind_up(self, key: ExportKey, seconds: float) -> None:
        """Close all clients of an export, when all that they have sent by now is carried out and
        answered, or after `seconds`. What the engine is doing then may not be finished."""
        await self._registry.wind_up(key, seconds)

    async def disconnect(self, key: ExportKey, name: str | None = None) -> None:
        """Close all clients of an export, or those that came to it under a name. What they have
        begun is finished before this returns; what they have sent beyond that is dropped."""
        await self._registry.disconnect(key, name)

    def exports(self) -> list[tuple[ExportKey, ExportState]]:
        """Return the exports that have been used, with their counters and connections."""
        return list(self._registry)

    @property
    def forgotten(self) -> ExportStatistics:
        """What the exports had counted together of which nothing is kept any more."""
        return self._registry.forgotten

    def load(self) -> ServerLoad:
        """Return what all clients take now."""
        return ServerLoad(
            clients=self._clients,
            max_clients=self._limits.max_connections,
            negotiating=len(self._negotiating),
            refused=self._refused,
            payload_bytes=self._limits.shared_memory_bytes - self._budget.free_bytes,
            max_payload_bytes=self._limits.shared_memory_bytes,
        )

    def statistics_of(self, key: ExportKey, name: str) -> ExportStatistics:
        """Return the counters of one export, so that another frontend can add to them."""
        return self._registry.state(key, name).statistics

    def gate_of(self, key: ExportKey) -> Gate:
        """Return the gate of an export, with the limits that hold now. A snapshot has none."""
        if key.kind is NodeKind.SNAPSHOT:
            return self.gates.open
        return self.gates.gate(VolumeId(key.id))

    def watch(self, key: ExportKey, heat: Heat | None) -> None:
        """Have the requests of an export looked at from now on, or no more. What nobody has open
        has none."""
        self._registry.watch(key, heat)

    def written_bytes(self, volume: VolumeId) -> int:
        """Return how much was written to a volume, over all frontends, since it was last
        forgotten."""
        return self._registry.written_bytes(ExportKey(NodeKind.VOLUME, volume))

    def forget(self, key: ExportKey, *, kept: bool = False) -> None:
        """Drop the counters of an export without connections: it was deleted. Of a volume that is
        `kept` in the trash the gate stays: who restores it has no bucket of tokens that is full
        again, nor a device that begins anew."""
        self._registry.forget(key)
        if key.kind is NodeKind.VOLUME and not kept and not self._registry.connections(key):
            self.gates.forget(VolumeId(key.id))


async def serve_nbd(
    server: NbdServer,
    unix_listener: socket.socket,
    unix_exports: ExportTable,
    tcp_listener: socket.socket | None,
    tcp_exports: ExportTable,
    tcp_tls: FrontendTls = NO_TLS,
) -> None:
    """Serve both frontends until cancelled: each listener with its own table."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.log_failures)
        nursery.start_soon(server.gates.run)
        nursery.start_soon(server.recordings.watch)
        nursery.start_soon(server.serve, unix_listener, unix_exports)
        if tcp_listener is not None:
            nursery.start_soon(server.serve, tcp_listener, tcp_exports, tcp_tls)
