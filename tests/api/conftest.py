"""The public API over records in memory, for each test its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .memory_blockstorage import MemoryBlockStorage
from .memory_identity import ALICE, BOB, MemoryIdentity, User
from .public import Account, Served, Service, always, serving


def account_of(user: User) -> Account:
    """How a client knows a user."""
    tenant = user.tenants[0]
    return Account(
        user.name, user.password, user.access_key, user.secret_key, tenant.id, tenant.name
    )


@pytest.fixture
def storage() -> MemoryBlockStorage:
    return MemoryBlockStorage()


@pytest.fixture
def identity() -> MemoryIdentity:
    return MemoryIdentity()


@pytest.fixture
def served(storage: MemoryBlockStorage, identity: MemoryIdentity) -> Iterator[Served]:
    service = Service(storage, identity, account_of(ALICE), account_of(BOB))
    with serving(always(service)) as served:
        yield served
