"""A Keystone for each test, and how bockd is set up to ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.config.sections import KeystoneSettings

from .server import SERVICE_PASSWORD, Keystone, serving


@pytest.fixture
def keystone() -> Iterator[Keystone]:
    with serving() as running:
        yield running


@pytest.fixture
def settings(keystone: Keystone, tmp_path: Path) -> KeystoneSettings:
    """For `keystone`, with the password in a file."""
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(f"{SERVICE_PASSWORD}\n")
    return KeystoneSettings(url=keystone.url, username="bockd", password_file=password)
