"""Open the `Identity` of the Keystone that the configuration names."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from bockd.config.sections import KeystoneSettings

if TYPE_CHECKING:
    from bockd.identity.keystone.identity import KeystoneIdentity


@asynccontextmanager
async def open_keystone(
    settings: KeystoneSettings,
    clock: Callable[[], float] = time.time,
    elapsed: Callable[[], float] = time.monotonic,
) -> AsyncIterator[KeystoneIdentity | None]:
    """Open the identity that the settings name, until the context ends; yield None without a `url`.

    Keystone is not contacted yet: it may be down when the daemon starts. Raises InvalidRequestError
    for a password or certificates that cannot be read.
    """
    if settings.url is None:
        yield None
        return
    # An HTTP client is some 10 MiB of memory, which few daemons need.
    from bockd.identity.keystone.client import KeystoneClient, ServiceUser
    from bockd.identity.keystone.exchange import Exchange, open_http
    from bockd.identity.keystone.identity import KeystoneIdentity, Rules
    from bockd.identity.keystone.password import password_source
    from bockd.identity.keystone.tokencache import TokenCache

    assert settings.username is not None  # the section's own check
    user = ServiceUser(
        settings.username,
        settings.user_domain,
        settings.project,
        settings.project_domain,
        password_source(settings.password_file, os.environ),
    )
    rules = Rules(settings.roles, settings.client_domain)
    async with open_http(settings.url, settings.ca_file, settings.timeout_seconds) as http:
        client = KeystoneClient(Exchange(http, settings.timeout_seconds), user, elapsed)
        yield KeystoneIdentity(client, TokenCache(settings.cache_seconds, elapsed), clock, rules)
