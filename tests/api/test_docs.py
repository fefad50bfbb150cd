"""The page to try the API at is made of what is served here, and of nothing from elsewhere."""

from __future__ import annotations

import re

import httpx

from .public import Served


def test_all_that_the_page_is_made_of_is_here(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        named = set(re.findall(r"""(?:src|href|url)[=:] ?["']([^"']+)["']""", page.text))
        assert named == {
            "/docs/swagger-ui-bundle.js",
            "/docs/swagger-ui.css",
            "/docs/favicon.png",
            "/openapi.json",
        }
        kinds = {path: client.get(path).headers["content-type"] for path in named}
        assert {path: kind.partition(";")[0] for path, kind in kinds.items()} == {
            "/docs/swagger-ui-bundle.js": "text/javascript",
            "/docs/swagger-ui.css": "text/css",
            "/docs/favicon.png": "image/png",
            "/openapi.json": "application/json",
        }
        assert b"SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").content
        for path in ("/docs/redoc.standalone.js", "/docs/nothing", "/docs/..%2fcore.py"):
            assert client.get(path).status_code == 404, path
