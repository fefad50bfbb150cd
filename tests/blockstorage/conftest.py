"""A store with one tenant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.blockstorage.contract import TenantId
from tests.blockstorage.store import Store, running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with running(tmp_path) as store:
        yield store


@pytest.fixture
def tenant(store: Store) -> TenantId:
    return store.tenant("acme")
