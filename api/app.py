"""The control API's application, and how it shares a socket with the public one.

The Unix socket serves both the operator and the tenants' programs: there `bock` manages volumes
through the public API, with a token as everywhere, without a port to find or to leave open. What
watches the daemon finds its paths there, too (`api.metrics`).
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import bockd
from api.accountcontrol import account_control_router
from api.control import PREFIX, control_router
from api.dashboardcontrol import dashboard_control_router
from api.faults import fault_of_error, install_faults
from api.freshness import Freshness, Refresh
from api.imagecontrol import image_control_router
from api.intake import Intake, sent_path
from api.metrics.app import PATHS
from bockd.accountcontrol import AccountControl
from bockd.control import Control, ImageControl
from bockd.dashboardcontrol import DashboardControl


class Together:
    """Both APIs as one application: what is below `PREFIX` is the control API's. The paths of
    `api.metrics` are those of `watched`, if it is there."""

    def __init__(self, control: ASGIApp, public: ASGIApp, watched: ASGIApp | None = None) -> None:
        self._control = control
        self._public = public
        self._watched = watched

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = sent_path(scope) if scope["type"] == "http" else ""
        app = self._public
        if path == PREFIX or path.startswith(f"{PREFIX}/"):
            app = self._control
        elif self._watched is not None and path in PATHS:
            app = self._watched
        await app(scope, receive, send)


def create_app(
    control: Control,
    images: ImageControl,
    accounts: AccountControl | None = None,
    refresh: Refresh | None = None,
    dashboard: DashboardControl | None = None,
) -> FastAPI:
    """Create the application of the control API. Its OpenAPI document is at
    `/control/v1/openapi.json`. `refresh` is awaited before a request is looked at."""
    app = FastAPI(
        title="bockd control API",
        version=bockd.__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_faults(app)
    # The last one added is the first to see a request.
    if refresh is not None:
        app.add_middleware(Freshness, refresh=refresh, fault_of_error=fault_of_error)
    app.add_middleware(Intake)
    app.include_router(control_router(control), prefix=PREFIX)
    app.include_router(image_control_router(images), prefix=PREFIX)
    if accounts is not None:
        app.include_router(account_control_router(accounts), prefix=PREFIX)
    if dashboard is not None:
        app.include_router(dashboard_control_router(dashboard), prefix=PREFIX)
    return app
