"""The page to try the API at, `/docs`: Swagger UI, which works without internet. What it is made of
comes from a package, at the paths below the page."""

from __future__ import annotations

from importlib.resources import as_file, files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from api.openstack.paths import DOCS_PATH, OPENAPI_PATH

PACKAGE = "fastapi_offline"

SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"

KINDS = {SCRIPT: "text/javascript", STYLE: "text/css", ICON: "image/png"}


def docs_router(title: str) -> APIRouter:
    """Build the router of the page and of its files."""
    router = APIRouter(include_in_schema=False)

    @router.get(DOCS_PATH)
    async def page() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=OPENAPI_PATH,
            title=title,
            swagger_js_url=f"{DOCS_PATH}/{SCRIPT}",
            swagger_css_url=f"{DOCS_PATH}/{STYLE}",
            swagger_favicon_url=f"{DOCS_PATH}/{ICON}",
        )

    @router.get(DOCS_PATH + "/{name}")
    async def file(name: str) -> Response:
        if name not in KINDS:
            raise HTTPException(404)
        # An installed package's files are files: nothing is unpacked.
        with as_file(files(PACKAGE) / "static" / name) as path:
            return FileResponse(path, media_type=KINDS[name])

    return router
