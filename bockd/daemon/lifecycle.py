"""The daemon: everything wired together in one nursery, until a signal ends it.

Order matters at the end: the frontends close first, then the engine finishes what was begun, then
volumes are closed (flushed, their journals applied), and the pool last.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from prometheus_client.core import Metric

from api.metrics.counting import Requests
from api.openstack.nbd import NbdFrontends
from bockd import descriptors
from bockd.blockstorage.interrupted import detaching, resolve_interrupted
from bockd.blockstorage.plugging import DevicePlugger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.servers import Servers
from bockd.blockstorage.service import PoolBlockStorage
from bockd.blockstorage.working import anybody, earlier_runs_of
from bockd.config import Address, Settings
from bockd.config.load import (
    API_LISTEN_VARIABLE,
    METRICS_LISTEN_VARIABLE,
    NBD_LISTEN_VARIABLE,
)
from bockd.config.sections import Listener
from bockd.daemon import heap, logs
from bockd.daemon.accounts import PoolAccounts
from bockd.daemon.addresses import addresses
from bockd.daemon.attached import AttachedExports, AttachedVolumes
from bockd.daemon.backend import Backend, BackendKind
from bockd.daemon.backgroundwork import BackgroundWork
from bockd.daemon.capacity import Capacity
from bockd.daemon.configured import catalog, one_identity, servers, storage_context
from bockd.daemon.control import PoolControl
from bockd.daemon.dashboard import Dashboard
from bockd.daemon.detachings import Detachings
from bockd.daemon.ending import ending_signals
from bockd.daemon.exports import PoolExports
from bockd.daemon.fileview import FileView
from bockd.daemon.heat import HeatWatch
from bockd.daemon.idle import IdleExports
from bockd.daemon.images import PoolImages
from bockd.daemon.limiting import Limiting
from bockd.daemon.loading import Loading
from bockd.daemon.metrics.collector import Metrics
from bockd.daemon.metrics.health import Health, Stage
from bockd.daemon.metrics.tokens import CountedIdentity
from bockd.daemon.nodes import PoolNodes
from bockd.daemon.plugged import PluggedDevices
from bockd.daemon.readiness import READY, STOPPING, notify
from bockd.daemon.refreshing import DiscreetExports, fresh, refreshing
from bockd.daemon.retrying import Retrying
from bockd.daemon.stranded import Stranded
from bockd.daemon.trashkeeping import TrashKeeper
from bockd.descriptors import CLIENTS_SHARE, portion
from bockd.directories import make_durable
from bockd.errors import InUseError, from_os_error
from bockd.identity.contract import Identity
from bockd.identity.credentialsfile import CREDENTIALS_FILE, establish
from bockd.identity.keystone.opening import open_keystone
from bockd.identity.local import LocalIdentity
from bockd.identity.tokens import load_key
from bockd.model import ServerKind, TlsMode
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.fastlane import lane
from bockd.nbd.server.limits import MAX_CONNECTIONS, MAX_LANE_THREADS, ServerLimits
from bockd.nbd.server.listener import address_of, listen_tcp
from bockd.nbd.server.nbd_server import NbdServer, serve_nbd
from bockd.nbd.server.tls import NO_TLS, FrontendTls
from bockd.pool.pool import Pool
from bockd.processors import granted_cores
from bockd.runtime.asyncbridge import AsyncBridge
from bockd.runtime.steprunner import StepRunner
from bockd.tls.certificates import Certificates, wanted
from bockd.unixsocket import listening_unix
from bockd.vm.machines import Machines
from bockd.vm.plugger import MachinePlugger
from bockd.vm.watch import Watch

if TYPE_CHECKING:
    from bockd.daemon.httpfrontends import HttpFrontends

log = logging.getLogger(__name__)

TLS_NOTE = {TlsMode.OFF: "", TlsMode.ON: ", TLS on demand", TlsMode.REQUIRE: ", TLS only"}

HASHING_THREADS = 2
"""For passwords, apart from the device's threads: guessing must not delay a disk."""


def run(
    kind: BackendKind, settings: Settings, mount: Path | None = None, *, is_default: bool = False
) -> None:
    """Serve a pool of some kind until a signal ends it (daemon.ending); `mount` overrides the
    settings'. `is_default`: nobody has named the data directory. Raises BockdError when it cannot
    begin."""
    counts = logs.begin(settings)
    descriptors.raise_limit()
    heap.bound()
    mount = mount or settings.fuse.mount
    view = None if mount is None else FileView(mount.absolute(), settings.data_dir)
    try:
        kind.check_start(settings, is_default=is_default)
        trio.run(_Daemon(kind, settings, view, counts).main)
    except BaseExceptionGroup as group:
        raise _alone(group) from group


def _alone(group: BaseException) -> BaseException:
    """The one error in a group, which a nursery makes of everything; groups of several stay."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group


def listening(
    address: Address | None, setting: str
) -> AbstractContextManager[socket.socket | None]:
    """Open a TCP listener, or none if `address` is None. The error says which variable or key
    chooses another address."""
    if address is None:
        return nullcontext()
    return listen_tcp(address, f"set {setting} to another HOST:PORT, or to none")


def web_address(listener: Listener, address: str | None) -> str:
    """Return the URL of a listener, or "off"."""
    if address is None:
        return "off"
    return f"{'http' if listener.tls is TlsMode.OFF else 'https'}://{address}/"


class _Daemon:
    def __init__(
        self,
        kind: BackendKind,
        settings: Settings,
        view: FileView | None,
        lines: logs.LineCounts,
    ) -> None:
        self._lines = lines
        self._kind = kind
        self._settings = settings
        self._view = view
        kinds = wanted(settings)
        self._certificates = Certificates(settings.tls, kinds) if kinds else None
        self._server = NbdServer(
            ServerLimits(
                max_connections=portion(CLIENTS_SHARE, MAX_CONNECTIONS),
                keepalive_seconds=settings.nbd.keepalive_seconds,
                tcp_user_timeout_seconds=settings.nbd.tcp_user_timeout_seconds,
                lane_threads=granted_cores(MAX_LANE_THREADS),
            )
        )
        self._runner = self._server.runner
        self._work = BackgroundWork(self._runner)
        self._keystone: Identity | None
        self._backend: Backend
        self._pool: Pool
        self._context: StorageContext
        self._machines = Machines()
        self._machine_plugger = MachinePlugger(
            self._machines, str(settings.nbd_socket), settings.vm.reconnect_seconds
        )
        self._retrying = Retrying(self._work.spawn)
        self._requests = Requests()
        self._health: Health
        self._idle: IdleExports

    async def main(self) -> None:
        # First of all: it can fail, and nothing has been touched yet.
        async with open_keystone(self._settings.keystone) as self._keystone:
            await self._run()

    async def _run(self) -> None:
        data_dir = self._settings.data_dir
        try:
            make_durable(data_dir)
        except OSError as error:
            raise from_os_error(error, f"creating {data_dir}") from error
        try:
            self._backend = await self._kind.open(
                self._settings, self._work.spawn, self._runner, self._retrying
            )
        except InUseError as error:
            raise InUseError(
                f"{error}: stop that one first, or serve another directory (BOCKD_DATA)"
            ) from error
        self._pool = self._backend.pool
        self._health = Health(self._pool, self._backend.room_of)
        bridge = AsyncBridge(lambda: self._work.nursery)
        attached = AttachedVolumes(self._pool, self._server, bridge, self._on_idle)
        self._pool.before_giving(attached.end_connections)
        try:
            self._context = storage_context(
                self._settings, self._pool, attached, PluggedDevices(bridge, self._pluggers())
            )
            self._trash = TrashKeeper(self._context, self._runner)
            async with trio.open_nursery() as self._work.nursery:
                await self._serve()
        finally:
            self._backend.release()

    def _pluggers(self) -> Mapping[ServerKind, DevicePlugger]:
        """Hosts and plain servers connect by themselves."""
        return {ServerKind.VM: self._machine_plugger}

    def _on_idle(self, key: ExportKey) -> None:
        self._idle.add(key)

    async def _serve(self) -> None:
        self._idle = IdleExports(self._pool, self._retrying)
        try:
            await self._backend.prepare()
            gateways = self._backend.gateways
            whose = anybody if gateways is None else earlier_runs_of(gateways.author)
            await self._runner.run(resolve_interrupted(self._context, whose))
            await trio.to_thread.run_sync(
                lambda: establish(self._pool.index, self._settings.data_dir)
            )
            # Before a machine is looked for at its QMP socket.
            await self._runner.run(Servers(self._context).configure(servers(self._settings)))
            self._detachings = Detachings(self._context, self._retrying)
            for owned in detaching(self._context):
                self._detachings.finish(owned)
            self._backend.begin_background()
            await self._open_frontends()
        finally:
            await self._backend.close()

    def _waiting(self) -> tuple[str, ...]:
        """Background work that was put off."""
        return (*self._retrying.waiting, *self._backend.waiting())

    async def _open_frontends(self) -> None:
        settings = self._settings
        with (
            ExitStack() as signals,
            ExitStack() as last,
            listening_unix(settings.nbd_socket) as unix,
            listening(settings.nbd.listen, NBD_LISTEN_VARIABLE) as tcp,
            listening(settings.api.listen, API_LISTEN_VARIABLE) as api,
            listening(settings.metrics.listen, METRICS_LISTEN_VARIABLE) as metrics,
            listening(settings.dashboard.listen, "dashboard.listen") as pages,
        ):
            await self._serve_frontends(unix, tcp, api, metrics, pages, signals, last)

    async def _serve_frontends(
        self,
        unix: socket.socket,
        tcp: socket.socket | None,
        api: socket.socket | None,
        metrics: socket.socket | None,
        pages: socket.socket | None,
        signals: ExitStack,
        last: ExitStack,
    ) -> None:
        # First: one that comes while the view is being mounted must not leave that behind.
        ended = signals.enter_context(ending_signals())
        settings = self._settings
        nbd_listen = str(address_of(tcp)) if tcp else None
        api_listen = str(address_of(api)) if api else None
        mount = str(self._view.path) if self._view else None
        capacity = Capacity(
            self._pool,
            self._runner,
            settings.data_dir,
            self._backend.room_of,
            settings.pool.warn_percent,
        )
        control = PoolControl(
            self._context,
            self._server,
            settings,
            nbd_listen,
            api_listen,
            mount,
            self._backend,
            capacity,
            self._waiting,
        )
        images = PoolImages(self._context, self._server, settings)
        limiting = Limiting(self._context, self._server.gates)
        accounts = PoolAccounts(
            self._context, self._runner, settings.data_dir, self._server.gates.refresh
        )
        attached = AttachedExports(self._pool, self._runner, self._on_idle)
        exports = PoolExports(self._pool, self._runner, self._on_idle, attached)
        refresh = refreshing(self._pool)
        if self._pool.gateway is not None:
            await self._runner.run(self._pool.announce(addresses(settings, tcp, api)))
        async with trio.open_nursery() as frontends:
            storage = self._storage(frontends)
            heat = HeatWatch(self._pool, self._server)
            frontends.start_soon(heat.run)

            identity = self._counted_identity()
            watched = self._metrics(identity)

            def http_frontends() -> HttpFrontends:
                # When `loading` is done.
                from bockd.daemon.httpfrontends import HttpFrontends

                return HttpFrontends(
                    control=control,
                    images=images,
                    accounts=accounts,
                    storage=storage,
                    identity=identity,
                    catalog=catalog(settings.catalog),
                    nbd=self._nbd_frontends(tcp),
                    heat=heat,
                    watched=watched,
                    refresh=refresh,
                    requests=self._requests,
                )

            loading = Loading()
            dashboard = Dashboard(
                settings.dashboard,
                lambda origin, sessions: http_frontends().dashboard_app(origin, sessions),
                self._tls(settings.dashboard),
                loading,
            )
            frontends.start_soon(
                serve_nbd,
                self._server,
                unix,
                fresh(exports, refresh),
                tcp,
                DiscreetExports(fresh(attached, refresh)),
                self._tls(settings.nbd),
            )
            frontends.start_soon(self._health.run)
            await frontends.start(dashboard.run, pages)
            frontends.start_soon(images.give_up_abandoned)
            frontends.start_soon(limiting.run)
            if self._view is not None:
                nodes = PoolNodes(self._pool, self._runner, exports, self._server)
                await frontends.start(self._view.serve, nodes, self._runner)
            watch = Watch(self._machines, self._machine_plugger, self._pool.index)
            frontends.start_soon(watch.run)
            frontends.start_soon(self._backend.run, self._server.written_bytes)
            frontends.start_soon(capacity.run)
            frontends.start_soon(self._retrying.run)
            frontends.start_soon(self._trash.run)
            if (gateways := self._backend.gateways) is not None:
                stranded = Stranded(self._context, gateways, self._runner, self._detachings)
                frontends.start_soon(stranded.run)
            frontends.start_soon(self._idle.run)
            heap.settle()
            # The last socket: who waits for it finds all others.
            operators = last.enter_context(listening_unix(settings.api_socket))
            self._health.stage = Stage.SERVING
            watching = str(address_of(metrics)) if metrics else None
            self._announce(nbd_listen, api_listen, watching, dashboard.told_to_all(pages))

            async def serve_http() -> None:
                await loading.run()
                await http_frontends().serve(
                    dashboard,
                    operators,
                    api,
                    self._tls(settings.api),
                    metrics,
                    self._tls(settings.metrics),
                )

            frontends.start_soon(serve_http)
            await ended()
            self._health.stage = Stage.STOPPING
            # Later signals are let through, to end a slow stop.
            signals.close()
            log.info("stopping")
            self._backend.begin_end()
            notify(STOPPING)
            frontends.cancel_scope.cancel()

    def _tls(self, listener: Listener) -> FrontendTls:
        """What a listener on TCP offers."""
        if listener.tls is TlsMode.OFF or listener.listen is None:
            return NO_TLS
        certificates = self._certificates
        assert certificates is not None
        return FrontendTls(listener.tls, lambda: certificates.context(listener.client_certificates))

    def _storage(self, fetches: trio.Nursery) -> PoolBlockStorage:
        settings = self._settings
        if settings.glance.url is None:
            return PoolBlockStorage(self._context, self._runner)
        # An HTTP client is some 10 MiB of memory, which few daemons need.
        from bockd.daemon.fetching import FetchingBlockStorage

        return FetchingBlockStorage(self._context, self._runner, settings, fetches)

    def _counted_identity(self) -> CountedIdentity:
        pool, settings = self._pool, self._settings
        local = LocalIdentity(
            pool.index,
            StepRunner(HASHING_THREADS),
            pool.clock,
            self._backend.token_key or load_key(settings.data_dir),
            settings.identity.token_seconds,
        )
        return CountedIdentity(one_identity(settings.keystone, local, self._keystone))

    def _nbd_frontends(self, tcp: socket.socket | None) -> NbdFrontends:
        settings = self._settings
        return NbdFrontends(
            str(settings.nbd_socket),
            address_of(tcp) if tcp else None,
            tls_required=settings.nbd.tls is TlsMode.REQUIRE,
            gateway=self._pool.gateway,
        )

    def _metrics(self, identity: CountedIdentity) -> Metrics:
        """What is asked by those who watch the daemon."""

        def further() -> list[Metric]:
            return [
                *self._requests.families(),
                *identity.families(),
                *self._lines.families(),
                *self._trash.families(),
            ]

        return Metrics(
            self._server,
            self._backend,
            self._health,
            self._waiting,
            self._settings.metrics.exports,
            further,
        )

    def _announce(
        self,
        nbd_listen: str | None,
        api_listen: str | None,
        metrics_listen: str | None,
        dashboard: str | None,
    ) -> None:
        settings = self._settings
        lines = [
            f"bockd is ready. Data: {settings.data_dir}",
            f"  NBD, Unix socket: {settings.nbd_socket}",
            f"  NBD, TCP:         {nbd_listen or 'off'}  (attached volumes only"
            f"{TLS_NOTE[settings.nbd.tls]})",
            f"  files:            {self._view.path if self._view else 'off'}",
            f"  fast lane:        {lane(os.environ)}",
            f"  control API:      {settings.api_socket}",
            f"  block storage API: {web_address(settings.api, api_listen)}  ({self._ways_in()})",
            f"  metrics:          {web_address(settings.metrics, metrics_listen)}",
            f"  dashboard:        {dashboard or 'off'}  ('bock dashboard' opens it)",
            "Next: bock volume create disk1 --size 10GiB",
        ]
        try:
            print("\n".join(lines), flush=True)
        except OSError:
            # Whoever reads this has gone, a terminal even in the middle of it. Python would try
            # again at its end, and fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        notify(READY)

    def _ways_in(self) -> str:
        """Who has tokens, for people."""
        keystone = self._settings.keystone
        credentials = f"credentials: {self._settings.data_dir / CREDENTIALS_FILE}"
        if keystone.url is None:
            return credentials
        return f"{credentials}, " * keystone.local + f"Keystone: {keystone.url}"
