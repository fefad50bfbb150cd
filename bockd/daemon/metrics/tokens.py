"""Tokens, counted: how many were issued, how many were shown to us, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.core import CounterMetricFamily, Metric

from bockd.blockstorage.contract import Tenant
from bockd.errors import ForbiddenError, OverLimitError, UnauthorizedError
from bockd.identity.contract import Credentials, Identity, IssuedToken, Principal

ANSWERS = ("done", "unauthorized", "forbidden", "throttled", "failed")
"""What the label `answer` says. "failed" is trouble of the service itself, or of Keystone."""

REQUESTS = ("issue", "validate", "revoke")


class CountedIdentity:
    """An identity service (`bockd.identity.contract.Identity`) whose answers are counted."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._answers: Counter[tuple[str, str]] = Counter()

    def families(self) -> Iterator[Metric]:
        """Yield what was counted until now."""
        family = CounterMetricFamily(
            "bockd_tokens",
            "What the identity service was asked for tokens, and how it answered.",
            labels=["request", "answer"],
        )
        for request in REQUESTS:
            for answer in ANSWERS:
                family.add_metric([request, answer], self._answers[request, answer])
        yield family

    @contextmanager
    def _counting(self, request: str) -> Iterator[None]:
        answer = "failed"
        try:
            yield
            answer = "done"
        except UnauthorizedError:
            answer = "unauthorized"
            raise
        except ForbiddenError:
            answer = "forbidden"
            raise
        except OverLimitError:
            answer = "throttled"
            raise
        finally:
            self._answers[request, answer] += 1

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        """See Identity."""
        with self._counting("issue"):
            return await self._identity.issue_token(credentials, tenant)

    async def validate_token(self, token: str) -> Principal:
        """See Identity."""
        with self._counting("validate"):
            return await self._identity.validate_token(token)

    async def authorize(self, token: str, tenant: str) -> Principal:
        """See Identity."""
        with self._counting("validate"):
            return await self._identity.authorize(token, tenant)

    async def revoke_token(self, token: str) -> None:
        """See Identity."""
        with self._counting("revoke"):
            await self._identity.revoke_token(token)

    async def list_tenants(self, token: str) -> list[Tenant]:
        """See Identity."""
        with self._counting("validate"):
            return await self._identity.list_tenants(token)
