"""The dashboard's files: its one page, the scripts and the style, as they are in the package.

They are read once. They hold nothing of the pool: the scripts ask for that.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.dashboard.paths import ENTRY_PATH, FIRST_PAGE_PATH, STATIC_PATH

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_router() -> APIRouter:
    """Build the router of all files."""
    router = APIRouter(include_in_schema=False)
    found = {
        one.name: one.read_bytes() for one in files("api.dashboard").joinpath("static").iterdir()
    }

    def answer(name: str) -> Response:
        if name not in found:
            raise HTTPException(404)
        kind = KINDS["." + name.rpartition(".")[2]]
        return Response(found[name], headers={"Content-Type": kind})

    @router.get(FIRST_PAGE_PATH)
    @router.get(ENTRY_PATH)
    async def page() -> Response:
        return answer("index.html")

    @router.get(STATIC_PATH + "{name}")
    async def file(name: str) -> Response:
        return answer(name)

    return router
