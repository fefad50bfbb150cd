"""The HTTP frontends: which applications there are over the daemon's parts, and on which sockets.

Only `bockd.daemon.loading` imports this module while the daemon starts.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio
from starlette.types import ASGIApp

from api.app import Together, create_app
from api.dashboard.sessions import Sessions
from api.freshness import Refresh
from api.metrics.app import MAX_CONNECTIONS as MAX_METRICS_CONNECTIONS
from api.metrics.app import MetricsApp
from api.metrics.counting import Requests
from api.onrequest import OnRequest
from api.openstack.app import create_public_app
from api.openstack.catalog import Catalog
from api.openstack.nbd import NbdFrontends
from api.requestid import Identified
from api.serve import serve_public
from bockd.accountcontrol import AccountControl
from bockd.blockstorage.trashcontract import StorageWithTrash
from bockd.control import Control, ImageControl
from bockd.daemon import heap
from bockd.dashboardcontrol import DashboardControl, HeatControl
from bockd.identity.contract import Identity
from bockd.metrics import Watched
from bockd.model import TlsMode
from bockd.nbd.server.tls import FrontendTls


@dataclass(frozen=True)
class HttpFrontends:
    """What the applications serve. `requests` counts what they are asked."""

    control: Control
    images: ImageControl
    accounts: AccountControl
    storage: StorageWithTrash
    identity: Identity
    catalog: Catalog
    nbd: NbdFrontends
    heat: HeatControl
    watched: Watched
    refresh: Refresh | None
    requests: Requests

    def dashboard_app(self, origin: str, sessions: Sessions) -> ASGIApp:
        """Create the dashboard's application, which is served at `origin`."""

        def create() -> ASGIApp:
            # Its models are some MiB of memory, which few daemons need. It is collected when the
            # dashboard has closed, so it is not settled.
            from api.dashboard.app import create_dashboard_app

            return create_dashboard_app(
                origin,
                sessions,
                self.control,
                self.images,
                self.accounts,
                self.storage,
                self.heat,
                self.refresh,
            )

        return self._counted("dashboard", create)

    async def serve(
        self,
        dashboard: DashboardControl,
        operators: socket.socket,
        public: socket.socket | None,
        public_tls: FrontendTls,
        metrics: socket.socket | None,
        metrics_tls: FrontendTls,
    ) -> None:
        """Serve until cancelled, on sockets that listen and that the caller closes: both APIs and
        what watches the daemon on that of the operators, the public one and the metrics each on a
        socket of its own, if there is one."""
        public_app = self._counted("block-storage", self._public_app)
        control_app = self._counted("control", partial(self._control_app, dashboard))
        watched = MetricsApp(self.watched)
        async with trio.open_nursery() as listeners:
            serve = listeners.start_soon
            serve(serve_public, Together(control_app, public_app, watched), operators)
            if public is not None:
                serve(partial(serve_public, public_app, public, tls=_context(public_tls)))
            if metrics is not None:
                most = MAX_METRICS_CONNECTIONS
                context = _context(metrics_tls)
                serve(partial(serve_public, watched, metrics, tls=context, max_connections=most))

    def _counted(self, name: str, create: Callable[[], ASGIApp]) -> ASGIApp:
        """An application that is created when it is asked."""
        return self.requests.counted(name, Identified(OnRequest(create)))

    def _control_app(self, dashboard: DashboardControl) -> ASGIApp:
        app = create_app(self.control, self.images, self.accounts, self.refresh, dashboard)
        heap.settle()
        return app

    def _public_app(self) -> ASGIApp:
        app = create_public_app(
            self.storage, self.identity, self.catalog, self.nbd, self.refresh, self.storage.trash
        )
        heap.settle()
        return app


def _context(tls: FrontendTls) -> Callable[[], ssl.SSLContext] | None:
    return None if tls.mode is TlsMode.OFF else tls.context
