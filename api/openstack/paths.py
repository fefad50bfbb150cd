"""What a path says before it is routed: whose it is, and whether it is open to everyone.

Paths arrive as they were sent, percent-encoded (see `api.intake`), so that an encoded slash never
makes two segments of one.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

VERSION = "v1.1"
VERSION_PATH = f"/{VERSION}/"
"""Section 4.1: the version's own document; below it, `{tenant}` and what the tenant has."""

IDENTITY_VERSION = "v2.0"
IDENTITY_PATH = f"/{IDENTITY_VERSION}"
"""Keystone v2, and the version's own document."""

IDENTITY_ROOT = "/identity"
"""Where clients look for the identity service that find the block storage at the host's root. All
of `IDENTITY_PATH` is below it, too."""

TOKENS_PATH = f"{IDENTITY_PATH}/tokens"
OPENAPI_PATH = "/openapi.json"
DOCS_PATH = "/docs"
IMAGE_ROOT = "/image"
IMAGE_VERSIONS_PATH = f"{IMAGE_ROOT}/versions"

OPEN_PATHS = frozenset(
    {
        "/",
        VERSION_PATH,
        IDENTITY_PATH,
        IDENTITY_ROOT,
        IDENTITY_ROOT + IDENTITY_PATH,
        TOKENS_PATH,
        IDENTITY_ROOT + TOKENS_PATH,
        OPENAPI_PATH,
        DOCS_PATH,
        IMAGE_ROOT,
        IMAGE_VERSIONS_PATH,
    }
)
"""What is there and needs no token: the version documents, the description of this API, and where
tokens come from."""

CLOSED = (
    VERSION_PATH,
    f"{IDENTITY_PATH}/",
    f"{IDENTITY_ROOT}{IDENTITY_PATH}/",
    "/v2/",
    f"{IMAGE_ROOT}/v2/",
)
"""What begins so needs a token, whether it exists or not, unless it is one of `OPEN_PATHS`.

Elsewhere there is nothing, and that is said to everybody: a client that looks for a version which
is not served is told so by a 404. A 401 would send it for a token before it knows where those come
from; keystoneauth 5 then waits for itself without end.
"""

SLASHES = re.compile("//+")


def tidy(path: str) -> str:
    """Return `path` in the one spelling that routes have: without empty segments, which clients
    make that join two parts with a slash each, and without a slash at its end, but for the two
    documents that section 4.1 writes with one."""
    path = SLASHES.sub("/", path)
    if path in ("/", VERSION_PATH[:-1], VERSION_PATH):
        return "/" if path == "/" else VERSION_PATH
    return path.removesuffix("/")


def needs_token(path: str) -> bool:
    """Return whether a request for a tidy path needs a token."""
    return path not in OPEN_PATHS and path.startswith(CLOSED)


def tenant_of(path: str) -> str | None:
    """Return the tenant's id of `/v1.1/{tenant}/...`; None for paths that belong to no tenant."""
    first, _, rest = path.removeprefix("/").partition("/")
    if first != VERSION or not rest:
        return None
    return unquote(rest.partition("/")[0])
