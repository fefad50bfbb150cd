"""The FastAPI application: routes, intake and faults put together."""

from __future__ import annotations

from fastapi import FastAPI

import bockd
from api.control import PREFIX, control_router
from api.faults import install_faults
from api.intake import Intake
from bockd.control import Control


def create_app(control: Control) -> FastAPI:
    """The control API over `control`. Its OpenAPI document is at `/control/v1/openapi.json`."""
    app = FastAPI(
        title="bockd control API",
        version=bockd.__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_faults(app)
    app.add_middleware(Intake)
    app.include_router(control_router(control))
    return app
