"""The dashboard's application: the guard, the entry, the pages and what they ask for."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from api.control import Body
from api.dashboard.audit import note_entry, note_leaving, note_refused_entry
from api.dashboard.changes import change_router
from api.dashboard.data import data_router
from api.dashboard.guard import Guard, session_in, set_session
from api.dashboard.pages import page_router
from api.dashboard.paths import ENTRY_PATH
from api.dashboard.sessions import Sessions
from api.faults import fault_of_error, install_faults
from api.freshness import Freshness, Refresh
from api.intake import Intake
from bockd.accountcontrol import AccountControl
from bockd.blockstorage.trashcontract import StorageWithTrash
from bockd.control import Control, ImageControl
from bockd.dashboardcontrol import HeatControl
from bockd.errors import UnauthorizedError


class Entry(Body):
    """The secret of a link."""

    link: str


def create_dashboard_app(
    origin: str,
    sessions: Sessions,
    control: Control,
    images: ImageControl,
    accounts: AccountControl,
    storage: StorageWithTrash,
    heat: HeatControl,
    refresh: Refresh | None = None,
) -> FastAPI:
    """Create the application that is served at `origin`, as in `http://host:port`. `refresh` is
    awaited before a request is looked at."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    install_faults(app)
    # The last one added is the first to see a request.
    if refresh is not None:
        app.add_middleware(Freshness, refresh=refresh, fault_of_error=fault_of_error)
    app.add_middleware(Intake)
    app.add_middleware(Guard, origin=origin, sessions=sessions)

    @app.post(ENTRY_PATH)
    async def enter(body: Entry, request: Request) -> JSONResponse:
        session = sessions.enter(body.link)
        if session is None:
            note_refused_entry(request.client)
            raise UnauthorizedError(
                "this link has been used or has expired: run 'bock dashboard' again"
            )
        note_entry(sessions.name_of(session), request.client)
        answer = JSONResponse({})
        set_session(answer, origin, session)
        return answer

    @app.post("/leave")
    async def leave(request: Request) -> JSONResponse:
        session = session_in(request.headers, origin)
        sessions.leave(session)
        note_leaving(sessions.name_of(session))
        answer = JSONResponse({})
        set_session(answer, origin, "")
        return answer

    app.include_router(page_router())
    app.include_router(data_router(control, images, accounts, storage, heat))
    app.include_router(change_router(control, accounts, storage))
    return app
