"""A daemon with both TCP frontends open, and its first tenant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attach.tenant import Tenant
from tests.daemon.process import Bockd, serving


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Bockd]:
    listen = "127.0.0.1:0"
    with serving(tmp_path / "data", nbd_listen=listen, api_listen=listen) as daemon:
        yield daemon


@pytest.fixture
def tenant(daemon: Bockd) -> Tenant:
    return Tenant(daemon)
