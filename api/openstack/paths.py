"""What a path says before it is routed: whose it is, and whether it is open to everyone.

Paths arrive as they were sent, percent-encoded (see `api.intake`), so that an encoded slash never
makes two segments of one.
"""

from __future__ import annotations

from urllib.parse import unquote

VERSION = "v1.1"
VERSION_PATH = f"/{VERSION}/"
"""Section 4.1: the version's own document; below it, `{tenant}` and what the tenant has."""

TOKENS_PATH = "/v2.0/tokens"
OPENAPI_PATH = "/openapi.json"
DOCS_PATH = "/docs"
IMAGE_ROOT = "/image"
IMAGE_VERSIONS_PATH = f"{IMAGE_ROOT}/versions"

OPEN_PATHS = frozenset(
    {
        "/",
        VERSION_PATH,
        TOKENS_PATH,
        OPENAPI_PATH,
        DOCS_PATH,
        IMAGE_ROOT,
        IMAGE_VERSIONS_PATH,
    }
)
"""What needs no token: the version documents, the description of this API, and where tokens come
from. Everything else does, whether it exists or not."""


def tidy(path: str) -> str:
    """`path` in the one spelling that routes have: without a slash at its end, but for the two
    documents that section 4.1 writes with one."""
    if path in ("/", VERSION_PATH[:-1], VERSION_PATH):
        return "/" if path == "/" else VERSION_PATH
    return path.removesuffix("/")


def tenant_of(path: str) -> str | None:
    """The tenant's id in `/v1.1/{tenant}/...`; None for paths that belong to no tenant."""
    first, _, rest = path.removeprefix("/").partition("/")
    if first != VERSION or not rest:
        return None
    return unquote(rest.partition("/")[0])
