"""A store with one tenant, as the block storage tests have it."""

from __future__ import annotations

from tests.blockstorage.conftest import store, tenant

__all__ = ["store", "tenant"]
