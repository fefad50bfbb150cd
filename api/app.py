"""The FastAPI application: routes, intake and faults put together."""

from __future__ import annotations

from fastapi import FastAPI

import bockd
from api.control import PREFIX, control_router
from api.faults import install_faults
from api.imagecontrol import image_control_router
from api.intake import Intake
from bockd.control import Control, ImageControl


def create_app(control: Control, images: ImageControl) -> FastAPI:
    """The control API over both. Its OpenAPI document is at `/control/v1/openapi.json`."""
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
    app.include_router(image_control_router(images), prefix=PREFIX)
    return app
