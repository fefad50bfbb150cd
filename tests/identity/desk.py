"""Where tests have tokens issued."""

from __future__ import annotations

import trio

from bockd.identity.contract import Credentials, IssuedToken
from bockd.identity.local import LocalIdentity
from bockd.runtime.steprunner import StepRunner
from tests.blockstorage.store import Store

KEY = b"k" * 32


class Desk:
    """An identity service with a clock that the test sets."""

    def __init__(self, store: Store) -> None:
        self.now = 1000.0
        self.store = store
        self.identity = LocalIdentity(
            store.pool.index, StepRunner(2), lambda: self.now, KEY, token_seconds=60
        )

    def issue(self, credentials: Credentials, tenant: str | None = None) -> IssuedToken:
        return trio.run(self.identity.issue_token, credentials, tenant)
